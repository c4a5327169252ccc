"""The one mask of the text encoder, and the backends that compute it.

Prompts are padded on the right. With valid length L, query i may attend to key j iff

    j <= i  and  j < L

so a valid row is plain causal, and a padded row attends to all valid keys, to no pad and not to
itself. The DiT reads the padded rows too: an implementation that is right on valid rows alone is
wrong. Every backend honours the lengths or refuses; none ignores them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from itertools import accumulate
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from klein_cli.errors import UsageError


@dataclass(frozen=True)
class AttentionLengths:
    """The valid lengths of one padded batch, and what backends derive from them once a batch.

    `counts` (B,) int64 on the device; `positions` is the padded sequence length. `lengths` are the
    same counts on the host, so that nothing waits for the device; None inside a CUDA graph, where
    nobody may ask for them.
    """

    counts: Tensor
    positions: int
    lengths: tuple[int, ...] | None = None

    @classmethod
    def of(cls, lengths: Sequence[int], positions: int, device: torch.device) -> AttentionLengths:
        """The lengths of a batch: token counts, one a row, each from 1 to `positions`."""
        if not lengths or not all(1 <= n <= positions for n in lengths):
            raise ValueError(f"lengths {lengths} do not fit {positions} positions")
        counts = torch.tensor(lengths).to(device, non_blocking=True)
        return cls(counts, positions, tuple(lengths))

    @cached_property
    def mask(self) -> Tensor:
        """(B, 1, positions, positions) bool, True where a query may attend to a key."""
        place = torch.arange(self.positions, device=self.counts.device)
        causal = place[None, :] <= place[:, None]
        valid = place[None, :] < self.counts[:, None]
        return (causal & valid[:, None, :])[:, None]

    @cached_property
    def packed(self) -> PackedRows:
        """The same batch as two sets of packed sequences, for variable-length kernels."""
        lengths, device = self.lengths, self.counts.device
        assert lengths is not None
        place = torch.arange(len(lengths) * self.positions).view(-1, self.positions)
        valid = place % self.positions < torch.tensor(lengths)[:, None]
        pads = [self.positions - n for n in lengths]
        return PackedRows(
            valid_rows=place[valid].to(device),
            padded_rows=place[~valid].to(device),
            valid_starts=_starts(lengths).to(device),
            padded_starts=_starts(pads).to(device),
            longest_valid=max(lengths),
            longest_padding=max(pads),
        )


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Where each prompt's valid and padded rows lie once (B, positions) is flattened.

    `valid_rows`, `padded_rows`: int64 indices into the flattened rows. `valid_starts`,
    `padded_starts`: (B + 1,) int32, the running totals that variable-length kernels call
    cu_seqlens.
    """

    valid_rows: Tensor
    padded_rows: Tensor
    valid_starts: Tensor
    padded_starts: Tensor
    longest_valid: int
    longest_padding: int


class MaskedCausalAttention(Protocol):
    """Attention under the mask of this module.

    query (B, S, heads, head_dim), key and value (B, S, key_value_heads, head_dim), where
    key_value_heads divides heads; the result has the query's shape and dtype. A `static` backend
    does the same work whatever the lengths, and needs them on the device alone.
    """

    name: str
    static: bool

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, attention_lengths: AttentionLengths
    ) -> Tensor: ...


class EagerAttention:
    """The mask written out, softmax in float32: slow, readable, the reference."""

    name = "eager"
    static = True

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, attention_lengths: AttentionLengths
    ) -> Tensor:
        query, key, value = _heads_first(query, key, value)
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        scores = scores.masked_fill(~attention_lengths.mask, float("-inf"))
        weights = scores.softmax(-1, dtype=_at_least_float32(scores.dtype)).to(value.dtype)
        out: Tensor = weights @ value
        return out.transpose(1, 2)


class SdpaAttention:
    """torch's scaled_dot_product_attention with the boolean mask, the same for every length."""

    name = "sdpa"
    static = True

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, attention_lengths: AttentionLengths
    ) -> Tensor:
        query, key, value = _heads_first(query, key, value)
        mask = attention_lengths.mask
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


class FlashAttention:
    """flash-attn, two variable-length calls for the whole batch.

    Its own causal mask is aligned to the bottom right when queries and keys differ in number, so
    one call cannot make this mask: valid rows go causally over the valid keys, padded rows
    without a mask over the same keys.
    """

    name = "flash-attn"
    static = False

    def __init__(self) -> None:
        from flash_attn import flash_attn_varlen_func

        self._varlen = flash_attn_varlen_func

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, attention_lengths: AttentionLengths
    ) -> Tensor:
        rows = attention_lengths.packed
        flat_query = query.flatten(0, 1)
        keys = key.flatten(0, 1)[rows.valid_rows]
        values = value.flatten(0, 1)[rows.valid_rows]
        out = torch.empty_like(flat_query)
        out[rows.valid_rows] = self._varlen(
            flat_query[rows.valid_rows],
            keys,
            values,
            rows.valid_starts,
            rows.valid_starts,
            rows.longest_valid,
            rows.longest_valid,
            causal=True,
        )
        if rows.longest_padding:
            out[rows.padded_rows] = self._varlen(
                flat_query[rows.padded_rows],
                keys,
                values,
                rows.padded_starts,
                rows.valid_starts,
                rows.longest_padding,
                rows.longest_valid,
                causal=False,
            )
        return out.view_as(query)


def attention_backend(name: str, device: torch.device, dtype: torch.dtype) -> MaskedCausalAttention:
    """The backend called `name` ("eager", "sdpa" or "flash-attn").

    Raises UsageError when it cannot compute the mask on this device, in this dtype or in this
    installation.
    """
    if name == "eager":
        return EagerAttention()
    if name == "sdpa":
        return SdpaAttention()
    if name != "flash-attn":
        raise UsageError(f"there is no attention called {name!r}", "use sdpa, flash-attn or eager")
    if device.type != "cuda":
        raise UsageError("flash-attn runs on CUDA only", "use --attention sdpa")
    if dtype not in (torch.float16, torch.bfloat16):
        raise UsageError(
            f"flash-attn cannot compute in {str(dtype).removeprefix('torch.')}",
            "use --dtype bfloat16, or --attention sdpa",
        )
    if find_spec("flash_attn") is None:
        raise UsageError(
            "flash-attn is not installed",
            'install the extra "flash-attn" of klein-cli, or use --attention sdpa',
        )
    try:
        return FlashAttention()
    except ImportError as error:
        raise UsageError(
            f"flash-attn is installed but cannot be loaded: {error}",
            "install a build of it for this torch, or use --attention sdpa",
        ) from None


def _heads_first(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, S, heads, D) -> (B, heads, S, D), each key/value head repeated for its query heads."""
    groups = query.shape[2] // key.shape[2]
    key = key.repeat_interleave(groups, dim=2)
    value = value.repeat_interleave(groups, dim=2)
    return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _starts(counts: Sequence[int]) -> Tensor:
    return torch.tensor([0, *accumulate(counts)], dtype=torch.int32)
