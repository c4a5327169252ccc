"""`klein verify` as a command: its verdict, its exit code, its page, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from injected import inject
from wrong_encoders import RIGHT_ON_VALID_ROWS, WRONG

import klein_cli.check.official
import klein_cli.check.verify
from klein_cli.check.prompts import PROMPTS
from klein_cli.cli.app import main

pytestmark = [pytest.mark.process, pytest.mark.lengthy, pytest.mark.usefixtures("empty_folder")]

QUICK = ("--size", "32x32", "--steps", "1", "--device", "cpu", "--attention", "sdpa")
EDITS = 3
DRAWN = len(PROMPTS) + EDITS
HEAVY = ("torch", "transformers", "diffusers", "numpy")
PROBE = f"""
import ast, sys
from klein_cli.cli.app import main
codes = [main(line) for line in ast.literal_eval(sys.argv[1])]
print("codes", codes, [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""


@pytest.fixture
def verify(small_snapshot: Path, capfd: pytest.CaptureFixture[str]) -> Any:
    """Run `klein verify` here on the random model -> (exit code, stdout, stderr)."""

    def run(*arguments: str, quick: tuple[str, ...] = QUICK) -> tuple[int, str, str]:
        code = main(["verify", "-m", str(small_snapshot), *quick, *arguments])
        said = capfd.readouterr()
        return code, said.out, said.err

    return run


def test_nothing_heavy_is_imported_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "report.html").touch()
    lines = [
        ["verify", "--help"],
        ["verify", "-m", "tinny"],
        ["verify", "-m", "tiny", "--size", "100x100"],
        ["verify", "-m", "tiny", "--size", "1024x1024"],
        ["verify", "-m", "tiny", "--steps", "0"],
        ["verify", "-m", "tiny", "--seed", "-1"],
        ["verify", "-m", "tiny", "--dtype", "int8"],
        ["verify", "-m", "tiny", "--batch-size", "none"],
        ["verify", "-m", "tiny", "--clip", "nowhere"],
        ["verify", "-m", "tiny", "--html", "report.html"],
        ["verify", "-m", "tiny", "--html", "."],
    ]
    ran = subprocess.run(
        [sys.executable, "-c", PROBE, repr(lines)], capture_output=True, text=True, check=True
    )
    *said, last = ran.stderr.splitlines()
    assert last == f"codes {[0, 3, *[2] * 9]} []"
    assert [line.split(":")[0] for line in said] == ["error", "hint"] * 10


def test_the_same(verify: Any) -> None:
    code, out, err = verify()
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[-1] == f"klein and diffusers: the same ({DRAWN} of {DRAWN} images)"
    assert "TOO FAR" not in out
    assert "clip: not compared" in out
    assert out.count("embeddings, padded rows  worst") == DRAWN - 1
    assert out.count("latents                  step 1") == DRAWN
    assert out.count(" of 512 positions, image ") == EDITS
    assert out.count(", masked)") == 1
    assert "<= 2.00e-05" in out


def test_in_short(verify: Any) -> None:
    code, out, err = verify("-q", "--attention", "eager")
    assert (code, err) == (0, "")
    assert out == f"klein and diffusers: the same ({DRAWN} of {DRAWN} images)\n"


@pytest.fixture
def drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing wrong is put into the reference: it need not draw anew for each wrong encoder."""
    monkeypatch.setattr(klein_cli.check.verify, "reference", _reference)
    some = PROMPTS[0], PROMPTS[3], PROMPTS[-1]
    monkeypatch.setattr("klein_cli.cli.commands.verify.PROMPTS", some)


_DRAWN: dict[object, Any] = {}


def _reference(root: Path, settings: Any, recipes: list[Any], on_event: Any, **more: Any) -> Any:
    key = (root, settings, *recipes)
    if key not in _DRAWN:
        _DRAWN[key] = klein_cli.check.official.reference(root, settings, recipes, on_event, **more)
    return _DRAWN[key]


@pytest.mark.usefixtures("drawn_once")
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_encoder_ends_with_1(
    verify: Any, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chosen by --attention sdpa, as the right one is; in a batch, so that mixed lengths show."""
    inject(monkeypatch, wrong)
    code, out, _ = verify("--batch-size", "3")
    assert code == 1
    assert "klein and diffusers: NOT the same" in out
    off = {line[:25].strip() for line in out.splitlines() if line.endswith("TOO FAR")}
    assert "embeddings, padded rows" in off
    assert ("embeddings, valid rows" in off) == (wrong not in RIGHT_ON_VALID_ROWS)


def events(out: str) -> list[Any]:
    """Lines of JSON, without the NaN and Infinity that JSON does not know."""
    return [json.loads(line, parse_constant=pytest.fail) for line in out.splitlines()]


def test_json_is_every_number_and_the_verdict(verify: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("klein_cli.cli.commands.verify.PROMPTS", PROMPTS[:2])
    inject(monkeypatch, "first pad unmasked")
    code, out, _ = verify("--json", "-s", "5")
    first, second, *edits, last = events(out)
    assert code == 1
    assert {each["event"] for each in (first, second, *edits)} == {"compared"}
    assert last["event"] == "verified"
    assert [len(each["references"]) for each in edits] == [1, 2, 2]
    assert [each["masked"] for each in (first, *edits)] == [False, False, False, True]
    assert [first["prompt"], second["prompt"]] == list(PROMPTS[:2])
    assert [first["seed"], second["seed"]] == [5, 6]
    assert first["passed"] is last["passed"] is False
    assert last["facts"]["both"] == "cpu, float32, 32x32, 1 steps"
    valid, padded = (
        next(m for m in first["measures"] if m["part"] == f"embeddings, {rows} rows")
        for rows in ("valid", "padded")
    )
    assert (valid["value"], valid["passed"]) == (0.0, True)
    assert padded["value"] > 0.01
    assert (padded["limit"], padded["passed"], padded["at_least"]) == (5e-6, False, False)


def test_json_of_equal_pictures_is_strict(verify: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their psnr is infinite, for which JSON has no word."""
    monkeypatch.setattr("klein_cli.cli.commands.verify.PROMPTS", PROMPTS[:1])
    code, out, _ = verify("--json")
    assert code == 0
    first, *_ = events(out)
    assert {m["name"]: m["value"] for m in first["measures"]}["psnr"] in (
        "inf",
        pytest.approx(85, abs=20),
    )


def test_an_error_is_an_event_too(verify: Any) -> None:
    code, out, err = verify("--json", "--steps", "0")
    assert code == 2
    assert json.loads(out)["event"] == "error"
    assert err.startswith("error: steps 0 is out of range\nhint: ")


def test_the_page(verify: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("klein_cli.cli.commands.verify.PROMPTS", PROMPTS[:2])
    assert verify("--html", "out/report.html")[0] == 0
    text = Path("out/report.html").read_text(encoding="utf-8")
    assert text.count("<img") == 3 * (2 + EDITS)
    assert PROMPTS[0] in text
    code, _, err = verify("--html", "out/report.html")
    assert (code, "-y replaces it" in err) == (2, True)
    assert verify("--html", "out/report.html", "-y")[0] == 0


def test_tiny_is_the_same(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "-m", "tiny", "--size", "128x128", "--device", "cpu"]) == 0
    assert "klein and diffusers: the same (10 of 10 images)" in capfd.readouterr().out


def test_guidance_is_the_same(
    small_base_snapshot: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("klein_cli.cli.commands.verify.PROMPTS", PROMPTS[:2])
    assert main(["verify", "-m", str(small_base_snapshot), *QUICK, "--steps", "2"]) == 0
    assert "5 of 5" in capfd.readouterr().out


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tiny_is_the_same_on_a_gpu(dtype: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "-m", "tiny", "--device", "cuda", "--dtype", dtype]) == 0
    assert "klein and diffusers: the same" in capfd.readouterr().out


@pytest.mark.gpu
def test_fp8_is_near_enough_on_a_gpu(capfd: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no fp8 on this GPU")
    assert main(["verify", "-m", "tiny", "--device", "cuda", "--quantize", "fp8"]) == 0
    assert "quantize fp8" in capfd.readouterr().out


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("attention", ["sdpa", "flash-attn"])
def test_the_full_size_is_the_same(attention: str, full_size_snapshot: Path) -> None:
    """Random weights at the true sizes, one pipeline at a time on the GPU."""
    if attention == "flash-attn":
        pytest.importorskip("flash_attn")
    assert main([*on_cuda(full_size_snapshot), "--attention", attention]) == 0


@pytest.mark.gpu
@pytest.mark.slow
def test_the_full_size_is_the_same_in_float32(full_size_snapshot: Path) -> None:
    command = [*on_cuda(full_size_snapshot), "--dtype", "float32", "--size", "512x512"]
    assert main(command) == 0


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["mask ignored", "first pad unmasked", "zeroed pads"])
def test_a_wrong_encoder_at_full_size_ends_with_1(
    full_size_snapshot: Path,
    wrong: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    inject(monkeypatch, wrong)
    command = [*on_cuda(full_size_snapshot), "--attention", "sdpa", "--size", "256x256"]
    assert main(command) == 1
    said = capfd.readouterr().out
    assert any("padded rows" in line for line in said.splitlines() if "TOO FAR" in line)


def on_cuda(snapshot: Path) -> list[str]:
    return ["verify", "-m", str(snapshot), "--device", "cuda"]
