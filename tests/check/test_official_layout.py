"""Files in place of parts, unpacked for diffusers: the same weights, and Qwen3's tokenizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_files import OTHER_NAMES, read_part, write

from klein_cli.check.official_layout import official_layout
from klein_cli.checkpoints.folder import problems
from klein_cli.checkpoints.resolve import Snapshot, resolve
from klein_cli.checkpoints.source import PARTS
from klein_cli.text.qwen3 import qwen3_tokenizer
from klein_cli.text.tokenizer import PromptTokenizer


@pytest.fixture
def snapshot(small_snapshot: Path, tmp_path: Path) -> Snapshot:
    """The small model with its parts in files."""
    parts = {
        part: str(write(tmp_path / part, OTHER_NAMES[part](read_part(small_snapshot / part))))
        for part in PARTS
    }
    return resolve(str(small_snapshot), parts=parts)


def test_the_folder_holds_what_the_files_hold(snapshot: Snapshot) -> None:
    with official_layout(snapshot, torch.float32, lambda event: None) as root:
        assert problems(root) == []
        for part in PARTS:
            found, wanted = read_part(root / part), read_part(snapshot.root / part)
            assert found.keys() == wanted.keys()
            assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert not root.exists()


def test_without_a_tokenizer_it_has_kleins(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    monkeypatch.setattr("klein_cli.checkpoints.resolve.VOCABULARY", 1)
    alone = replace(snapshot, root=tmp_path)
    assert alone.tokenizer is None
    with official_layout(alone, torch.float32, lambda event: None) as root:
        theirs = AutoTokenizer.from_pretrained(root / "tokenizer")
        text = theirs.apply_chat_template(
            [{"role": "user", "content": "a red  fox\n"}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
        found = PromptTokenizer(qwen3_tokenizer()).tokenize("a red  fox\n")
        assert theirs(text)["input_ids"] == list(found.ids[: found.length])


def test_a_model_without_files_is_its_own_folder(small_snapshot: Path) -> None:
    with official_layout(resolve(str(small_snapshot)), torch.float32, lambda event: None) as root:
        assert root == small_snapshot
