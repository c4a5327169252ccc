"""What the front imports, and what it says where its own packages are not installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.process


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_the_front_is_without_torch() -> None:
    """It would take gigabytes and a second, and a context on the GPU that is never given back."""
    done = run("import sys, klein_cli.serve.start, klein_cli.serve.decoder; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    assert not {"torch", "numpy", "PIL", "transformers"} & set(done.stdout.split())


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_without_its_packages_serve_says_what_to_install(package: str) -> None:
    done = run(
        f"import sys; sys.modules['{package}'] = None; from klein_cli.cli.app import main;"
        "sys.exit(main(['serve', '-m', 'tiny']))"
    )
    assert done.returncode == 2
    assert f"klein serve needs {package}" in done.stderr
    assert "pip install 'klein-cli[serve]'" in done.stderr
