"""Token ids -> text embeddings: Qwen3's tapped hidden states, side by side."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from klein_cli.checkpoints.load import init_on_meta
from klein_cli.checkpoints.source import Checkpoint, config_of
from klein_cli.device.device import Device
from klein_cli.models.attention import AttentionLengths, attention_backend
from klein_cli.models.qwen3 import Qwen3Config, Qwen3Model
from klein_cli.optimize.graphs import direct
from klein_cli.optimize.part import Part, Target
from klein_cli.text.tokenizer import TokenizedPrompt

_PREFIX = "model."
_LAYER = re.compile(r"model\.layers\.(\d+)\..+")
_NEVER_READ = ("model.norm.weight", "lm_head.weight")


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """A batch of prompts. `ids` (B, 512) int64 on the host; `lengths`: valid tokens a row."""

    ids: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, prompts: Sequence[TokenizedPrompt]) -> PromptTokens:
        """The batch of some tokenized prompts, in their order."""
        ids = torch.tensor([prompt.ids for prompt in prompts], dtype=torch.int64)
        return cls(ids, tuple(prompt.length for prompt in prompts))

    def each(self) -> Iterator[PromptTokens]:
        """Every prompt in a batch of its own."""
        for ids, length in zip(torch.split(self.ids, 1), self.lengths, strict=True):
            yield PromptTokens(ids, (length,))


class TextEncoder:
    """The text encoder of one model; the weights of its `part` may still be coming.

    `vocabulary` is the number of tokens that it knows, `channels` the width of its embeddings.
    """

    def __init__(
        self,
        part: Part[Qwen3Model],
        config: Qwen3Config,
        tapped_layers: Sequence[int],
        device: Device,
    ) -> None:
        self.part = part
        self.vocabulary = config.vocab_size
        self.channels = len(tapped_layers) * config.hidden_size
        self._device = device

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        tapped_layers: Sequence[int],
        target: Target,
        *,
        attention: str,
    ) -> TextEncoder:
        """The encoder, up to its last tapped layer.

        Raises ModelError when it is not the Qwen3 that it should be, UsageError when the
        attention cannot run on the device.
        """
        config = Qwen3Config.from_json(config_of(checkpoint, "architectures", "Qwen3ForCausalLM"))
        attend = attention_backend(attention, target.device.torch_device, target.dtype)
        with init_on_meta():
            model = Qwen3Model(config, tapped_layers, attend, target.backend.qwen3)

        def skip(name: str) -> bool:
            layer = _LAYER.fullmatch(name)
            if layer is None:
                return name in _NEVER_READ
            return len(model.layers) <= int(layer[1]) < config.num_hidden_layers

        part = Part.load(
            "text_encoder",
            model,
            checkpoint,
            target,
            # A graph cannot follow lengths that the host knows.
            run=None if attend.static else direct,
            prefix=_PREFIX,
            skip=skip,
        )
        return cls(part, config, tapped_layers, target.device)

    def encode(self, tokens: PromptTokens) -> Tensor:
        """(B, 512, taps * hidden) embeddings, on the device in the model's dtype, tap after tap.

        All 512 positions count: the DiT reads the padded ones too, without a mask. Where images are
        computed one by one, each row is bitwise what it would be alone.
        """
        batches = tokens.each() if self._device.one_by_one else [tokens]
        with self.part.ready() as model:
            return torch.cat([self._encoded(model, batch) for batch in batches])

    def _encoded(self, model: Qwen3Model, tokens: PromptTokens) -> Tensor:
        device, positions = self._device.torch_device, tokens.ids.shape[1]
        ids, lengths = tokens.ids.to(device), AttentionLengths.of(tokens.lengths, positions, device)
        if self.part.run is direct:
            return model.embeddings(ids, lengths)
        return self.part.run(model.embeddings_by_counts, ids, lengths.counts)
