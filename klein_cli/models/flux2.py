"""The FLUX.2 DiT in plain torch: noisy latents and text embeddings -> the velocity.

Text and image first run side by side (double blocks: own weights, joint attention), then as one
sequence (single blocks). References, images to edit, are more image tokens behind the noisy ones,
without noise and without a velocity. The timestep acts through modulations that all blocks of a
kind share.
Parameter names are those of the official checkpoint. Nothing here masks the text: the DiT reads
all its positions, the padded ones too.

What lies between the matrix products is done by `Flux2Ops`, at the end, in plain torch. The whole
model is one file, to be read top-down beside its paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from klein_cli.models.config import check_size, read_sizes, refuse_variants
from klein_cli.models.layers import ParallelLinears, split_heads

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines, each (tokens, 1, head size) float32."""

Heads = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values, each (B, tokens, heads, head size)."""

Operand = Any
"""What a linear layer of a block is given: a tensor, unless other ops and layers agree on more."""


class Modulation(NamedTuple):
    """What the timestep does to a layer's input and output, each (1, 1, width)."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


class Modulations(NamedTuple):
    """A timestep's, for every kind of layer; the last norm has a scale and a shift alone."""

    image: tuple[Modulation, Modulation]
    text: tuple[Modulation, Modulation]
    single: Modulation
    last: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, packed: Tensor) -> Modulations:
        """From (1, 1, 17 * width), as `Flux2Transformer.modulations` leaves them."""
        parts = packed.chunk(17, dim=-1)
        image = Modulation(*parts[0:3]), Modulation(*parts[3:6])
        text = Modulation(*parts[6:9]), Modulation(*parts[9:12])
        return cls(image, text, Modulation(*parts[12:15]), (parts[15], parts[16]))


class Projected(NamedTuple):
    """One stream's queries, keys and values (B, tokens, width), and the norms of its heads."""

    norm_query: nn.RMSNorm
    norm_key: nn.RMSNorm
    query: Tensor
    key: Tensor
    value: Tensor


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
        check_size("the transformer", "its width", sizes.width)
        check_size("the transformer", "its feed-forward's width", sizes.width * sizes.mlp_ratio)
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

    def __init__(self, config: Flux2Config, ops: Flux2Ops | None = None) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.ops = ops or Flux2Ops()
        self.time_guidance_embed = TimestepEmbedder(config.timestep_guidance_channels, width)
        self.double_stream_modulation_img = ModulationLayer(width, parts=6)
        self.double_stream_modulation_txt = ModulationLayer(width, parts=6)
        self.single_stream_modulation = ModulationLayer(width, parts=3)
        self.x_embedder = nn.Linear(config.in_channels, width, bias=False)
        self.context_embedder = nn.Linear(config.joint_attention_dim, width, bias=False)
        self.transformer_blocks = nn.ModuleList(
            DoubleBlock(config, self.ops) for _ in range(config.num_layers)
        )
        self.single_transformer_blocks = nn.ModuleList(
            SingleBlock(config, self.ops) for _ in range(config.num_single_layers)
        )
        self.norm_out = ModulationLayer(width, parts=2)
        self.proj_out = nn.Linear(width, config.in_channels, bias=False)

    @property
    def head_size(self) -> int:
        """Channels of an attention head."""
        return self.config.attention_head_dim

    def forward(self, latents: Tensor, timestep: Tensor, text: Tensor, ids: Tensor) -> Tensor:
        """The velocity (B, N, C) of latents (B, N, C), in their dtype.

        timestep (1,) from 1000 down to 0, in the latents' dtype; text (B, T, D); ids (T + N, 4)
        int64 positions (t, h, w, l), the text's before the latents'.
        """
        txt, rotary = self.context_embedder(text), self.rotary(ids)
        return self.velocity(latents, txt, self.modulations(timestep), *rotary)

    def rotary(self, ids: Tensor) -> Rotary:
        """What the positions (tokens, 4) do to queries and keys: the same at every step."""
        return rotary_embedding(ids, self.config.axes_dims_rope, self.config.rope_theta)

    def modulations(self, timestep: Tensor) -> Tensor:
        """All that a timestep (1,) does: (1, 1, 17 * width), the same in every image."""
        time = self.time_guidance_embed(timestep)
        layers = (
            self.double_stream_modulation_img,
            self.double_stream_modulation_txt,
            self.single_stream_modulation,
            self.norm_out,
        )
        return torch.cat([layer(time) for layer in layers], dim=-1)[:, None]

    def velocity(
        self,
        latents: Tensor,
        txt: Tensor,
        modulations: Tensor,
        cosine: Tensor,
        sine: Tensor,
        references: Tensor | None = None,
    ) -> Tensor:
        """`forward`, from the embedded text (B, T, width) and what does not change in an image.

        The text is given as `context_embedder` leaves it; the rest as `modulations` and `rotary`
        make it. `references` (B or 1, R, C) have the last positions.
        """
        image = latents
        if references is not None:
            every = references.expand(len(latents), *references.shape[1:])
            image = torch.cat((latents, every), dim=1)
        mods = Modulations.of(modulations)
        x = self._blocks(image, txt, mods, (cosine, sine))
        return self._predicted(x[:, : latents.shape[1]], mods)

    def velocity_beside(
        self,
        latents: Tensor,
        txt: Tensor,
        modulations: Tensor,
        cosine: Tensor,
        sine: Tensor,
        kept: Tensor,
    ) -> Tensor:
        """`velocity` with references of which only `reference_keys` are left."""
        mods = Modulations.of(modulations)
        return self._predicted(self._blocks(latents, txt, mods, (cosine, sine), kept), mods)

    def reference_keys(
        self, references: Tensor, modulations: Tensor, cosine: Tensor, sine: Tensor
    ) -> Tensor:
        """What a model trained to cache references looks at: (B, blocks, 2, R, heads, head size).

        Keys, normalised and rotated, and values of references (B, R, C) that see each other and
        nothing else. `modulations` are those of timestep 0, whatever step the image is at, so that
        none of this depends on the text, the noise or the step.
        """
        mods, rotary, kept = Modulations.of(modulations), (cosine, sine), []
        x = self.x_embedder(references)
        blocks: list[tuple[Any, Any]] = [(block, mods.image) for block in self.transformer_blocks]
        blocks += [(block, mods.single) for block in self.single_transformer_blocks]
        for block, its in blocks:
            x, heads = block.alone(x, its, rotary)
            kept.append(heads)
        return torch.stack(kept, dim=1)

    def kept_bytes(self, references: Tensor) -> int:
        """What `reference_keys` of (B, R, C) take, in their dtype."""
        config, tokens = self.config, references.shape[:2].numel()
        blocks = config.num_layers + config.num_single_layers
        return 2 * blocks * tokens * config.width * references.element_size()

    def _blocks(
        self,
        image: Tensor,
        txt: Tensor,
        mods: Modulations,
        rotary: Rotary,
        kept: Tensor | None = None,
    ) -> Tensor:
        """The image's tokens (B, N, C) after all blocks, (B, N, width)."""
        beside = iter(()) if kept is None else iter(kept.unbind(1))
        image, length = self.x_embedder(image), txt.shape[1]
        for block in self.transformer_blocks:
            image, txt = block(image, txt, mods.image, mods.text, rotary, next(beside, None))
        x = torch.cat((txt, image), dim=1)
        for block in self.single_transformer_blocks:
            x = block(x, mods.single, rotary, next(beside, None))
        return x[:, length:]

    def _predicted(self, x: Tensor, mods: Modulations) -> Tensor:
        scale, shift = mods.last
        out: Tensor = self.proj_out(self.ops.modulate(x, shift, scale, self.config.eps))
        return out


class DoubleBlock(nn.Module):
    """Joint attention of text and image, each with its own projections and feed-forward."""

    def __init__(self, config: Flux2Config, ops: Flux2Ops) -> None:
        super().__init__()
        self.eps = config.eps
        self.ops = ops
        self.attn = JointAttention(config, ops)
        self.ff = FeedForward(config.width, config.mlp_ratio, ops)
        self.ff_context = FeedForward(config.width, config.mlp_ratio, ops)

    def forward(
        self,
        image: Tensor,
        txt: Tensor,
        image_mods: Sequence[Modulation],
        text_mods: Sequence[Modulation],
        rotary: Rotary,
        kept: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        img_attn, txt_attn = self.attn(
            self.modulated(image, image_mods[0]), self.modulated(txt, text_mods[0]), rotary, kept
        )
        image = self.fed_forward(image, img_attn, image_mods, self.ff)
        txt = self.fed_forward(txt, txt_attn, text_mods, self.ff_context)
        return image, txt

    def alone(
        self, image: Tensor, mods: Sequence[Modulation], rotary: Rotary
    ) -> tuple[Tensor, Tensor]:
        """References without text or image, and their keys and values (B, 2, R, heads, size)."""
        attended, kept = self.attn.alone(self.modulated(image, mods[0]), rotary)
        return self.fed_forward(image, attended, mods, self.ff), kept

    def fed_forward(
        self, x: Tensor, attended: Tensor, mods: Sequence[Modulation], layer: FeedForward
    ) -> Tensor:
        x = self.ops.add_gated(x, mods[0].gate, attended)
        return self.ops.add_gated(x, mods[1].gate, layer(self.modulated(x, mods[1])))

    def modulated(self, x: Tensor, mod: Modulation) -> Operand:
        return self.ops.modulate(x, mod.shift, mod.scale, self.eps)


class JointAttention(nn.Module):
    """One attention over text and image tokens, projected by weights of their own."""

    def __init__(self, config: Flux2Config, ops: Flux2Ops) -> None:
        super().__init__()
        width, size = config.width, config.attention_head_dim
        self.ops = ops
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
        self.img_qkv = ParallelLinears(self.to_q, self.to_k, self.to_v)
        self.txt_qkv = ParallelLinears(self.add_q_proj, self.add_k_proj, self.add_v_proj)

    def forward(
        self, image: Operand, txt: Operand, rotary: Rotary, kept: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(image, txt), each (B, tokens, width) -> the same, attended."""
        txt_qkv = Projected(self.norm_added_q, self.norm_added_k, *self.txt_qkv(txt))
        img_qkv = Projected(self.norm_q, self.norm_k, *self.img_qkv(image))
        heads = self.ops.qk_norm_rope((txt_qkv, img_qkv), rotary)
        out = self.ops.attend(*with_kept(heads, kept))
        length = txt_qkv.query.shape[1]
        return self.to_out[0](out[:, length:]), self.to_add_out(out[:, :length])

    def alone(self, image: Operand, rotary: Rotary) -> tuple[Tensor, Tensor]:
        qkv = Projected(self.norm_q, self.norm_k, *self.img_qkv(image))
        query, key, value = self.ops.qk_norm_rope((qkv,), rotary)
        return self.to_out[0](self.ops.attend(query, key, value)), torch.stack((key, value), dim=1)


class SingleBlock(nn.Module):
    """Attention and feed-forward in parallel over the one sequence, their projections fused."""

    def __init__(self, config: Flux2Config, ops: Flux2Ops) -> None:
        super().__init__()
        self.eps = config.eps
        self.ops = ops
        self.attn = ParallelAttention(config, ops)

    def forward(
        self, x: Tensor, mod: Modulation, rotary: Rotary, kept: Tensor | None = None
    ) -> Tensor:
        out = self.attn(self.ops.modulate(x, mod.shift, mod.scale, self.eps), rotary, kept)
        return self.ops.add_gated(x, mod.gate, out)

    def alone(self, x: Tensor, mod: Modulation, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """See `DoubleBlock.alone`."""
        out, kept = self.attn.alone(self.ops.modulate(x, mod.shift, mod.scale, self.eps), rotary)
        return self.ops.add_gated(x, mod.gate, out), kept


class ParallelAttention(nn.Module):
    """One projection into queries, keys, values and feed-forward, one out of both results."""

    def __init__(self, config: Flux2Config, ops: Flux2Ops) -> None:
        super().__init__()
        width, size = config.width, config.attention_head_dim
        inner = int(width * config.mlp_ratio)
        self.ops = ops
        self.split = (width, width, width, 2 * inner)
        self.to_qkv_mlp_proj = nn.Linear(width, sum(self.split), bias=False)
        self.norm_q = nn.RMSNorm(size, eps=config.eps)
        self.norm_k = nn.RMSNorm(size, eps=config.eps)
        self.to_out = nn.Linear(width + inner, width, bias=False)

    def forward(self, x: Operand, rotary: Rotary, kept: Tensor | None = None) -> Tensor:
        heads, gated = self._projected(x, rotary)
        return self._out(with_kept(heads, kept), gated)

    def alone(self, x: Operand, rotary: Rotary) -> tuple[Tensor, Tensor]:
        heads, gated = self._projected(x, rotary)
        return self._out(heads, gated), torch.stack(heads[1:], dim=1)

    def _projected(self, x: Operand, rotary: Rotary) -> tuple[Heads, Tensor]:
        *qkv, gated = self.to_qkv_mlp_proj(x).split(self.split, dim=-1)
        return self.ops.qk_norm_rope((Projected(self.norm_q, self.norm_k, *qkv),), rotary), gated

    def _out(self, heads: Heads, gated: Tensor) -> Tensor:
        out: Tensor = self.to_out(self.ops.swiglu(gated, beside=self.ops.attend(*heads)))
        return out


class FeedForward(nn.Module):
    """linear_out(silu(a) * b), where linear_in makes a and b."""

    def __init__(self, width: int, ratio: float, ops: Flux2Ops) -> None:
        super().__init__()
        inner = int(width * ratio)
        self.ops = ops
        self.linear_in = nn.Linear(width, 2 * inner, bias=False)
        self.linear_out = nn.Linear(inner, width, bias=False)

    def forward(self, x: Operand) -> Tensor:
        out: Tensor = self.linear_out(self.ops.swiglu(self.linear_in(x)))
        return out


class TimestepEmbedder(nn.Module):
    """A timestep (1,) -> (1, width)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.channels = channels
        self.timestep_embedder = MLPEmbedder(channels, width)

    def forward(self, timestep: Tensor) -> Tensor:
        embedding = timestep_embedding(timestep, self.channels).to(timestep.dtype)
        out: Tensor = self.timestep_embedder(embedding)
        return out


class MLPEmbedder(nn.Module):
    """linear_2(silu(linear_1(x)))."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(channels, width, bias=False)
        self.linear_2 = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear_2(F.silu(self.linear_1(x)))
        return out


class ModulationLayer(nn.Module):
    """The time embedding (1, width) -> (1, parts * width), shared by all blocks of a kind.

    Blocks have shift, scale and gate in turn, for each of their layers; the output norm has its
    scale first.
    """

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, parts * width, bias=False)

    def forward(self, time: Tensor) -> Tensor:
        out: Tensor = self.linear(F.silu(time))
        return out


class Flux2Ops:
    """What lies between the matrix products. `klein_cli.optimize` has the same in fewer passes."""

    def modulate(self, x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Operand:
        """Layer norm without weights, then scaled and shifted."""
        return (1 + scale) * F.layer_norm(x, x.shape[-1:], eps=eps) + shift

    def add_gated(self, x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
        """The residual stream and what a layer adds to it."""
        return x + gate * y

    def swiglu(self, x: Tensor, beside: Tensor | None = None) -> Operand:
        """silu of the first half of the channels times the second half, behind `beside`'s."""
        gate, value = x.chunk(2, dim=-1)
        out = F.silu(gate) * value
        return out if beside is None else torch.cat((beside, out), dim=-1)

    def qk_norm_rope(self, streams: Sequence[Projected], rotary: Rotary) -> Heads:
        """Queries, keys and values of all streams in a row, each (B, tokens, heads, size).

        Queries and keys are normalised head by head and rotated by their positions.
        """
        size = streams[0].norm_query.normalized_shape[0]
        query = concat_tokens([s.norm_query(split_heads(s.query, size)) for s in streams])
        key = concat_tokens([s.norm_key(split_heads(s.key, size)) for s in streams])
        value = concat_tokens([split_heads(s.value, size) for s in streams])
        return apply_rotary(query, rotary), apply_rotary(key, rotary), value

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Full attention, no mask: (B, tokens, heads, size) each -> (B, tokens, heads * size)."""
        out = F.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        )
        return out.transpose(1, 2).flatten(2)


def with_kept(heads: Heads, kept: Tensor | None) -> Heads:
    """The keys and values (B or 1, 2, R, heads, size) that `alone` left are looked at too."""
    if kept is None:
        return heads
    query, key, value = heads
    keys, values = kept.expand(len(key), *kept.shape[1:]).unbind(1)
    return query, torch.cat((key, keys), dim=1), torch.cat((value, values), dim=1)


def concat_tokens(parts: Sequence[Tensor]) -> Tensor:
    """The tokens of some streams, one stream after another."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)


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
    rotated = torch.stack((-odd, even), dim=-1).flatten(-2)
    return (x.float() * cosine + rotated.float() * sine).to(x.dtype)


def timestep_embedding(timestep: Tensor, channels: int) -> Tensor:
    """(1,) -> (1, channels) float32: cosines, then sines, of periods from 2 pi to 10000 * 2 pi."""
    half = channels // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=timestep.device)
    angle = timestep[:, None].float() * torch.exp(exponent / half)
    return torch.cat((angle.cos(), angle.sin()), dim=-1)
