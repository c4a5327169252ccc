"""How far the text encoder's rows are from float32: ours beside transformers', as a table.

    python scripts/measure_encoder.py MODEL --device cuda

One batch of prompts of 12 to 512 tokens, on the weights of MODEL (a folder). Relative errors of
each row of the embeddings against our own float32 encoder, valid and padded rows apart. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from klein_cli.device.choose import full_precision
from klein_cli.errors import KleinError
from klein_cli.models.attention import attention_backend
from klein_cli.optimize.backend import at_work
from klein_cli.presets import TAPPED_LAYERS
from klein_cli.text.encoder import PromptTokens, TextEncoder
from klein_cli.text.tokenizer import POSITIONS

LENGTHS = (12, 20, 77, 300, 512)


def batch(vocabulary: int) -> PromptTokens:
    """Random tokens of each of LENGTHS, padded with one token throughout."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, vocabulary, (len(LENGTHS), POSITIONS), generator=generator)
    for row, length in zip(ids, LENGTHS, strict=True):
        row[length:] = 0
    return PromptTokens(ids, LENGTHS)


def ours(root: Path, attention: str, device: torch.device, dtype: torch.dtype) -> TextEncoder:
    """Our encoder on the weights in `root`."""
    return TextEncoder.from_snapshot(
        root, TAPPED_LAYERS, attention=attention, device=device, dtype=dtype
    )


def theirs(root: Path, tokens: PromptTokens, device: torch.device, dtype: torch.dtype) -> Tensor:
    """transformers' own embeddings (B, 512, channels), with its sdpa attention and the mask."""
    from transformers import Qwen3ForCausalLM

    loaded: Any = Qwen3ForCausalLM.from_pretrained(
        root / "text_encoder", dtype=dtype, attn_implementation="sdpa"
    )
    model = loaded.model.to(device).eval()
    mask = torch.arange(POSITIONS) < torch.tensor(tokens.lengths)[:, None]
    out = model(
        input_ids=tokens.ids.to(device),
        attention_mask=mask.long().to(device),
        output_hidden_states=True,
        use_cache=False,
    )
    return torch.cat([out.hidden_states[tap] for tap in TAPPED_LAYERS], -1)


def row_errors(states: Tensor, right: Tensor, lengths: tuple[int, ...]) -> dict[str, float]:
    """Median and worst relative error of the valid and of the padded rows."""
    errors = (states.float().cpu() - right).norm(dim=-1) / right.norm(dim=-1)
    valid = torch.arange(POSITIONS) < torch.tensor(lengths)[:, None]
    found = {}
    for name, rows in (("valid", errors[valid]), ("padded", errors[~valid])):
        found[f"{name} median"] = rows.median().item()
        found[f"{name} worst"] = rows.max().item()
    return found


def measure(root: Path, device: torch.device, dtypes: list[torch.dtype]) -> dict[str, Any]:
    """Each implementation's errors, by name; the reason in words where one cannot run."""
    found: dict[str, Any] = {}
    encoder = ours(root, "sdpa", device, torch.float32)
    tokens = batch(encoder.model.config.vocab_size)
    right = encoder.encode(tokens).states.float().cpu()
    del encoder
    for dtype in (torch.float32, *dtypes):
        kind = str(dtype).removeprefix("torch.")
        for attention in ("eager", "sdpa", "flash-attn"):
            if attention == "sdpa" and dtype == torch.float32:
                continue
            name = f"klein {attention} {kind}"
            try:
                attention_backend(attention, device, dtype)
            except KleinError as error:
                found[name] = error.message
                continue
            states = ours(root, attention, device, dtype).encode(tokens).states
            found[name] = row_errors(states, right, tokens.lengths)
        states = theirs(root, tokens, device, dtype)
        found[f"transformers sdpa {kind}"] = row_errors(states, right, tokens.lengths)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a folder in the diffusers layout")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtypes", nargs="*", default=["bfloat16"])
    args = parser.parse_args()
    device = torch.device(args.device)
    with torch.inference_mode(), full_precision(), at_work(device):
        found = measure(args.model, device, [getattr(torch, name) for name in args.dtypes])
    columns = ("valid median", "valid worst", "padded median", "padded worst")
    print("| encoder | " + " | ".join(columns) + " |")
    print("| --- |" + " --- |" * len(columns))
    for name, errors in found.items():
        cells = [errors] if isinstance(errors, str) else [f"{errors[c]:.1e}" for c in columns]
        print(f"| {name} | " + " | ".join(cells) + " |")
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    json.dump({"device": device_name, "lengths": LENGTHS, "errors": found}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
