"""The models on this disk, as klein doctor sees them: quickly by their headers, or byte by byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_hub import COMMIT, REPO, files_in, fill_cache

import klein_cli.check.installed_models as holdings
from klein_cli.check.finding import BAD, NOTE, OK, Finding
from klein_cli.check.golden import Golden

VAE = "vae/diffusion_pytorch_model.safetensors"
CONFIG = "vae/config.json"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


@pytest.fixture
def root(home: Path, small_snapshot: Path) -> Path:
    """A model in the cache, whole."""
    return fill_cache(home, REPO, files_in(small_snapshot))


def look(model: str | None = None, *, deep: bool = False) -> list[Finding]:
    return list(holdings.look_at_models(model, deep=deep, on_event=lambda _: None))


def test_with_nothing_here_the_next_step_is_named(home: Path) -> None:
    (finding,) = look()
    assert finding.state == NOTE
    assert finding.hint == "klein models pull klein-4b"


def test_a_model_that_is_whole(root: Path) -> None:
    (finding,) = look()
    assert (finding.name, finding.state) == (REPO, OK)
    assert finding.data["revision"] == COMMIT
    (deep,) = look(deep=True)
    files = sum(path.is_file() for path in root.rglob("*"))
    assert f"{files} files hashed" in deep.said


@pytest.mark.parametrize("path", [VAE, CONFIG])
def test_a_flipped_bit_shows_deep_down_only(root: Path, path: str) -> None:
    blob = (root / path).resolve()
    data = bytearray(blob.read_bytes())
    if path == CONFIG:
        data[data.index(b" ")] = ord("\t")
    else:
        data[-3] ^= 1
    blob.write_bytes(data)
    assert look()[0].state == OK
    (finding,) = look(deep=True)
    assert finding.state == BAD
    assert finding.said == f"{path} is damaged: its hash is wrong"
    assert finding.hint == f"klein models pull {REPO}"


def test_a_file_that_was_cut_short_shows_at_once(root: Path) -> None:
    with (root / VAE).resolve().open("r+b") as file:
        file.truncate(1000)
    (root / CONFIG).unlink()
    (finding,) = look()
    assert finding.state == BAD
    assert "and 1 more faults" in finding.said


@pytest.mark.parametrize("path", ["model_index.json", CONFIG])
def test_json_too_deep_to_read_is_no_fault_of_kleins(root: Path, path: str) -> None:
    """The cache is shared. klein was to be installed again, for a file of somebody else's."""
    (root / path).resolve().write_bytes(b"[" * 200_000)
    for finding in look():
        assert "install" not in finding.hint
        assert "could not be looked at" not in finding.said
    (finding,) = look(REPO)
    assert finding.state == BAD
    assert finding.said.startswith(f"{path} cannot be read")
    assert finding.hint == f"klein models pull {REPO}"


def test_a_download_that_broke_off_is_told(home: Path) -> None:
    part = home / "hub" / "models--black-forest-labs--FLUX.2-klein-4B" / "blobs" / "a.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x")
    (finding,) = look()
    assert (finding.name, finding.state) == ("klein-4b", BAD)
    assert "broke off" in finding.said


def test_a_file_shared_between_repositories_is_hashed_by_its_own_name(root: Path) -> None:
    """The client can keep one copy for several, under a name that is no hash of the file."""
    blob = (root / VAE).resolve()
    shared = blob.parents[2] / "shared" / ("b" * 64)
    shared.parent.mkdir()
    blob.rename(shared)
    blob.symlink_to(shared)
    (finding,) = look(deep=True)
    assert finding.state == OK, finding.said


def test_a_folder_can_be_looked_at(home: Path, small_snapshot: Path) -> None:
    (finding,) = look(str(small_snapshot), deep=True)
    assert finding.state == OK
    assert "no hashes are known" in finding.said


@pytest.mark.parametrize(
    ("model", "words"), [("klein-4b", "not here"), ("no-such", "there is no model called")]
)
def test_a_model_that_is_not_here_was_asked_for(home: Path, model: str, words: str) -> None:
    (finding,) = look(model)
    assert finding.state == BAD
    assert words in finding.said


def test_the_embedded_model_must_be_the_one_that_came(monkeypatch: pytest.MonkeyPatch) -> None:
    found = holdings.weights_digest(holdings.resolve("tiny").root)
    import numpy

    for weights, state in ((found, OK), ("another", BAD)):
        golden = Golden(numpy.zeros((1, 1, 3), dtype=numpy.uint8), weights)
        monkeypatch.setattr(holdings, "read_golden", lambda golden=golden: golden)
        assert holdings.look_at_embedded().state == state
