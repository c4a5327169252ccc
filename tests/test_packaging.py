"""The wheel holds what the package reads at run time, and finds it there."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

REPOSITORY = Path(__file__).parents[1]
LIST_PRESETS = (
    "import klein_cli.presets as p; print(p.__file__); print(p.configs_dir()); print(*p.presets())"
)
NAMES = sorted(path.stem for path in (REPOSITORY / "configs").glob("*.toml"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (REPOSITORY / "pyproject.toml").is_file():
        pytest.skip("not run from a checkout")
    pytest.importorskip("hatchling", reason="the build backend is not installed")
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("klein_cli-*.whl")
    return built


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def ask(code: str, path: Path, folder: Path) -> list[str]:
    """Run `code` with `path` in front, from a folder that is no checkout."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_presets_are_found_in_a_wheel(unpacked: Path, tmp_path: Path) -> None:
    module, configs, names = ask(LIST_PRESETS, unpacked, tmp_path)
    assert Path(module).is_relative_to(unpacked)
    assert Path(configs) == unpacked / "klein_cli" / "configs"
    assert names.split() == NAMES


def test_presets_are_found_in_an_editable_install(tmp_path: Path) -> None:
    # An editable install is a path entry that points at the checkout.
    module, configs, names = ask(LIST_PRESETS, REPOSITORY, tmp_path)
    assert Path(module).is_relative_to(REPOSITORY)
    assert Path(configs) == REPOSITORY / "configs"
    assert names.split() == NAMES


def test_the_command_runs_from_a_wheel(unpacked: Path, tmp_path: Path) -> None:
    code = "from klein_cli.cli.app import main; main(['--version'])"
    (said,) = ask(code, unpacked, tmp_path)
    assert said.startswith("klein ")


def test_the_wheel_declares_the_command_and_its_name(unpacked: Path) -> None:
    (info,) = unpacked.glob("klein_cli-*.dist-info")
    assert "klein = klein_cli.__main__:run" in (info / "entry_points.txt").read_text()
    assert "Name: klein-cli\n" in (info / "METADATA").read_text()


def test_the_wheel_holds_the_whole_embedded_model(unpacked: Path) -> None:
    source = REPOSITORY / "klein_cli" / "tiny"
    files = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    assert Path("model_index.json") in files
    assert Path("transformer/diffusion_pytorch_model.safetensors") in files
    for name in files:
        packed = unpacked / "klein_cli" / "tiny" / name
        assert packed.read_bytes() == (source / name).read_bytes(), name


def test_the_wheel_holds_what_is_no_python(unpacked: Path) -> None:
    for name in (
        "check/golden.png",
        "check/golden_edited.png",
        "output/gallery.css",
        "output/gallery.js",
        "text/qwen3-merges.txt.xz",
    ):
        source = REPOSITORY / "klein_cli" / name
        assert (unpacked / "klein_cli" / name).read_bytes() == source.read_bytes(), name


def test_the_wheel_is_small_and_holds_nothing_stray(wheel: Path) -> None:
    assert wheel.stat().st_size < 20_000_000
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"klein_cli"}
