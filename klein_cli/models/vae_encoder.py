"""The encoder of the FLUX.2 autoencoder in plain torch: images -> latents, for editing.

The mirror of the decoder in `vae`, of the same blocks and ops; parameter names are those of the
official checkpoint.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from klein_cli.models.vae import NORM_EPS, MiddleBlock, ResnetBlock, VaeConfig, VaeOps


class VaeEncoder(nn.Module):
    """What of the autoencoder reads images, and the statistics of its latents."""

    def __init__(self, config: VaeConfig, ops: VaeOps | None = None) -> None:
        super().__init__()
        channels = config.latent_channels
        self.config = config
        self.encoder = Encoder(config, ops or VaeOps())
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1)
        patch = config.patch_size[0] * config.patch_size[1]
        self.bn = nn.BatchNorm2d(patch * channels, eps=config.batch_norm_eps, affine=False)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, 8h, 8w) from -1 to 1 -> (B, c, h, w), not normalised yet.

        The distribution's mean: nothing is drawn.
        """
        moments: Tensor = self.quant_conv(self.encoder(image))
        return moments[:, : self.config.latent_channels]


class Encoder(nn.Module):
    """The narrowest channels first, halving the sides after every level but the last."""

    def __init__(self, config: VaeConfig, ops: VaeOps) -> None:
        super().__init__()
        self.ops = ops
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(
                widths[max(level - 1, 0)],
                width,
                layers=config.layers_per_block,
                groups=groups,
                ops=ops,
                downsample=level < len(widths) - 1,
            )
            for level, width in enumerate(widths)
        )
        self.mid_block = MiddleBlock(widths[-1], groups, ops)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        out: Tensor = self.conv_out(self.ops.normalise(x, self.conv_norm_out, silu=True))
        return out


class DownBlock(nn.Module):
    """One level of the encoder."""

    def __init__(
        self, before: int, width: int, *, layers: int, groups: int, ops: VaeOps, downsample: bool
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(width if layer else before, width, groups, ops) for layer in range(layers)
        )
        self.downsamplers = nn.ModuleList([Downsample(width)] if downsample else [])

    def forward(self, x: Tensor) -> Tensor:
        for block in (*self.resnets, *self.downsamplers):
            x = block(x)
        return x


class Downsample(nn.Module):
    """A convolution in steps of two pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        # Right and bottom alone: padded all around, the image would lie half a pixel off.
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out
