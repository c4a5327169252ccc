"""Token ids -> text embeddings: Qwen3's tapped hidden states, side by side."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from klein_cli.checkpoints.load import Loading, load_weights, part_config, without_memory
from klein_cli.checkpoints.reader import Reader
from klein_cli.models.attention import (
    AttentionLengths,
    MaskAlone,
    MaskedCausalAttention,
    Masking,
    attention_backend,
)
from klein_cli.models.qwen3 import Qwen3Config, Qwen3Model
from klein_cli.optimize.backend import PLAIN, Tools
from klein_cli.optimize.graphs import direct
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


@dataclass(frozen=True, slots=True)
class TextEmbeddings:
    """`states` (B, 512, taps * hidden), on the device in the model's dtype, layer after layer.

    All 512 positions count: the DiT reads the padded ones too, without a mask.
    """

    states: Tensor


class TextEncoder:
    """The text encoder of one snapshot. `loading` are its weights, which may still be coming."""

    def __init__(
        self,
        model: Qwen3Model,
        attend: MaskedCausalAttention,
        device: torch.device,
        loading: Loading,
        tools: Tools = PLAIN,
    ) -> None:
        self.model = model
        self.loading = loading
        self._device = device
        # A graph cannot follow lengths that the host knows.
        self._run = tools.run if attend.static else direct

    @classmethod
    def from_snapshot(
        cls,
        root: Path,
        tapped_layers: Sequence[int],
        *,
        attention: str,
        device: torch.device,
        dtype: torch.dtype,
        tools: Tools = PLAIN,
        reader: Reader | None = None,
    ) -> TextEncoder:
        """The encoder in `root`/text_encoder, up to its last tapped layer.

        Raises ModelError when it is not the Qwen3 that it should be, UsageError when the
        attention cannot run on the device.
        """
        folder = root / "text_encoder"
        table = part_config(folder, "architectures", "Qwen3ForCausalLM")
        config = Qwen3Config.from_json(table)
        attend = attention_backend(attention, device, dtype)
        with without_memory():
            model = Qwen3Model(config, tapped_layers, attend, tools.qwen3)

        def unread(name: str) -> bool:
            layer = _LAYER.fullmatch(name)
            if layer is None:
                return name in _NEVER_READ
            return len(model.layers) <= int(layer[1]) < config.num_hidden_layers

        loading = load_weights(
            model,
            folder,
            device=device,
            dtype=dtype,
            prefix=_PREFIX,
            unread=unread,
            reader=reader,
            then=tools.prepare,
        )
        return cls(model, attend, device, loading, tools)

    @property
    def skipped(self) -> tuple[str, ...]:
        """The tensors of the snapshot that are not read."""
        return self.loading.skipped

    @property
    def channels(self) -> int:
        """The width of the embeddings: taps * hidden."""
        return len(self.model.tapped_layers) * self.model.config.hidden_size

    def encode(self, tokens: PromptTokens) -> TextEmbeddings:
        """The embeddings of a batch; on the CPU each row is bitwise what it would be alone, since
        there it is encoded alone: see `klein_cli.engines.engine.picture_by_picture`.
        """
        self.loading.wait()
        if self._device.type == "cpu":
            return TextEmbeddings(torch.cat([self._encoded(one) for one in tokens.each()]))
        return TextEmbeddings(self._encoded(tokens))

    def _encoded(self, tokens: PromptTokens) -> Tensor:
        lengths = AttentionLengths(tokens.lengths, tokens.ids.shape[1], self._device)
        ids = tokens.ids.to(self._device)
        if self._run is direct:
            return self._states(ids, lengths)
        return self._run(self._masked_states, ids, lengths.mask)

    def _states(self, ids: Tensor, masking: Masking) -> Tensor:
        return torch.cat(self.model(ids, masking), dim=-1)

    def _masked_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self._states(ids, MaskAlone(mask))
