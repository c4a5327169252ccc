"""What is given is not downloaded, and what is not given is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hub import REPO, FakeHub, environment, files_in, klein, serving
from model_files import OTHER_NAMES, read_part, write

from klein_cli.checkpoints import resolve as resolving
from klein_cli.checkpoints.source import PARTS


@pytest.fixture
def hub(small_snapshot: Path) -> Iterator[FakeHub]:
    with serving(files_in(small_snapshot)) as hub:
        yield hub


@pytest.mark.process
def test_a_part_that_is_given_is_not_fetched(
    hub: FakeHub, small_snapshot: Path, tmp_path: Path
) -> None:
    """8 of 16 GB, with the true model; and the second time nobody is asked."""
    env = environment(hub.address, tmp_path)
    given = []
    for part in ("transformer", "text_encoder"):
        tensors = OTHER_NAMES[part](read_part(small_snapshot / part))
        path = write(tmp_path / f"{part}.safetensors", tensors)
        given += [f"--{part.replace('_', '-')}", str(path)]
    line = ("generate", "a cat", "-m", REPO, *given, "--size", "64x64", "--steps", "1")
    more = ("--device", "cpu", "-s", "1", "-y", "-o", str(tmp_path / "a.png"))
    done = klein(*line, *more, env=env)
    assert done.returncode == 0, done.stderr
    fetched = {one.file for one in hub.bodies_asked() if one.file}
    assert {file.partition("/")[0] for file in fetched if "/" in file} & set(PARTS) == {"vae"}
    hub.asked.clear()
    assert klein(*line, *more, env=env).returncode == 0
    assert not hub.asked


def test_the_small_decoder_is_fetched_by_its_word(
    small_snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(repo: str, patterns: list[str], **more: Any) -> Path:
        asked.append((repo, patterns, more["needed"]))
        write(tmp_path / patterns[0], read_part(small_snapshot / "vae"))
        return tmp_path

    monkeypatch.setattr(resolving, "cached_file", lambda repo, path: None)
    monkeypatch.setattr(resolving, "download", download)
    found = resolving.resolve(str(small_snapshot), parts={"vae": "small"})
    (file,) = found.part("vae").files
    assert file == tmp_path / "full_encoder_small_decoder.safetensors"
    assert asked == [("black-forest-labs/FLUX.2-small-decoder", [file.name], file.name)]
