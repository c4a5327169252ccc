"""Embeddings against diffusers' own prompt encoding, and what is left unread."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from klein_cli.checkpoints.folder import FolderCheckpoint
from klein_cli.device.device import device_for
from klein_cli.errors import ModelError
from klein_cli.optimize.part import Target
from klein_cli.text.encoder import PromptTokens, TextEncoder
from klein_cli.text.tokenizer import PromptTokenizer

PROMPTS = ["a cat", "a much longer prompt about a lighthouse in a storm " * 5, ""]
TAPS = (9, 18, 27)


def load(root: Path) -> TextEncoder:
    target = Target(device=device_for("cpu"), dtype=torch.float32)
    return TextEncoder.load(FolderCheckpoint(root / "text_encoder"), TAPS, target, attention="sdpa")


def tokens(root: Path) -> PromptTokens:
    tokenizer = PromptTokenizer.from_snapshot(root)
    return PromptTokens.of([tokenizer.tokenize(prompt) for prompt in PROMPTS])


def test_all_512_rows_are_diffusers(small_snapshot: Path) -> None:
    from diffusers import Flux2KleinPipeline
    from transformers import AutoTokenizer, Qwen3ForCausalLM

    reference = Qwen3ForCausalLM.from_pretrained(small_snapshot / "text_encoder")
    with torch.no_grad():
        wanted = Flux2KleinPipeline._get_qwen3_prompt_embeds(
            reference, AutoTokenizer.from_pretrained(small_snapshot / "tokenizer"), PROMPTS
        )
    encoder = load(small_snapshot)
    with torch.no_grad():
        found = encoder.encode(tokens(small_snapshot))
    assert found.shape == wanted.shape == (3, 512, encoder.channels)
    assert ((found - wanted).norm(dim=-1) / wanted.norm(dim=-1)).max() < 1e-6


def test_lengths_travel_with_the_ids(small_snapshot: Path) -> None:
    batch = tokens(small_snapshot)
    assert batch.ids.shape == (3, 512)
    assert batch.ids.dtype == torch.int64
    assert batch.lengths[2] < batch.lengths[0] < batch.lengths[1] < 512


def test_unread_tensors_are_listed(small_snapshot: Path) -> None:
    skipped = load(small_snapshot).part.skipped
    assert "model.norm.weight" in skipped
    assert {name.split(".")[2] for name in skipped if ".layers." in name} == {"27", "28", "29"}
    assert "lm_head.weight" not in skipped  # tied: the file holds none


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "not Qwen3ForCausalLM"),
        ({"architectures": None}, "not Qwen3ForCausalLM"),
        ({"num_hidden_layers": 27}, "hidden state 27"),
        ({"num_hidden_layers": 28}, r"model\.layers\.2[89]\..* no place"),
        ({"hidden_size": 48}, "has shape"),
        ({"vocab_size": 9}, "model.embed_tokens.weight has shape"),
    ],
)
def test_another_text_encoder_is_refused(
    small_snapshot: Path, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    shutil.copytree(small_snapshot / "text_encoder", tmp_path / "text_encoder")
    path = tmp_path / "text_encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ModelError, match=words):
        load(tmp_path)
