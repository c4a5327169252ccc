"""The Qwen3 text encoder in plain torch: token ids -> the hidden states that the DiT reads.

Parameter names are those of the official checkpoint below its `model.` prefix. Only the layers up
to the last tapped one exist: the final norm, the later layers and the language-model head play no
part in the embeddings. Numerics follow transformers' Qwen3, rounding for rounding. What lies
between the matrix products is done by `Qwen3Ops`, at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from klein_cli.errors import ModelError
from klein_cli.models.attention import AttentionLengths, MaskedCausalAttention
from klein_cli.models.config import read_sizes, refuse_variants
from klein_cli.models.layers import ParallelLinears, split_heads


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen3Config:
    """The sizes of a Qwen3, from its config.json. `rope_theta` is the base of the rotary angles."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float

    @classmethod
    def from_json(cls, table: dict[str, Any]) -> Qwen3Config:
        """The sizes in a parsed config.json, as written by transformers 4 or 5.

        Raises ModelError for a missing entry, or for a variant this encoder does not compute.
        """
        rope = table.get("rope_parameters") or table.get("rope_scaling") or {}
        if not isinstance(rope, dict):
            raise ModelError(
                "the text encoder's config.json does not describe its rotary angles",
                "download it again",
            )
        refuse_variants(
            "the text encoder",
            {
                "hidden_act": (table.get("hidden_act", "silu"), "silu"),
                "attention_bias": (table.get("attention_bias", False), False),
                "use_sliding_window": (table.get("use_sliding_window", False), False),
                "rope_type": (rope.get("rope_type", rope.get("type", "default")), "default"),
            },
            "this is not the Qwen3 that FLUX.2 [klein] was trained with",
        )
        theta = rope.get("rope_theta", table.get("rope_theta"))
        return read_sizes(cls, "the text encoder", {**table, "rope_theta": theta})


class Qwen3RMSNorm(nn.Module):
    """x / rms(x) in float32, rounded to the input's dtype, then scaled."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Qwen3MLP(nn.Module):
    """The gated feed-forward layer: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: Qwen3Config, ops: Qwen3Ops) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.ops = ops
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)
        self.gate_and_up = ParallelLinears(self.gate_proj, self.up_proj)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.ops.swiglu(*self.gate_and_up(x)))
        return out


class Qwen3Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys and rotary positions.

    `attention_lengths` says how many leading positions of each row are the prompt; the backend
    masks by it, in every layer.
    """

    def __init__(self, config: Qwen3Config, attend: MaskedCausalAttention, ops: Qwen3Ops) -> None:
        super().__init__()
        hidden, size = config.hidden_size, config.head_dim
        queries, keys = config.num_attention_heads * size, config.num_key_value_heads * size
        self.head_dim = size
        self.q_proj = nn.Linear(hidden, queries, bias=False)
        self.k_proj = nn.Linear(hidden, keys, bias=False)
        self.v_proj = nn.Linear(hidden, keys, bias=False)
        self.o_proj = nn.Linear(queries, hidden, bias=False)
        self.q_norm = Qwen3RMSNorm(size, config.rms_norm_eps)
        self.k_norm = Qwen3RMSNorm(size, config.rms_norm_eps)
        self.qkv = ParallelLinears(self.q_proj, self.k_proj, self.v_proj)
        self.attend = attend
        self.ops = ops

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], attention_lengths: AttentionLengths
    ) -> Tensor:
        query, key, value = self.qkv(x)
        query, key = self.ops.qk_norm_rope(query, key, self.q_norm, self.k_norm, rotary)
        value = split_heads(value, self.head_dim)
        out: Tensor = self.o_proj(self.attend(query, key, value, attention_lengths).flatten(2))
        return out


class Qwen3DecoderLayer(nn.Module):
    """Attention, then the feed-forward layer, each normalised before and added back after."""

    def __init__(self, config: Qwen3Config, attend: MaskedCausalAttention, ops: Qwen3Ops) -> None:
        super().__init__()
        self.ops = ops
        self.self_attn = Qwen3Attention(config, attend, ops)
        self.mlp = Qwen3MLP(config, ops)
        self.input_layernorm = Qwen3RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = Qwen3RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], attention_lengths: AttentionLengths
    ) -> Tensor:
        seen = self.ops.normalise(x, self.input_layernorm)
        x = x + self.self_attn(seen, rotary, attention_lengths)
        out: Tensor = x + self.mlp(self.ops.normalise(x, self.post_attention_layernorm))
        return out


class Qwen3Model(nn.Module):
    """Qwen3 up to its last tapped layer.

    `tapped_layers` count hidden states: 0 is the token embedding, k the output of layer k - 1,
    before any final norm. Raises ModelError when the last tap lies beyond the last layer's input,
    where transformers would hand out a normalised state.
    """

    def __init__(
        self,
        config: Qwen3Config,
        tapped_layers: Sequence[int],
        attend: MaskedCausalAttention,
        ops: Qwen3Ops | None = None,
    ) -> None:
        super().__init__()
        ops = ops or Qwen3Ops()
        depth = max(tapped_layers)
        if depth >= config.num_hidden_layers:
            raise ModelError(
                f"hidden state {depth} is needed, and the text encoder has "
                f"{config.num_hidden_layers} layers",
                "this is not the text encoder that the model was trained with",
            )
        self.config = config
        self.tapped_layers = tuple(tapped_layers)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Qwen3DecoderLayer(config, attend, ops) for _ in range(depth))
        self._rotary: dict[tuple[int, torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    @property
    def head_size(self) -> int:
        """Channels of an attention head."""
        return self.config.head_dim

    def forward(self, input_ids: Tensor, attention_lengths: AttentionLengths) -> tuple[Tensor, ...]:
        """input_ids (B, S) int64 -> one (B, S, hidden_size) hidden state a tap, in tap order."""
        x: Tensor = self.embed_tokens(input_ids)
        rotary = self._rotary_of(input_ids.shape[1], x.device, x.dtype)
        states = {0: x}
        for depth, layer in enumerate(self.layers, start=1):
            x = layer(x, rotary, attention_lengths)
            if depth in self.tapped_layers:
                states[depth] = x
        return tuple(states[depth] for depth in self.tapped_layers)

    def embeddings(self, input_ids: Tensor, attention_lengths: AttentionLengths) -> Tensor:
        """(B, S, taps * hidden_size): the hidden states side by side, in tap order."""
        return torch.cat(self(input_ids, attention_lengths), dim=-1)

    def embeddings_by_counts(self, input_ids: Tensor, counts: Tensor) -> Tensor:
        """`embeddings`, of tensors alone: counts (B,) int64 are the valid lengths."""
        return self.embeddings(input_ids, AttentionLengths(counts, input_ids.shape[1]))

    def _rotary_of(
        self, positions: int, device: torch.device, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """The rotary embedding, made once: it comes from the host, which no CUDA graph can ask."""
        kind = (positions, device, dtype)
        if kind not in self._rotary:
            self._rotary[kind] = rotary_embedding(self.config, *kind)
        return self._rotary[kind]


class Qwen3Ops:
    """What lies between the matrix products. `klein_cli.optimize` has the same in fewer passes."""

    def normalise(self, x: Tensor, norm: Qwen3RMSNorm) -> Tensor:
        """(B, S, hidden), normalised."""
        out: Tensor = norm(x)
        return out

    def qk_norm_rope(
        self,
        query: Tensor,
        key: Tensor,
        norm_query: Qwen3RMSNorm,
        norm_key: Qwen3RMSNorm,
        rotary: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Both (B, S, heads * head_dim) -> (B, S, heads, head_dim), normalised and turned."""
        size = norm_query.weight.numel()
        query, key = norm_query(split_heads(query, size)), norm_key(split_heads(key, size))
        return apply_rotary(query, rotary), apply_rotary(key, rotary)

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        """silu(gate) * up."""
        return F.silu(gate) * up


def rotary_embedding(
    config: Qwen3Config, positions: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (positions, 1, head_dim) of the rotary angles, taken in float32.

    Frequencies and angles are taken on the CPU, as the official code takes its frequencies: on
    another device a power may round otherwise, which at position 511 counts 511 times. They are
    never in a buffer: a buffer would be rounded by a cast of the module (up to .3 relative error in
    bfloat16), or left on the meta device.
    """
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32)
    frequency = 1.0 / config.rope_theta ** (exponent / config.head_dim)
    angle = torch.arange(positions, dtype=torch.float32)[:, None] * frequency
    angle = torch.cat((angle, angle), dim=-1)[:, None].to(device)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def apply_rotary(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate (B, S, heads, head_dim): channel c pairs with channel c + head_dim / 2."""
    cosine, sine = rotary
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-second, first), dim=-1) * sine
