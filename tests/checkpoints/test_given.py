"""What the user gives in place of a model's parts: found, of one size, or refused before torch."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_files import (
    OTHER_NAMES,
    bfl_transformer,
    read_part,
    true_transformer,
    write,
    write_sparse,
)

from klein_cli.checkpoints.given import is_file, wanted
from klein_cli.checkpoints.lora.find import located
from klein_cli.checkpoints.models_dir import ModelsDir
from klein_cli.checkpoints.resolve import on_disk, resolve
from klein_cli.checkpoints.single_file import FileCheckpoint
from klein_cli.checkpoints.source import PARTS
from klein_cli.errors import ModelError, UsageError

NONE = dict.fromkeys(PARTS)


@pytest.fixture(scope="module")
def true(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Transformers of the true sizes, as Black Forest Labs' files, without their bytes."""
    folder = tmp_path_factory.mktemp("true")
    return {
        size: write_sparse(folder / f"{size}.safetensors", bfl_transformer(true_transformer(size)))
        for size in ("4b", "9b")
    }


@pytest.fixture(scope="module")
def files(small_snapshot: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The small model's parts, a file each, as other programs have them."""
    folder = tmp_path_factory.mktemp("files")
    return {
        part: str(
            write(
                folder / f"{part}.safetensors", OTHER_NAMES[part](read_part(small_snapshot / part))
            )
        )
        for part in PARTS
    }


@pytest.mark.parametrize(
    ("size", "tensors", "numbers"), [("4b", 149, 3_875_544_576), ("9b", 201, 9_078_581_248)]
)
def test_the_true_files_have_as_many_tensors_as_black_forest_labs(
    true: dict[str, Path], size: str, tensors: int, numbers: int
) -> None:
    from klein_cli.checkpoints.header import read_header

    held = read_header(true[size]).tensors
    assert len(held) == tensors
    assert sum(one.end - one.begin for one in held.values()) == 2 * numbers


@pytest.mark.parametrize("size", ["4b", "9b"])
def test_a_file_for_the_model_is_the_distilled_one_of_its_size(
    true: dict[str, Path], size: str
) -> None:
    found = wanted(str(true[size]), NONE)
    assert (found.model, found.parts) == (f"klein-{size}", {"transformer": str(true[size])})
    (note,) = found.notes
    assert "look alike" in note
    assert f"--transformer {true[size]}" in note


def test_a_file_of_a_known_digest_needs_no_guess(true: dict[str, Path], tmp_path: Path) -> None:
    """The hub's cache names its files by their digests, and a folder has notes of them."""
    digest = "9c5fed22" + "0" * 56
    (tmp_path / digest).symlink_to(true["4b"])
    (tmp_path / "other").mkdir()
    blob = tmp_path / "blobs" / digest
    blob.parent.mkdir()
    blob.hardlink_to(true["4b"])
    link = tmp_path / "flux.safetensors"
    link.symlink_to(blob)
    assert (wanted(str(link), NONE).model, wanted(str(link), NONE).notes) == ("klein-base-4b", ())
    plain = tmp_path / "local" / "sub" / "flux.safetensors"
    plain.parent.mkdir(parents=True)
    plain.hardlink_to(true["4b"])
    noted = tmp_path / "local" / ".cache" / "huggingface" / "download" / "sub"
    noted.mkdir(parents=True)
    (noted / "flux.safetensors.metadata").write_text(f"commit\n{digest}\n1.0\n")
    assert (wanted(str(plain), NONE).model, wanted(str(plain), NONE).notes) == ("klein-base-4b", ())


def test_a_transformer_of_another_size_names_the_model(true: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="is of the 9B models, not of klein-4b") as caught:
        wanted("klein-4b", NONE | {"transformer": str(true["9b"])})
    assert "-m klein-9b" in caught.value.hint


def test_parts_of_different_widths_are_refused_before_they_load(
    files: dict[str, str], true: dict[str, Path], small_snapshot: Path
) -> None:
    parts = {"transformer": str(true["9b"])}
    with pytest.raises(ModelError, match=r"takes 12288 channels of text.* makes 192"):
        on_disk(str(small_snapshot), parts)


def test_whatever_is_given_is_used(files: dict[str, str], small_snapshot: Path) -> None:
    found = resolve(str(small_snapshot), parts=files)
    assert [found.part(part).files for part in PARTS] == [[Path(files[part])] for part in PARTS]
    assert found.tokenizer == small_snapshot / "tokenizer", "a small model has its own"


def test_a_folder_may_be_a_snapshot_or_a_part(small_snapshot: Path, tmp_path: Path) -> None:
    for folder in (small_snapshot, small_snapshot / "text_encoder"):
        found = resolve(str(small_snapshot), parts={"text_encoder": str(folder)})
        assert found.part("text_encoder").place == str(small_snapshot / "text_encoder")
        assert found.tokenizer == small_snapshot / "tokenizer"
    with pytest.raises(ModelError, match="holds no text encoder"):
        wanted("tiny", NONE | {"text_encoder": str(tmp_path)})


@pytest.mark.parametrize(
    ("model", "part", "error", "words"),
    [
        ("tiny", "nowhere.safetensors", ModelError, "there is no such file"),
        ("tiny", "", ModelError, "there is no such file"),
        ("{vae}", None, ModelError, "holds a VAE, not a whole model"),
        ("{transformer}", None, ModelError, "of a size that none of klein's models has"),
        ("{transformer}", "{transformer}", UsageError, "leave one"),
        ("tiny", "{vae}", ModelError, "holds a VAE, not a transformer"),
    ],
)
def test_what_cannot_be_is_said(
    files: dict[str, str], model: str, part: str | None, error: type[Exception], words: str
) -> None:
    transformer = None if part is None else part.format(**files)
    with pytest.raises(error) as caught:
        wanted(model.format(**files), NONE | {"transformer": transformer})
    assert words in f"{caught.value} {caught.value.hint}"  # type: ignore[attr-defined]


def test_parts_that_are_all_given_need_nothing_of_the_model(
    files: dict[str, str], true: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without a network, and with klein-4b nowhere: the encoder reads klein's own tokenizer."""
    monkeypatch.setattr("klein_cli.checkpoints.hub.cache.cache_folder", lambda: tmp_path)
    monkeypatch.setattr("klein_cli.checkpoints.resolve.check_together", lambda parts, taps: None)
    monkeypatch.setattr("klein_cli.checkpoints.given.VOCABULARY", 1)
    monkeypatch.setattr("klein_cli.checkpoints.resolve.VOCABULARY", 1)
    found = on_disk("klein-4b", files)
    assert found is not None
    assert found.tokenizer is None
    assert on_disk("klein-4b", {"vae": files["vae"]}) is None


@pytest.fixture
def comfy(files: dict[str, str], tmp_path: Path) -> Path:
    """ComfyUI's folder, with another one listed in extra_model_paths.yaml."""
    root = tmp_path / "ComfyUI"
    for folder, part in {
        "diffusion_models": "transformer",
        "text_encoders": "text_encoder",
    }.items():
        place = root / "models" / folder / "flux2"
        place.mkdir(parents=True)
        (place / f"small_{part}.safetensors").symlink_to(files[part])
    (root / "models" / "loras").mkdir()
    (root / "models" / "loras" / "style.safetensors").write_bytes(b"")
    other = tmp_path / "elsewhere" / "vaes"
    other.mkdir(parents=True)
    (other / "flux2-vae.safetensors").symlink_to(files["vae"])
    (root / "extra_model_paths.yaml").write_text(
        f"a1111:\n  base_path: {tmp_path}\n  vae: |\n    elsewhere/vaes\n    elsewhere/none\n"
        "# other:\n#   vae: x\nempty:\n"
    )
    return root


@pytest.mark.parametrize("below", ["", "models"])
def test_bare_names_are_found_as_comfyui_finds_them(
    comfy: Path, files: dict[str, str], below: str
) -> None:
    found = ModelsDir(comfy / below)
    for name in ("small_transformer", "small_transformer.safetensors", "flux2/small_transformer"):
        assert Path(found.find(name, "transformer")).resolve() == Path(files["transformer"])
    assert found.find("small_transformer", "vae") == "small_transformer"
    assert Path(found.find("flux2-vae", "vae")).resolve() == Path(files["vae"])
    assert found.find("style", "lora").endswith("loras/style.safetensors")
    assert found.find("nothing", "lora") == "nothing"
    parts = NONE | {"transformer": "small_transformer", "vae": "flux2-vae"}
    given = wanted("tiny", parts, str(comfy / below)).parts
    assert [Path(path).resolve() for path in given.values()] == [
        Path(files["transformer"]),
        Path(files["vae"]),
    ]


def test_an_ambiguous_name_is_an_error(comfy: Path, files: dict[str, str]) -> None:
    twin = comfy / "models" / "unet" / "small_transformer.gguf"
    twin.parent.mkdir()
    twin.write_bytes(b"")
    with pytest.raises(UsageError, match="is the name of 2 files") as caught:
        ModelsDir(comfy).find("small_transformer", "transformer")
    assert str(twin) in caught.value.hint


def test_a_folder_of_models_that_cannot_be_read_is_said(comfy: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        ModelsDir(tmp_path / "nowhere")
    (comfy / "extra_model_paths.yaml").write_text("a: [1\n")
    with pytest.raises(UsageError, match=r"extra_model_paths\.yaml cannot be read"):
        ModelsDir(comfy).find("x", "vae")


@pytest.mark.parametrize(
    "hostile",
    [
        'a: {base_path: "x\\0y", vae: models}',
        'a: {vae: "x\\0y"}',
        "a: {base_path: 3, vae: models}",
        "a: {vae: [models, others]}",
        "\n".join(
            [
                "n0: &n0 [x, x, x, x, x, x, x, x, x, x]",
                *(f"n{k}: &n{k} [{', '.join([f'*n{k - 1}'] * 10)}]" for k in range(1, 12)),
                "a: {vae: *n11}",
            ]
        ),
    ],
)
def test_paths_that_are_not_text_are_refused_at_once(comfy: Path, hostile: str) -> None:
    """A zero byte raised ValueError, a list was ignored, and one of lists was written out."""
    (comfy / "extra_model_paths.yaml").write_text(hostile)
    with pytest.raises(UsageError, match=r"extra_model_paths\.yaml is not text"):
        ModelsDir(comfy).find("x", "vae")


def test_a_section_without_folders_lists_none(comfy: Path) -> None:
    (comfy / "extra_model_paths.yaml").write_text("a:\n  base_path:\n  vae:\n  is_default: true\n")
    assert ModelsDir(comfy).find("x", "vae") == "x"


def test_endings_in_capitals_are_found(comfy: Path) -> None:
    path = comfy / "models" / "vae" / "Loud.SAFETENSORS"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    assert ModelsDir(comfy).find("Loud", "vae") == str(path)


def test_a_home_of_nobody_is_a_path_that_is_not_there(comfy: Path) -> None:
    """pathlib raises RuntimeError for the folder of a user whom the machine does not know."""
    nowhere = "~nobody-of-this-name/x.safetensors"
    with pytest.raises(ModelError, match="there is no such file"):
        wanted("tiny", {**NONE, "transformer": nowhere})
    with pytest.raises(UsageError, match="is not a folder"):
        wanted("tiny", NONE, nowhere)
    (comfy / "extra_model_paths.yaml").write_text(f"a: {{base_path: {nowhere}, vae: y}}")
    assert ModelsDir(comfy).find(nowhere, "vae") == nowhere


def test_shapes_of_the_true_models_make_their_configurations(true: dict[str, Path]) -> None:
    config = FileCheckpoint(true["9b"], "transformer").config()
    assert (config["num_layers"], config["num_single_layers"]) == (8, 24)
    assert config["axes_dims_rope"] == [32, 32, 32, 32]
    assert (config["mlp_ratio"], config["in_channels"]) == (3.0, 128)


@pytest.mark.parametrize("name", ["renamed", "renamed.txt", "renamed.ckpt"])
def test_a_file_is_told_by_its_content_under_any_name(
    true: dict[str, Path], tmp_path: Path, name: str
) -> None:
    (tmp_path / name).symlink_to(true["4b"])
    assert wanted(str(tmp_path / name), NONE).parts == {"transformer": str(tmp_path / name)}


def test_a_file_that_is_called_like_a_preset_does_not_take_its_place(
    true: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("klein-9b").symlink_to(true["4b"])
    assert wanted("klein-9b", NONE).parts == {}


def refused(path: str) -> None:
    """Given for a part, for the folder of models, and for a name in one: an error, not a bug."""
    for parts, folder in ((NONE, path), ({**NONE, "vae": path}, None)):
        with pytest.raises(UsageError, match="cannot be opened"):
            wanted("tiny", parts, folder)
    with pytest.raises(UsageError, match="cannot be opened"):
        located(path, Path())


def test_a_path_of_which_the_machine_will_not_tell_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pathlib raises what it does not take for "it is not there"."""
    refused("a" * 5000)
    monkeypatch.setattr(
        Path, "stat", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "no"))
    )
    refused(str(tmp_path / "x"))
    assert not is_file(tmp_path / "x")
