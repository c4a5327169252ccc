"""What only a Ray needs: that it is installed, and that it answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import klein_cli.run.executors.ray
from klein_cli.cli.app import main

pytestmark = pytest.mark.process

LAUNCH = "import sys; from klein_cli.cli.app import main; sys.exit(main())"


@pytest.fixture
def _without_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(klein_cli.run.executors.ray, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_without_ray")
def test_without_ray_the_error_names_the_extra(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["-n", "2", "-m", "tiny", "-o", "x/", "--ray", "auto"]
    assert main(["generate", "a cat", *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --ray auto needs Ray")
    assert "klein-cli[ray]" in said.splitlines()[1]
    assert not Path("x").exists()


@pytest.mark.usefixtures("_without_ray")
@pytest.mark.parametrize("options", [["--ray", "auto"], ["--workers", "2"]])
def test_a_dry_run_needs_no_ray(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a cat", "-n", "2", "-m", "tiny", "--dry-run", *options]) == 0
    assert "2 images to make" in capsys.readouterr().err


def test_a_ray_that_is_not_there_is_a_users_error(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    options = ["-n", "2", "-s", "5", "-m", "tiny", "--device", "cpu", "-o", f"{tmp_path}/d/"]
    launch = [sys.executable, "-c", LAUNCH, "generate", "a cat", *options, "--ray", "127.0.0.1:9"]
    done = subprocess.run(launch, capture_output=True, text=True)
    assert done.returncode == 1
    what, todo = done.stderr.splitlines()
    assert what.startswith("error: Ray does not start")
    assert todo.startswith("hint: ")
    assert not (tmp_path / "d").exists()
