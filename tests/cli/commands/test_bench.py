"""`klein bench` as a command: what it measures, what it says where, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from klein_cli.cli.app import main
from klein_cli.cli.commands.bench import images_of, warn_of_other_images
from klein_cli.cli.terminal.report import Report
from klein_cli.presets import presets

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("empty_folder")]

HEAVY = ("torch", "transformers", "diffusers", "numpy")
PROBE = f"""
import ast, sys
from klein_cli.cli.app import main
codes = [main(line) for line in ast.literal_eval(sys.argv[1])]
print("codes", codes, [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
SMALL = ("--device", "cpu", "--quick", "--size", "64x64", "--rounds", "2", "--images", "2")
Bench = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bench(small_snapshot: Path, capfd: pytest.CaptureFixture[str]) -> Bench:
    """Run `klein bench` here on the random model -> (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["bench", "-m", str(small_snapshot), *SMALL, *arguments])
        said = capfd.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture(scope="module")
def whole(small_snapshot: Path) -> tuple[str, str]:
    """A run of everything, as a process: what it said on stdout and on stderr."""
    command = [sys.executable, "-m", "klein_cli", "bench", "-m", str(small_snapshot), "--peer"]
    done = subprocess.run([*command, *SMALL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_nothing_heavy_is_imported_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"event": "benched", "format": 0}\n')
    lines = [
        ["bench", "--help"],
        ["bench", "-m", "tinny"],
        ["bench", "-m", "tiny", "--size", "100x100"],
        ["bench", "-m", "tiny", "--size", "256x256", "--size", "1024x1024"],
        ["bench", "-m", "tiny", "--steps", "0"],
        ["bench", "-m", "tiny", "--dtype", "int8"],
        ["bench", "-m", "tiny", "--only", "warm,lukewarm"],
        ["bench", "-m", "tiny", "--only", ""],
        ["bench", "-m", "tiny", "--rounds", "0"],
        ["bench", "-m", "tiny", "--keep", "new"],
        ["bench", "--keep", "."],
        ["bench", "-m", "tiny", "--compile-vae"],
        ["bench", "--from", "nowhere"],
        ["bench", "--from", "other.json"],
    ]
    ran = subprocess.run(
        [sys.executable, "-c", PROBE, repr(lines)], capture_output=True, text=True, check=True
    )
    *said, last = ran.stderr.splitlines()
    assert last == f"codes {[0, 3, *[2] * 12]} []"
    assert [line.split(":")[0] for line in said] == ["error", "hint"] * 13


def test_a_whole_run_is_tables_and_one_line_of_json(whole: tuple[str, str]) -> None:
    out, err = whole
    *shown, last = out.splitlines()
    result = json.loads(last, parse_constant=pytest.fail)
    page = "\n".join(shown)
    for words in ("This machine at its best", "64x64, 4 steps", "one image", "klein / diffusers"):
        assert words in page
    for words in ("round 2 of 2", "2 images by klein generate", "process 1 of 1 of diffusers"):
        assert words in err
    assert result["event"] == "benched"
    assert result["settings"]["device"] == "cpu"
    assert "diffusers" in result["machine"]


def test_a_whole_run_measures_both_sides_of_everything(whole: tuple[str, str]) -> None:
    result = json.loads(whole[0].splitlines()[-1])
    (size,) = result["sizes"]
    both = {"klein", "diffusers"}
    assert both == size["warm"].keys() == size["throughput"].keys() == result["cold"].keys()
    for side in both:
        warm = size["warm"][side]
        parts = sum(warm[stage]["median"] for stage in ("encode", "denoise", "decode"))
        assert warm["picture"]["runs"] == 2
        assert 0.3 * warm["picture"]["median"] < parts < 3 * warm["picture"]["median"]
        assert size["throughput"][side]["pictures"] == 2
        assert size["throughput"][side]["per_second"] > 0.01
        cold = result["cold"][side]
        assert cold["dropped"] is None
        assert sum(cold["split"].values()) == pytest.approx(cold["warm"]["median"], abs=0.05)
    assert size["limits"]["float32"]["picture"] < size["warm"]["klein"]["picture"]["median"]


def test_both_sides_drew_the_same_picture(whole: tuple[str, str]) -> None:
    (size,) = json.loads(whole[0].splitlines()[-1])["sizes"]
    assert size["pixels"]["diffusers"] < 0.01


def test_what_has_no_place_on_a_cpu_is_named(whole: tuple[str, str]) -> None:
    result = json.loads(whole[0].splitlines()[-1])
    assert [thing["what"] for thing in result["left_out"]] == [
        "the fp8 ceiling",
        "diffusers, tuned",
        "memory",
        "processes without page cache",
    ]
    assert result["sizes"][0]["warm"]["klein"]["peak"] is None


def test_a_result_is_shown_again_as_it_was(
    whole: tuple[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.txt").write_text(whole[0])
    assert main(["bench", "--from", "run.txt"]) == 0
    assert capfd.readouterr().out == whole[0]
    assert main(["bench", "--from", "run.txt", "--markdown"]) == 0
    page = capfd.readouterr().out
    assert page.startswith("small on ")
    assert "\n| one image | " in page
    assert "{" not in page
    assert main(["bench", "--from", "run.txt", "--json"]) == 0
    assert capfd.readouterr().out == whole[0].splitlines()[-1] + "\n"


def test_one_part_alone_in_json_alone(bench: Bench) -> None:
    code, out, err = bench("--only", "ceilings", "--json", "-q")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert result["wanted"]["parts"] == ["ceilings"]
    assert [ceiling["kind"] for ceiling in result["ceilings"]][-1] == "attention"
    assert result["cold"] == result["sizes"][0]["warm"] == {}


def test_parts_run_in_their_own_order_and_sizes_once(bench: Bench) -> None:
    sizes = ("--size", "32x48", "--size", "64x64")
    code, out, _ = bench("--only", "warm, ceilings", *sizes, "--steps", "1", "--json")
    assert code == 0
    result = json.loads(out)
    assert result["wanted"]["parts"] == ["ceilings", "warm"]
    assert [(size["width"], size["height"]) for size in result["sizes"]] == [(64, 64), (32, 48)]
    for size in result["sizes"]:
        assert size["steps"] == 1
        assert size["warm"]["klein"]["step"] is None
        assert size["throughput"] == {}


def test_batches_are_counted_whole(bench: Bench) -> None:
    code, out, _ = bench("--only", "throughput", "--batch-size", "2", "--pictures", "3", "--json")
    assert code == 0
    assert json.loads(out)["sizes"][0]["throughput"]["klein"]["pictures"] == 4


def test_two_different_pictures_are_a_warning(capfd: pytest.CaptureFixture[str]) -> None:
    """Who compares the times of two programs should know that they draw the same."""
    report = Report(as_json=False, quiet=True, verbose=False, silent_stdout=False)
    warn_of_other_images({"sizes": [{"pixels": {"near": 3.0, "far": 47.5}}]}, report)
    assert capfd.readouterr().err.startswith("warning: the images of klein and far are 47.5 of")


def test_a_process_that_fails_is_an_error(
    small_snapshot: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whoever waits for an image that never comes should hear why."""
    shutil.copytree(small_snapshot, tmp_path / "model")
    (tmp_path / "model" / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert main(["bench", "-m", "model", *SMALL, "--only", "throughput", "--json", "-q"]) == 3
    said = capfd.readouterr()
    assert json.loads(said.out)["event"] == "error"
    assert "holds no weights" in said.err


@pytest.mark.parametrize(
    ("model", "quick", "sizes"),
    [
        ("klein-4b", False, [(1024, 1024), (512, 512)]),
        ("klein-4b", True, [(1024, 1024)]),
        ("tiny", False, [(256, 256)]),
    ],
)
def test_the_usual_sizes(model: str, quick: bool, sizes: list[tuple[int, int]]) -> None:
    found = images_of(presets()[model], None, None, quick)
    assert found == {"sizes": tuple(sizes), "steps": 4, "guidance": 1.0}


def test_without_a_gpu_no_full_model_is_written(capfd: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["bench", "-q"]) == 3
    assert "use --model tiny" in capfd.readouterr().err


def test_without_a_model_random_weights_are_made_and_go_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The true size in small: as many parts of the way as a test can wait for."""
    monkeypatch.setattr("klein_cli.bench.random_model.SIZE", "small")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["bench", *SMALL, "--only", "ceilings", "--json"]) == 0
    said = capfd.readouterr()
    model = json.loads(said.out)["model"]
    assert model == {"name": "random weights at the sizes of klein-4b", "revision": None}
    assert "GB of random weights to" in said.err
    assert list(tmp_path.glob("klein-bench-*")) == []
    assert main(["bench", *SMALL, "--only", "ceilings", "-q", "--keep", "kept"]) == 0
    assert main(["bench", *SMALL, "--only", "ceilings", "-q", "-m", "kept"]) == 0


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler imports what is old
def test_a_gpu_has_it_all(small_snapshot: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The tuned pipeline, memory and the limit in fp8; both peers draw klein's image."""
    arguments = ["--device", "cuda", "--dtype", "bfloat16", "--peer", "--size", "256x256"]
    more = ["--rounds", "2", "--pictures", "4", "--only", "ceilings,warm,throughput", "--json"]
    assert main(["bench", "-m", str(small_snapshot), *arguments, *more]) == 0
    (size,) = json.loads(capfd.readouterr().out.splitlines()[-1])["sizes"]
    names = {"klein", "diffusers", "diffusers, tuned"}
    assert names == size["warm"].keys() == size["throughput"].keys()
    for side in size["warm"].values():
        assert 0 < side["held"] < side["peak"]
        assert side["held"] <= side["reserved"]
    assert all(apart < 8 for apart in size["pixels"].values())


@pytest.mark.gpu
@pytest.mark.slow
def test_random_weights_at_the_true_sizes(capfd: pytest.CaptureFixture[str]) -> None:
    """16 GB are written and gone again; the peak stays below what a resident model may take."""
    assert main(["bench", "--quick", "--only", "warm", "--rounds", "2", "--json"]) == 0
    (size,) = json.loads(capfd.readouterr().out.splitlines()[-1])["sizes"]
    assert size["warm"]["klein"]["peak"] <= 18e9
