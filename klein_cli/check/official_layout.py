"""A model with files in place of its parts -> a folder that diffusers can read.

klein unpacks the files, so that what is compared with diffusers is what klein computes with them.
How they are unpacked is for the tests, which hold it to the libraries that the kinds come from.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from klein_cli.checkpoints.folder import INDEX_FILE, free_space
from klein_cli.checkpoints.load import read_tensors
from klein_cli.checkpoints.resolve import PIPELINE_CLASS, Snapshot
from klein_cli.checkpoints.source import PARTS
from klein_cli.errors import ModelError
from klein_cli.text.qwen3 import qwen3_tokenizer
from klein_cli.text.tokenizer import AFTER_PROMPT, PAD_TOKEN

_STEMS = {"text_encoder": "model"}
_CLASSES = {
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen3ForCausalLM"],
    "tokenizer": ["transformers", "Qwen2TokenizerFast"],
    "transformer": ["diffusers", "Flux2Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKLFlux2"],
}
_TEMPLATE = (
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content }}"
    "{%- endfor %}{{ " + repr(AFTER_PROMPT) + " }}"
)


@contextmanager
def official_layout(
    snapshot: Snapshot, dtype: torch.dtype, on_event: Callable[[str], None]
) -> Iterator[Path]:
    """The model's folder; where files are given, a temporary one that is gone at the end.

    It holds them in `dtype`. Raises ModelError when the disk has no room for it.
    """
    if not snapshot.given:
        yield snapshot.root
        return
    with tempfile.TemporaryDirectory(prefix="klein-verify-") as name:
        root = Path(name)
        try:
            for part in PARTS:
                if part in snapshot.given:
                    on_event(f"unpacking the {part.replace('_', ' ')} for diffusers")
                    _write(snapshot, part, dtype, root / part)
                else:
                    (root / part).symlink_to((snapshot.root / part).resolve())
            _write_the_rest(snapshot, root)
        except (OSError, SafetensorError) as error:
            free = f"{free_space(root) / 1e9:.1f} GB are free"
            raise ModelError(
                f"{root} cannot hold the unpacked model: {error}",
                f"{free} there; set TMPDIR to a folder with room",
            ) from None
        yield root


def _write(snapshot: Snapshot, part: str, dtype: torch.dtype, folder: Path) -> None:
    folder.mkdir()
    checkpoint = snapshot.part(part)
    stem = _STEMS.get(part, "diffusion_pytorch_model")
    tensors = dict(read_tensors(checkpoint, dtype))
    save_file(tensors, folder / f"{stem}.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(checkpoint.config()), encoding="utf-8")


def _write_the_rest(snapshot: Snapshot, root: Path) -> None:
    own = snapshot.root
    if (own / "scheduler").is_dir():
        shutil.copytree(own / "scheduler", root / "scheduler")
    else:
        from diffusers import FlowMatchEulerDiscreteScheduler

        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
        scheduler.save_config(root / "scheduler")
    if snapshot.tokenizer is not None:
        (root / "tokenizer").symlink_to(snapshot.tokenizer.resolve())
    else:
        from transformers import PreTrainedTokenizerFast

        make: Any = PreTrainedTokenizerFast
        whole = make(tokenizer_object=qwen3_tokenizer(), pad_token=PAD_TOKEN)
        whole.chat_template = _TEMPLATE
        whole.save_pretrained(root / "tokenizer")
    index = {"_class_name": PIPELINE_CLASS, "is_distilled": snapshot.preset.distilled, **_CLASSES}
    (root / INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")
