"""The decoder of the FLUX.2 autoencoder in plain torch: latents -> images.

Parameter names are those of the official checkpoint. The encoder is in `vae_encoder`: images of
words alone need none, and then it is neither built nor read. Norms, attention and what else can be
fused is done by `VaeOps`, at the end, in plain torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from klein_cli.models.config import read_sizes, refuse_variants

NORM_EPS = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeConfig:
    """The sizes of an autoencoder, from its config.json.

    `block_out_channels`, the encoder's, and `decoder_block_out_channels` go from the images' end
    inwards; `batch_norm_eps` belongs to the normalisation of the latents.
    """

    block_out_channels: tuple[int, ...]
    decoder_block_out_channels: tuple[int, ...]
    layers_per_block: int
    latent_channels: int
    norm_num_groups: int
    batch_norm_eps: float
    patch_size: tuple[int, ...]

    @classmethod
    def from_json(cls, table: dict[str, Any]) -> VaeConfig:
        """The sizes in a parsed config.json.

        Raises ModelError for a missing entry, or for a variant that this decoder does not compute.
        """
        defaults = {"norm_num_groups": 32, "batch_norm_eps": 1e-4, "patch_size": [2, 2]}
        # The small decoder of some checkpoints has widths of its own.
        own = table.get("decoder_block_out_channels") or table.get("block_out_channels")
        widths = {"decoder_block_out_channels": own}
        sizes = read_sizes(cls, "the VAE", {**defaults, **table, **widths})
        every_width = (*sizes.block_out_channels, *sizes.decoder_block_out_channels)
        refuse_variants(
            "the VAE",
            {
                "rest of block_out_channels by norm_num_groups": (
                    max(width % sizes.norm_num_groups for width in every_width),
                    0,
                ),
                "act_fn": (table.get("act_fn", "silu"), "silu"),
                "out_channels": (table.get("out_channels", 3), 3),
                "use_quant_conv": (table.get("use_quant_conv", True), True),
                "use_post_quant_conv": (table.get("use_post_quant_conv", True), True),
                "mid_block_add_attention": (table.get("mid_block_add_attention", True), True),
            },
            "this is not FLUX.2 [klein]; try --engine diffusers",
        )
        return sizes


class VaeDecoder(nn.Module):
    """What of the autoencoder makes images, and the statistics of its latents."""

    def __init__(self, config: VaeConfig, ops: VaeOps | None = None) -> None:
        super().__init__()
        channels = config.latent_channels
        self.config = config
        self.post_quant_conv = nn.Conv2d(channels, channels, 1)
        self.decoder = Decoder(config, ops or VaeOps())
        patch = config.patch_size[0] * config.patch_size[1]
        self.bn = nn.BatchNorm2d(patch * channels, eps=config.batch_norm_eps, affine=False)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, c, h, w), no longer normalised -> (B, 3, 8h, 8w) from -1 to 1."""
        out: Tensor = self.decoder(self.post_quant_conv(latents))
        return out


class Decoder(nn.Module):
    """The widest channels first, doubling the sides after every level but the last."""

    def __init__(self, config: VaeConfig, ops: VaeOps) -> None:
        super().__init__()
        self.ops = ops
        widths, groups = config.decoder_block_out_channels[::-1], config.norm_num_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MiddleBlock(widths[0], groups, ops)
        self.up_blocks = nn.ModuleList(
            UpBlock(
                widths[max(level - 1, 0)],
                width,
                layers=config.layers_per_block + 1,
                groups=groups,
                ops=ops,
                upsample=level < len(widths) - 1,
            )
            for level, width in enumerate(widths)
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(*self.ops.convolve(x, self.conv_in))
        wider = Convolved(x)
        for block in self.up_blocks:
            wider = block(*wider)
        normal = self.ops.normalise(wider.values, self.conv_norm_out, silu=True, bias=wider.bias)
        out: Tensor = self.conv_out(normal)
        return out


class MiddleBlock(nn.Module):
    """Convolutions around one attention over all positions."""

    def __init__(self, width: int, groups: int, ops: VaeOps) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(width, width, groups, ops) for _ in range(2))
        self.attentions = nn.ModuleList([SpatialAttention(width, groups, ops)])

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        x = self.attentions[0](self.resnets[0](x, bias))
        out: Tensor = self.resnets[1](x)
        return out


class UpBlock(nn.Module):
    """One level of the decoder."""

    def __init__(
        self, before: int, width: int, *, layers: int, groups: int, ops: VaeOps, upsample: bool
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(width if layer else before, width, groups, ops) for layer in range(layers)
        )
        self.upsamplers = nn.ModuleList([Upsample(width, ops)] if upsample else [])

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Convolved:
        for block in self.resnets:
            x, bias = block(x, bias), None
        out: Convolved = self.upsamplers[0](x) if self.upsamplers else Convolved(x)
        return out


class ResnetBlock(nn.Module):
    """Two normalised convolutions beside a shortcut.

    It is given what a convolution made: an image, and the bias that is still to be added, if any.
    """

    def __init__(self, before: int, width: int, groups: int, ops: VaeOps) -> None:
        super().__init__()
        self.ops = ops
        self.norm1 = nn.GroupNorm(groups, before, eps=NORM_EPS)
        self.conv1 = nn.Conv2d(before, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, width, eps=NORM_EPS)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        if before != width:
            self.conv_shortcut = nn.Conv2d(before, width, 1)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        ops, shortcut = self.ops, Convolved(x, bias)
        out = ops.convolve(ops.normalise(x, self.norm1, silu=True, bias=bias), self.conv1)
        normal = ops.normalise(out.values, self.norm2, silu=True, bias=out.bias)
        if hasattr(self, "conv_shortcut"):
            shortcut = ops.convolve(x, self.conv_shortcut, bias=bias)
        return ops.add(shortcut, ops.convolve(normal, self.conv2))


class SpatialAttention(nn.Module):
    """Attention of every place to every place, one head as wide as the channels."""

    def __init__(self, width: int, groups: int, ops: VaeOps) -> None:
        super().__init__()
        self.ops = ops
        self.group_norm = nn.GroupNorm(groups, width, eps=NORM_EPS)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        flat = self.ops.normalise(x, self.group_norm, silu=False).flatten(2).transpose(1, 2)
        out = self.ops.attend(self.to_q(flat), self.to_k(flat), self.to_v(flat))
        attended: Tensor = self.to_out[0](out).transpose(1, 2).reshape(x.shape)
        return attended + x


class Upsample(nn.Module):
    """Every pixel becomes four, then a convolution."""

    def __init__(self, width: int, ops: VaeOps) -> None:
        super().__init__()
        self.ops = ops
        self.conv: nn.Module = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Convolved:
        return self.ops.upsample(x, self.conv)


class Convolved(NamedTuple):
    """What a convolution made of an image, (B, C, H, W).

    `bias` (C,) is still to be added by whoever reads the values next; None when it is in them.
    """

    values: Tensor
    bias: Tensor | None = None


class VaeOps:
    """What `klein_cli.optimize` has in fewer passes; here in plain torch."""

    def convolve(self, x: Tensor, conv: nn.Conv2d, *, bias: Tensor | None = None) -> Convolved:
        """(B, C, H, W) through a convolution, here with its bias.

        `bias` is what `convolve` or `upsample` left: only for a convolution of single pixels.
        """
        assert bias is None
        return Convolved(conv(x))

    def normalise(
        self, x: Tensor, norm: nn.GroupNorm, *, silu: bool, bias: Tensor | None = None
    ) -> Tensor:
        """Group norm of (B, C, H, W) with the bias that was left, then SiLU if asked."""
        assert bias is None
        out: Tensor = norm(x)
        return F.silu(out) if silu else out

    def add(self, x: Convolved, y: Convolved) -> Tensor:
        """The sum of both and of what biases were left; `y` may be written to."""
        assert x.bias is None
        assert y.bias is None
        return x.values + y.values

    def upsample(self, x: Tensor, conv: nn.Module) -> Convolved:
        """(B, C, H, W) -> (B, C, 2H, 2W): every pixel becomes four, then `conv`."""
        return Convolved(conv(F.interpolate(x, scale_factor=2.0, mode="nearest")))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of one head, (B, positions, width) each, in the same shape."""
        return F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]


def latent_scale(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (channels,) float32 that undo the normalisation of latents."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    return bn.running_mean.float(), torch.sqrt(bn.running_var.float() + bn.eps)
