"""The FLUX.2 DiT in plain torch: noisy latents and text embeddings -> the velocity.

Text and image first run side by side (double blocks: own weights, joint attention), then as one
sequence (single blocks). The timestep acts through modulations that all blocks of a kind share.
Parameter names are those of the official checkpoint. Nothing here masks the text: the DiT reads
all its positions, the padded ones too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from klein_cli.models.config import read_sizes, refuse_variants

Rotary = tuple[Tensor, Tensor]
Modulation = tuple[Tensor, Tensor, Tensor]
"""Shift, scale and gate, each (1, 1, width)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flux2Config:
    """The sizes of a DiT, from its config.json; `rope_theta` is the base of the rotary angles."""

    in_channels: int
    num_layers: int
    num_single_layers: int
    attention_head_dim: int
    num_attention_heads: int
    joint_attention_dim: int
    timestep_guidance_channels: int
    mlp_ratio: float
    axes_dims_rope: tuple[int, ...]
    rope_theta: float
    eps: float

    @classmethod
    def from_json(cls, table: dict[str, Any]) -> Flux2Config:
        """The sizes in a parsed config.json.

        Raises ModelError for a missing entry, or for a variant that this DiT does not compute.
        """
        defaults = {"timestep_guidance_channels": 256, "mlp_ratio": 3.0, "eps": 1e-6}
        sizes = read_sizes(cls, "the transformer", {**defaults, **table})
        refuse_variants(
            "the transformer",
            {
                "guidance_embeds": (table.get("guidance_embeds", False), False),
                "patch_size": (table.get("patch_size", 1), 1),
                "out_channels": (
                    table.get("out_channels") or sizes.in_channels,
                    sizes.in_channels,
                ),
                "sum of axes_dims_rope": (sum(sizes.axes_dims_rope), sizes.attention_head_dim),
            },
            "this is not FLUX.2 [klein]; try --engine diffusers",
        )
        return sizes

    @property
    def width(self) -> int:
        """Channels of a token inside the blocks."""
        return self.num_attention_heads * self.attention_head_dim


class Flux2Transformer(nn.Module):
    """The DiT. No guidance embedding: klein has none."""

    def __init__(self, config: Flux2Config) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.time_guidance_embed = TimestepEmbedder(config.timestep_guidance_channels, width)
        self.double_stream_modulation_img = Modulator(width, sets=2)
        self.double_stream_modulation_txt = Modulator(width, sets=2)
        self.single_stream_modulation = Modulator(width, sets=1)
        self.x_embedder = nn.Linear(config.in_channels, width, bias=False)
        self.context_embedder = nn.Linear(config.joint_attention_dim, width, bias=False)
        self.transformer_blocks = nn.ModuleList(
            DoubleBlock(config) for _ in range(config.num_layers)
        )
        self.single_transformer_blocks = nn.ModuleList(
            SingleBlock(config) for _ in range(config.num_single_layers)
        )
        self.norm_out = OutputNorm(width, config.eps)
        self.proj_out = nn.Linear(width, config.in_channels, bias=False)

    def forward(self, latents: Tensor, timestep: Tensor, text: Tensor, ids: Tensor) -> Tensor:
        """The velocity (B, N, C) of latents (B, N, C), in their dtype.

        timestep (1,) from 1000 down to 0, in the latents' dtype; text (B, T, D); ids (T + N, 4)
        int64 positions (t, h, w, l), the text's before the latents'.
        """
        rotary = rotary_embedding(ids, self.config.axes_dims_rope, self.config.rope_theta)
        time = self.time_guidance_embed(timestep)
        image_mods = self.double_stream_modulation_img(time)
        text_mods = self.double_stream_modulation_txt(time)
        (single_mod,) = self.single_stream_modulation(time)

        image = self.x_embedder(latents)
        words = self.context_embedder(text)
        for block in self.transformer_blocks:
            image, words = block(image, words, image_mods, text_mods, rotary)
        x = torch.cat((words, image), dim=1)
        for block in self.single_transformer_blocks:
            x = block(x, single_mod, rotary)
        out: Tensor = self.proj_out(self.norm_out(x[:, text.shape[1] :], time))
        return out


class DoubleBlock(nn.Module):
    """Joint attention of text and image, each with its own projections and feed-forward."""

    def __init__(self, config: Flux2Config) -> None:
        super().__init__()
        self.eps = config.eps
        self.attn = JointAttention(config)
        self.ff = FeedForward(config.width, config.mlp_ratio)
        self.ff_context = FeedForward(config.width, config.mlp_ratio)

    def forward(
        self,
        image: Tensor,
        words: Tensor,
        image_mods: Sequence[Modulation],
        text_mods: Sequence[Modulation],
        rotary: Rotary,
    ) -> tuple[Tensor, Tensor]:
        seen, read = self.attn(
            modulate(image, image_mods[0], self.eps),
            modulate(words, text_mods[0], self.eps),
            rotary,
        )
        image = image + image_mods[0][2] * seen
        image = image + image_mods[1][2] * self.ff(modulate(image, image_mods[1], self.eps))
        words = words + text_mods[0][2] * read
        words = words + text_mods[1][2] * self.ff_context(modulate(words, text_mods[1], self.eps))
        return image, words


class JointAttention(nn.Module):
    """One attention over text and image tokens, projected by weights of their own."""

    def __init__(self, config: Flux2Config) -> None:
        super().__init__()
        width, size = config.width, config.attention_head_dim
        self.size = size
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)
        self.norm_q = nn.RMSNorm(size, eps=config.eps)
        self.norm_k = nn.RMSNorm(size, eps=config.eps)
        self.add_q_proj = nn.Linear(width, width, bias=False)
        self.add_k_proj = nn.Linear(width, width, bias=False)
        self.add_v_proj = nn.Linear(width, width, bias=False)
        self.norm_added_q = nn.RMSNorm(size, eps=config.eps)
        self.norm_added_k = nn.RMSNorm(size, eps=config.eps)
        self.to_out = nn.ModuleList([nn.Linear(width, width, bias=False)])
        self.to_add_out = nn.Linear(width, width, bias=False)

    def forward(self, image: Tensor, words: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """(image, words), each (B, tokens, width) -> the same, attended."""
        query = torch.cat(
            (
                self.norm_added_q(split_heads(self.add_q_proj(words), self.size)),
                self.norm_q(split_heads(self.to_q(image), self.size)),
            ),
            dim=1,
        )
        key = torch.cat(
            (
                self.norm_added_k(split_heads(self.add_k_proj(words), self.size)),
                self.norm_k(split_heads(self.to_k(image), self.size)),
            ),
            dim=1,
        )
        value = split_heads(torch.cat((self.add_v_proj(words), self.to_v(image)), 1), self.size)
        out = attend(apply_rotary(query, rotary), apply_rotary(key, rotary), value)
        length = words.shape[1]
        return self.to_out[0](out[:, length:]), self.to_add_out(out[:, :length])


class SingleBlock(nn.Module):
    """Attention and feed-forward in parallel over the one sequence, their projections fused."""

    def __init__(self, config: Flux2Config) -> None:
        super().__init__()
        self.eps = config.eps
        self.attn = ParallelAttention(config)

    def forward(self, x: Tensor, mod: Modulation, rotary: Rotary) -> Tensor:
        out: Tensor = x + mod[2] * self.attn(modulate(x, mod, self.eps), rotary)
        return out


class ParallelAttention(nn.Module):
    """One projection into queries, keys, values and feed-forward, one out of both results."""

    def __init__(self, config: Flux2Config) -> None:
        super().__init__()
        width, size = config.width, config.attention_head_dim
        inner = int(width * config.mlp_ratio)
        self.size = size
        self.split = (3 * width, 2 * inner)
        self.to_qkv_mlp_proj = nn.Linear(width, sum(self.split), bias=False)
        self.norm_q = nn.RMSNorm(size, eps=config.eps)
        self.norm_k = nn.RMSNorm(size, eps=config.eps)
        self.to_out = nn.Linear(width + inner, width, bias=False)

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        qkv, gated = self.to_qkv_mlp_proj(x).split(self.split, dim=-1)
        query, key, value = (split_heads(part, self.size) for part in qkv.chunk(3, dim=-1))
        query = apply_rotary(self.norm_q(query), rotary)
        key = apply_rotary(self.norm_k(key), rotary)
        out: Tensor = self.to_out(torch.cat((attend(query, key, value), swiglu(gated)), dim=-1))
        return out


class FeedForward(nn.Module):
    """linear_out(silu(a) * b), where linear_in makes a and b."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        inner = int(width * ratio)
        self.linear_in = nn.Linear(width, 2 * inner, bias=False)
        self.linear_out = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear_out(swiglu(self.linear_in(x)))
        return out


class TimestepEmbedder(nn.Module):
    """A timestep (1,) -> (1, width)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.channels = channels
        self.timestep_embedder = TimestepMLP(channels, width)

    def forward(self, timestep: Tensor) -> Tensor:
        waves = timestep_waves(timestep, self.channels).to(timestep.dtype)
        out: Tensor = self.timestep_embedder(waves)
        return out


class TimestepMLP(nn.Module):
    """linear_2(silu(linear_1(x)))."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(channels, width, bias=False)
        self.linear_2 = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear_2(F.silu(self.linear_1(x)))
        return out


class Modulator(nn.Module):
    """The time embedding (1, width) -> `sets` modulations, shared by all blocks of a kind."""

    def __init__(self, width: int, sets: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 3 * sets * width, bias=False)
        self.sets = sets

    def forward(self, time: Tensor) -> list[Modulation]:
        parts = self.linear(F.silu(time)).unsqueeze(1).chunk(3 * self.sets, dim=-1)
        return [(parts[i], parts[i + 1], parts[i + 2]) for i in range(0, len(parts), 3)]


class OutputNorm(nn.Module):
    """The last layer norm, scaled and shifted by the time embedding (scale first)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * width, bias=False)
        self.eps = eps

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.linear(F.silu(time).to(x.dtype)).unsqueeze(1).chunk(2, dim=-1)
        out: Tensor = F.layer_norm(x, x.shape[-1:], eps=self.eps) * (1 + scale) + shift
        return out


def modulate(x: Tensor, mod: Modulation, eps: float) -> Tensor:
    """Layer norm without weights, then scaled and shifted."""
    shift, scale, _ = mod
    return (1 + scale) * F.layer_norm(x, x.shape[-1:], eps=eps) + shift


def swiglu(x: Tensor) -> Tensor:
    """silu of the first half of the channels times the second half."""
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


def split_heads(x: Tensor, size: int) -> Tensor:
    """(B, tokens, heads * size) -> (B, tokens, heads, size)."""
    return x.reshape(*x.shape[:-1], -1, size)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Full attention, no mask: (B, tokens, heads, size) each -> (B, tokens, heads * size)."""
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    )
    return out.transpose(1, 2).flatten(2)


def rotary_embedding(ids: Tensor, axes: Sequence[int], theta: float) -> Rotary:
    """Cosines and sines (tokens, 1, head size) float32 of positions (tokens, len(axes)).

    Each axis of the position turns its own share of the channels. Angles are taken in float64, as
    the official code does.
    """
    angles = []
    for axis, size in enumerate(axes):
        exponent = torch.arange(0, size, 2, dtype=torch.float64, device=ids.device) / size
        angles.append(ids[:, axis, None] * (1.0 / theta**exponent))
    angle = torch.cat(angles, dim=-1).repeat_interleave(2, dim=-1)[:, None]
    return angle.cos().float(), angle.sin().float()


def apply_rotary(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate (B, tokens, heads, size): channel 2 i pairs with channel 2 i + 1, in float32."""
    cosine, sine = rotary
    even, odd = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack((-odd, even), dim=-1).flatten(-2)
    return (x.float() * cosine + turned.float() * sine).to(x.dtype)


def timestep_waves(timestep: Tensor, channels: int) -> Tensor:
    """(1,) -> (1, channels) float32: cosines, then sines, of periods from 2 pi to 10000 * 2 pi."""
    half = channels // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=timestep.device)
    angle = timestep[:, None].float() * torch.exp(exponent / half)
    return torch.cat((angle.cos(), angle.sin()), dim=-1)
