"""Names, folders and hub ids; the hub is a small server on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import klein_cli.snapshot
from klein_cli.errors import ModelError
from klein_cli.presets import presets
from klein_cli.snapshot import preset_for, resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"


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
    assert "klein-4b, klein-9b, klein-base-4b, klein-base-9b, tiny" in caught.value.hint


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
    with pytest.raises(ModelError, match="single-file checkpoint"):
        resolve(str(tmp_path / name))


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
    monkeypatch.setattr(klein_cli.snapshot, "__file__", str(tmp_path / "snapshot.py"))
    with pytest.raises(ModelError, match="not in this installation"):
        resolve("tiny")


def test_nothing_heavy_is_imported(small_snapshot: Path) -> None:
    script = (
        "import sys; from klein_cli.snapshot import resolve; resolve(sys.argv[1]);"
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


class Hub(BaseHTTPRequestHandler):
    """What the hub's client asks for: a repository's list of files, and each file."""

    files: dict[str, bytes]
    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0].removeprefix("/api/models").strip("/")
        self.asked.append(path)
        if path.startswith("nobody/private"):
            self.answer(401, b"", {"X-Error-Code": "RepoNotFound"})
        elif path.startswith("nobody/gated"):
            self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
        elif path.startswith("nobody/model/revision/"):
            self.answer(200, json.dumps({**self.listing(), "sha": COMMIT}).encode())
        elif path.startswith("nobody/model/tree/"):
            self.answer(200, json.dumps(self.tree()).encode())
        elif path.startswith(f"nobody/model/resolve/{COMMIT}/"):
            self.file(path.split(f"{COMMIT}/")[1])
        else:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})

    def listing(self) -> dict[str, object]:
        return {"id": "nobody/model", "siblings": [{"rfilename": name} for name in self.files]}

    def tree(self) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": name, "size": len(data), "oid": self.etag(data)}
            for name, data in self.files.items()
        ]

    @staticmethod
    def etag(data: bytes) -> str:
        return hashlib.sha1(data).hexdigest()

    def file(self, name: str) -> None:
        data = self.files[name]
        self.answer(200, data, {"ETag": f'"{self.etag(data)}"', "X-Repo-Commit": COMMIT})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(small_snapshot: Path) -> Iterator[tuple[str, type[Hub]]]:
    """A hub holding one model, with files beside it that nobody should want."""
    held = {
        str(path.relative_to(small_snapshot)): path.read_bytes()
        for path in small_snapshot.rglob("*")
        if path.is_file()
    }
    unwanted = ["README.md", "model-4b.safetensors", "text_encoder/pytorch_model.bin"]

    class Handler(Hub):
        files = held | dict.fromkeys([*unwanted, "vae/model.pt"], b"unwanted")
        asked: list[str] = []  # noqa: RUF012 (one server, one list)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", Handler
    server.shutdown()
    server.server_close()


def ask(model: str, endpoint: str, home: Path, **environment: str) -> dict[str, str]:
    """`resolve` in a process of its own, since the hub's client reads its settings once."""
    script = (
        "import json, sys\n"
        "from klein_cli.errors import KleinError\n"
        "from klein_cli.snapshot import resolve\n"
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
        env={
            **os.environ,
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            **environment,
        },
    )
    answer: dict[str, str] = json.loads(ran.stdout.splitlines()[-1])
    return answer


def test_only_the_files_needed_are_downloaded(
    hub: tuple[str, type[Hub]], small_snapshot: Path, tmp_path: Path
) -> None:
    endpoint, handler = hub
    found = ask("nobody/model", endpoint, tmp_path)
    assert found["revision"] == COMMIT
    assert (found["name"], found["steps"]) == ("nobody/model", 4)
    root = Path(found["root"])
    here = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    there = {
        str(path.relative_to(small_snapshot))
        for path in small_snapshot.rglob("*")
        if path.is_file()
    }
    assert here == there
    assert not any(path.endswith(("4b.safetensors", ".bin", ".pt")) for path in handler.asked)
    offline = ask("nobody/model", "http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1")
    assert offline == found


@pytest.mark.parametrize(
    ("model", "what", "todo"),
    [
        ("nobody/private", "is not on the hub, or is private", "hf auth login"),
        ("nobody/gated", "asks for its terms to be accepted", "accept them at"),
    ],
)
def test_a_repository_that_is_not_to_be_had(
    hub: tuple[str, type[Hub]], tmp_path: Path, model: str, what: str, todo: str
) -> None:
    found = ask(model, hub[0], tmp_path)
    assert found["message"] == f"{model} {what}"
    assert todo in found["hint"]
    assert f"https://huggingface.co/{model}" in found["hint"]
    assert "--model tiny" in found["hint"]


@pytest.mark.parametrize("model", ["nobody/model", "klein-4b"])
def test_without_a_network_the_page_and_tiny_are_offered(tmp_path: Path, model: str) -> None:
    found = ask(model, "http://127.0.0.1:9", tmp_path)
    assert "the hub cannot be reached" in found["message"]
    assert "https://huggingface.co/" in found["hint"]
    assert "--model tiny" in found["hint"]
