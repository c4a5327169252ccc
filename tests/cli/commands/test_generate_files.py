"""Files in place of a model's parts, from the command line to the image and back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy
import pytest
import torch
from model_files import (
    OTHER_NAMES,
    bfl_transformer,
    is_large,
    read_part,
    true_transformer,
    write,
    write_gguf,
    write_sparse,
)
from PIL import Image
from safetensors.torch import load_file

from klein_cli.checkpoints.source import PARTS
from klein_cli.errors import ModelError
from klein_cli.output.reading import read_record

Klein = Callable[..., tuple[int, str, str]]
OPTIONS = {part: f"--{part.replace('_', '-')}" for part in PARTS}
LINE = ("--size", "64x64", "--steps", "2", "--device", "cpu", "-s", "7", "-q")


@pytest.fixture(scope="module")
def files(small_snapshot: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    return {
        part: write(
            folder / f"my-{part}.safetensors", OTHER_NAMES[part](read_part(small_snapshot / part))
        )
        for part in PARTS
    }


def given(files: dict[str, Path]) -> list[str]:
    return [word for part, path in files.items() for word in (OPTIONS[part], str(path))]


def pixels(path: str | Path) -> numpy.ndarray:
    with Image.open(path) as image:
        return numpy.asarray(image)


def test_the_files_draw_what_the_folder_draws(
    klein: Klein, empty_folder: Path, small_snapshot: Path, files: dict[str, Path]
) -> None:
    model = ("-m", str(small_snapshot))
    assert klein("generate", "a cat", *model, *LINE, "-o", "a.png")[0] == 0
    assert klein("generate", "a cat", *model, *LINE, "-o", "b.png", *given(files))[0] == 0
    assert (pixels("a.png") == pixels("b.png")).all()
    record = read_record(Path("b.png"))
    assert [(one.part, one.name, one.kind) for one in record.parts] == [
        (part, f"my-{part}.safetensors", "float32")
        for part in ("transformer", "text_encoder", "vae")
    ]
    assert read_record(Path("a.png")).parts == ()


def test_reproduce_wants_the_same_files(
    klein: Klein, empty_folder: Path, small_snapshot: Path, files: dict[str, Path]
) -> None:
    """By their weights: a name is anybody's."""
    model = ("-m", str(small_snapshot))
    transformer = {"transformer": files["transformer"]}
    klein("generate", "a cat", *model, *LINE, "-o", "a.png", *given(transformer))
    code, _, err = klein("reproduce", "a.png", "-o", "b.png")
    assert code == 3
    assert "was made with the file my-transformer.safetensors as its transformer" in err
    code, _, err = klein("reproduce", "a.png", *model, "-o", "b.png", *given(transformer))
    assert (code, "pixel for pixel" in err) == (0, True), err
    tensors = read_part(small_snapshot / "transformer")
    tensors["proj_out.weight"] = tensors["proj_out.weight"] * 1.01
    (empty_folder / "sub").mkdir()
    other = write(empty_folder / "sub" / "my-transformer.safetensors", tensors)
    more = given({"transformer": other})
    code, _, err = klein("reproduce", "a.png", *model, "-o", "c.png", *more)
    assert "transformer: my-transformer.safetensors (float32) then" in err
    assert "their weights differ" in err


def test_a_gguf_and_an_fp8_file_draw_nearly_the_same(
    klein: Klein, empty_folder: Path, small_snapshot: Path
) -> None:
    tensors = OTHER_NAMES["transformer"](read_part(small_snapshot / "transformer"))
    q8 = gguf.GGMLQuantizationType.Q8_0
    packed = {
        name: (gguf.quants.quantize(tensor.numpy(), q8), q8)
        if is_large(name, tensor)
        else (tensor.numpy(), "F32")
        for name, tensor in tensors.items()
    }
    write_gguf(Path("q8.gguf"), packed)
    halved = {}
    for name, tensor in tensors.items():
        if is_large(name, tensor):
            scale = tensor.abs().amax() / 448
            halved[f"{name.removesuffix('.weight')}.weight_scale"] = scale
            tensor = (tensor / scale).to(torch.float8_e4m3fn)
        halved[name] = tensor
    write(Path("fp8.safetensors"), halved)
    model = ("-m", str(small_snapshot))
    klein("generate", "a cat", *model, *LINE, "-o", "a.png")
    for file, kind, most in (("q8.gguf", "Q8_0", 6), ("fp8.safetensors", "fp8", 30)):
        code, _, err = klein(
            "generate", "a cat", *model, *LINE, "-o", f"{file}.png", "--transformer", file
        )
        assert code == 0, err
        apart = numpy.abs(pixels("a.png").astype(int) - pixels(f"{file}.png"))
        assert 0 < apart.mean() < most, file
        assert kind in read_record(Path(f"{file}.png")).parts[0].kind


def test_a_dry_run_takes_them(
    klein: Klein, empty_folder: Path, small_snapshot: Path, files: dict[str, Path]
) -> None:
    line = ("generate", "a cat", "-m", str(small_snapshot), "--dry-run", *given(files))
    code, out, _ = klein(*line)
    assert (code, "tokens" in out) == (0, True)
    code, _, err = klein(*line[:-1], str(files["transformer"]))
    assert (code, "holds a transformer, not a VAE" in err) == (3, True)


def test_bare_names_are_found_in_a_folder_of_models(
    klein: Klein, empty_folder: Path, small_snapshot: Path, files: dict[str, Path]
) -> None:
    place = empty_folder / "comfy" / "models" / "diffusion_models"
    place.mkdir(parents=True)
    (place / "mine.safetensors").symlink_to(files["transformer"])
    model = ("-m", str(small_snapshot), "--models-dir", "comfy", "--transformer", "mine")
    code, _, err = klein("generate", "a cat", *model, *LINE, "-o", "a.png")
    assert code == 0, err
    assert read_record(Path("a.png")).parts[0].name == "mine.safetensors"


@pytest.mark.process
def test_workers_load_them(
    klein: Klein, empty_folder: Path, small_snapshot: Path, files: dict[str, Path]
) -> None:
    line = ("generate", "a cat", "-m", str(small_snapshot), *LINE, "-n", "2", *given(files))
    assert klein(*line, "-o", "one/")[0] == 0
    code, out, err = klein(*line, "-o", "two/", "--workers", "2")
    assert code == 0, err
    assert len(out.splitlines()) == 2
    for path in Path("one").iterdir():
        if path.suffix == ".png":
            assert (pixels(path) == pixels(Path("two") / path.name)).all()
            assert read_record(path).parts == read_record(Path("two") / path.name).parts


def test_info_tells_what_a_file_is(klein: Klein, files: dict[str, Path]) -> None:
    code, out, _ = klein("info", *files.values())
    assert code == 0
    for words in (
        "FLUX.2 [klein]: 2 double and 2 single blocks of 64 channels",
        "Qwen3 of 64 channels and 30 layers, 512 tokens",
        "a decoder of 16, 16, 32, 32 channels",
        "names  BFL's",
        "names  llama.cpp's",
        "--vae",
    ):
        assert words in out
    code, out, _ = klein("info", "--json", files["vae"])
    assert json.loads(out)["names"] == "BFL's"


def test_info_names_every_part_of_a_file_and_how_to_use_it(
    klein: Klein, files: dict[str, Path], tmp_path: Path
) -> None:
    """The facts of one part took the place of another's, and of the options the last was left."""
    whole = tmp_path / "all in one.safetensors"
    tensors = load_file(files["transformer"]) | {
        f"vae.{name}": tensor for name, tensor in load_file(files["vae"]).items()
    }
    write(whole, tensors)
    code, out, err = klein("info", "--json", whole)
    assert code == 0, err
    facts = json.loads(out)
    assert facts["names"] == "transformer: BFL's; VAE: BFL's"
    assert facts["stored as"].count("tensors)") > 1
    assert facts["use"] == f"klein generate ... --transformer '{whole}' --vae '{whole}'"
    large = bfl_transformer(true_transformer("9b"))
    _, out, _ = klein("info", "--json", write_sparse(tmp_path / "9b.safetensors", large))
    assert json.loads(out)["base"] == "klein-9b, klein-9b-kv or klein-base-9b, which look alike"


def test_info_waits_for_no_pipe(klein: Klein, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    code, _, err = klein("info", tmp_path / "pipe.safetensors")
    assert code == 2
    assert "is not a file" in err


def test_info_refuses_by_name(klein: Klein, empty_folder: Path) -> None:
    write(Path("flux1.safetensors"), {"double_blocks.0.img_mod.lin.weight": torch.zeros(2, 2)})
    code, _, err = klein("info", "flux1.safetensors")
    assert code == ModelError.exit_code
    assert "a transformer of FLUX.1" in err
