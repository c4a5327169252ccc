"""Names, folders and hub ids; the hub is a small server on this machine."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fake_hub
import pytest
from fake_hub import COMMIT, REPO, FakeHub, files_in, serving

import klein_cli.checkpoints.resolve
from klein_cli.checkpoints.hub.repository import matches
from klein_cli.checkpoints.resolve import WANTED_FILES, preset_for, resolve
from klein_cli.errors import ModelError
from klein_cli.presets import presets


def test_a_preset_by_its_name() -> None:
    for name, preset in presets().items():
        assert preset_for(name) is preset


def test_the_official_hub_id_is_its_preset() -> None:
    assert preset_for("black-forest-labs/FLUX.2-klein-4B") is presets()["klein-4b"]
    assert preset_for("Black-Forest-Labs/flux.2-klein-base-4b") is presets()["klein-base-4b"]


def test_a_folder_goes_by_is_distilled(small_snapshot: Path, small_base_snapshot: Path) -> None:
    distilled, base = preset_for(str(small_snapshot)), preset_for(str(small_base_snapshot))
    assert (distilled.steps, distilled.guidance, distilled.distilled) == (4, 1.0, True)
    assert (base.steps, base.guidance, base.distilled) == (50, 4.0, False)
    snapshot = resolve(str(small_snapshot))
    assert snapshot.root == small_snapshot
    assert snapshot.name == snapshot.preset.name == small_snapshot.name
    assert snapshot.revision is None


def test_a_folder_keeps_its_references_if_its_pipeline_does(
    small_snapshot: Path, tmp_path: Path
) -> None:
    """diffusers tells by the pipeline's name alone, and that one has no guidance."""
    root = tmp_path / "kv"
    shutil.copytree(small_snapshot, root)
    (root / "model_index.json").write_text('{"_class_name": "Flux2KleinKVPipeline"}')
    preset = resolve(str(root)).preset
    assert (preset.kv_cache, preset.distilled, preset.steps) == (True, True, 4)
    assert not resolve(str(small_snapshot)).preset.kv_cache


def test_a_presets_name_goes_before_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert preset_for("tiny") is presets()["tiny"]
    with pytest.raises(ModelError, match="is not a snapshot"):
        preset_for("./tiny")


@pytest.mark.parametrize(
    ("model", "near"), [("klein4b", "klein-4b"), ("Tiny", "tiny"), ("klein-9", "klein-9b")]
)
def test_an_unknown_name_gets_the_nearest(model: str, near: str) -> None:
    with pytest.raises(ModelError) as caught:
        preset_for(model)
    assert model in caught.value.message
    assert f"did you mean {near}?" in caught.value.hint
    assert (
        "klein-4b, klein-9b, klein-9b-kv, klein-base-4b, klein-base-9b, tiny" in caught.value.hint
    )


def test_a_name_like_no_other_gets_the_list() -> None:
    with pytest.raises(ModelError) as caught:
        resolve("stable-diffusion-xl")
    assert "did you mean" not in caught.value.hint
    assert "tiny" in caught.value.hint


@pytest.mark.parametrize("model", ["./no/such", "/no/such", "a/b/c", "~/no-such-folder-here"])
def test_a_folder_that_is_not_there(model: str) -> None:
    with pytest.raises(ModelError, match="there is no folder"):
        resolve(model)


@pytest.mark.parametrize("name", ["flux-2-klein-4b.safetensors", "model.gguf", "old.ckpt"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_single_file_is_refused(tmp_path: Path, name: str, exists: bool) -> None:
    if exists:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ModelError, match="is one file" if exists else "there is no file"):
        resolve(str(tmp_path / name))


def test_an_empty_name_and_a_file_are_no_models(small_snapshot: Path, tmp_path: Path) -> None:
    """Not even in the folder of a model, which an empty path would mean."""
    with pytest.raises(ModelError, match="-m is empty"), contextlib.chdir(small_snapshot):
        resolve("")
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ModelError, match=r"a\.png is a file, not a model"):
        resolve(str(tmp_path / "a.png"))


def test_a_folder_that_is_no_snapshot(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model_index\.json"):
        resolve(str(tmp_path))
    index = tmp_path / "model_index.json"
    for text, words in [
        ("{", "cannot be read"),
        ("[]", "JSON object"),
        ('{"_class_name": "StableDiffusionPipeline"}', "holds a StableDiffusionPipeline"),
        ('{"_class_name": "Flux2KleinPipeline", "is_distilled": "yes"}', "is_distilled is 'yes'"),
    ]:
        index.write_text(text)
        with pytest.raises(ModelError, match=words):
            resolve(str(tmp_path))


def test_the_embedded_model_may_be_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "checkpoints" / "resolve.py"
    monkeypatch.setattr(klein_cli.checkpoints.resolve, "__file__", str(module))
    with pytest.raises(ModelError, match="not in this installation"):
        resolve("tiny")


@pytest.mark.process
def test_nothing_heavy_is_imported(small_snapshot: Path) -> None:
    script = (
        "import sys; from klein_cli.checkpoints.resolve import resolve; resolve(sys.argv[1]);"
        "print(sorted({'torch', 'transformers', 'diffusers', 'numpy', 'huggingface_hub'}"
        " & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, str(small_snapshot)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() == "[]"


@pytest.fixture
def hub(small_snapshot: Path) -> Iterator[FakeHub]:
    """A hub holding one model, with files beside it that nobody should want."""
    unwanted = ["README.md", "model-4b.safetensors", "text_encoder/pytorch_model.bin"]
    unwanted += ["vae/model.pt", "vae/old/config.json", "text_encoder/model.fp16.safetensors"]
    more = dict.fromkeys(unwanted, b"unwanted")
    with serving(files_in(small_snapshot) | more) as hub:
        yield hub


def ask(model: str, endpoint: str, home: Path, **environment: str) -> dict[str, str]:
    """`resolve` in a process of its own, since the hub's client reads its settings once."""
    script = (
        "import json, sys\n"
        "from klein_cli.errors import KleinError\n"
        "from klein_cli.checkpoints.resolve import resolve\n"
        "try:\n"
        "    found = resolve(sys.argv[1])\n"
        "    print(json.dumps({'root': str(found.root), 'revision': found.revision,\n"
        "                      'name': found.name, 'steps': found.preset.steps}))\n"
        "except KleinError as error:\n"
        "    print(json.dumps({'message': error.message, 'hint': error.hint}))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, model],
        capture_output=True,
        text=True,
        check=True,
        env=fake_hub.environment(endpoint, home, **environment),
    )
    answer: dict[str, str] = json.loads(ran.stdout.splitlines()[-1])
    return answer


@pytest.mark.process
def test_only_the_files_needed_are_downloaded(
    hub: FakeHub, small_snapshot: Path, tmp_path: Path
) -> None:
    found = ask(REPO, hub.address, tmp_path)
    assert found["revision"] == COMMIT
    assert (found["name"], found["steps"]) == (REPO, 4)
    assert files_in(Path(found["root"])) == files_in(small_snapshot)
    asked = {asked.file for asked in hub.bodies_asked() if asked.file}
    assert not any(path.endswith(("4b.safetensors", ".bin", ".pt")) for path in asked)
    offline = ask(REPO, "http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1")
    assert offline == found


def wanted(path: str) -> bool:
    return any(matches(path, pattern) for pattern in WANTED_FILES)


@pytest.mark.parametrize(
    "path",
    [
        "model_index.json",
        "scheduler/scheduler_config.json",
        *(f"text_encoder/model-0000{n}-of-00002.safetensors" for n in (1, 2)),
        "text_encoder/model.safetensors.index.json",
        *(f"text_encoder/{name}.json" for name in ("config", "generation_config")),
        *("tokenizer/chat_template.jinja", "tokenizer/merges.txt", "tokenizer/vocab.json"),
        *("tokenizer/added_tokens.json", "tokenizer/special_tokens_map.json"),
        *("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"),
        *("transformer/config.json", "transformer/diffusion_pytorch_model.safetensors"),
        *(f"transformer/diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)),
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        *("vae/config.json", "vae/diffusion_pytorch_model.safetensors"),
    ],
)
def test_every_file_of_the_official_repositories_that_is_read_is_wanted(path: str) -> None:
    """The 4B has its text encoder in two files, the 9B its transformer as well."""
    assert wanted(path)


@pytest.mark.parametrize(
    "path",
    [
        "transformer/old/diffusion_pytorch_model.safetensors",
        "transformer/diffusion_pytorch_model.fp16.safetensors",
        "transformer/diffusion_pytorch_model-00001-of-00002.fp16.safetensors",
        "transformer/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.fp16.json",
        "text_encoder/model-fp8.safetensors",
        "text_encoder/lora.safetensors",
        "vae/old/config.json",
        "flux-2-klein-4b.safetensors",
        "copy/model_index.json",
    ],
)
def test_what_nothing_reads_is_not_wanted(path: str) -> None:
    """Gigabytes: a star took what lies deeper, and every variant of the weights."""
    assert not wanted(path)


@pytest.mark.process
def test_a_model_that_is_whole_here_is_not_looked_for_again(hub: FakeHub, tmp_path: Path) -> None:
    """Neither a network nor a newer commit may stand between a user and a model on the disk."""
    found = ask(REPO, hub.address, tmp_path)
    hub.asked.clear()
    hub.commit = "f" * 40
    assert ask(REPO, hub.address, tmp_path) == found
    assert hub.asked == []


@pytest.mark.process
def test_a_model_that_lost_a_file_is_made_whole(hub: FakeHub, tmp_path: Path) -> None:
    found = ask(REPO, hub.address, tmp_path)
    lost = Path(found["root"]) / "vae" / "config.json"
    lost.resolve().unlink()
    lost.unlink()
    hub.asked.clear()
    assert ask(REPO, hub.address, tmp_path) == found
    assert lost.is_file()
    assert {asked.file for asked in hub.bodies_asked()} == {"vae/config.json"}


@pytest.mark.process
@pytest.mark.parametrize(
    "path", ["vae/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer_config.json"]
)
def test_damage_in_a_file_of_the_right_size_is_mended(
    hub: FakeHub, tmp_path: Path, path: str
) -> None:
    """It was seen and then left alone, because sizes alone were compared."""
    found = ask(REPO, hub.address, tmp_path)
    damaged = Path(found["root"]) / path
    damaged.resolve().write_bytes(hub.files[path].replace(b"{", b"x", 1))
    hub.asked.clear()
    assert ask(REPO, hub.address, tmp_path) == found
    assert damaged.read_bytes() == hub.files[path]
    assert {asked.file for asked in hub.bodies_asked()} == {path}


@pytest.mark.process
@pytest.mark.parametrize("left", [b"", b"x"])
def test_an_index_that_cannot_be_read_is_mended(hub: FakeHub, tmp_path: Path, left: bytes) -> None:
    """It says what kind of model this is, and is read before anything is looked for."""
    found = ask(REPO, hub.address, tmp_path)
    index = Path(found["root"]) / "model_index.json"
    index.resolve().write_bytes(left + hub.files["model_index.json"][1:] if left else left)
    assert ask(REPO, hub.address, tmp_path) == found
    assert index.read_bytes() == hub.files["model_index.json"]


@pytest.mark.process
@pytest.mark.parametrize(
    ("model", "what", "todo"),
    [
        ("nobody/private", "is not on the hub, or is private", "hf auth login"),
        ("nobody/gated", "requires you to accept its terms", "accept them at"),
    ],
)
def test_a_repository_that_is_not_to_be_had(
    hub: FakeHub, tmp_path: Path, model: str, what: str, todo: str
) -> None:
    found = ask(model, hub.address, tmp_path)
    assert found["message"] == f"{model} {what}"
    assert todo in found["hint"]
    assert f"https://huggingface.co/{model}" in found["hint"]
    assert "--model tiny" in found["hint"]


@pytest.mark.process
@pytest.mark.parametrize("model", ["nobody/model", "klein-4b"])
def test_without_a_network_the_endpoint_is_named(tmp_path: Path, model: str) -> None:
    found = ask(model, "http://127.0.0.1:9", tmp_path)
    assert "http://127.0.0.1:9 (HF_ENDPOINT) cannot be reached" in found["message"]
    assert "HF_ENDPOINT" in found["hint"]
    assert "--model tiny" in found["hint"]
