"""Time the VAE's decoder on a GPU: plain torch, and Triton's kernels with enlarging folded or not.

    python scripts/measure_vae.py [--sides 1024 512]

Random weights of FLUX.2-klein's true sizes. Beside each time stands the relative error against
float32. Not folded is what kernels did before, but for torch's own kernel that enlarges. Then the
kernels that take longest, folded with the loads of a group norm's statistics so many deep, and each
convolution of an enlarged image by itself, also as a transposed one of 4x4, which needs no
interleaving.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from profile_engine import (
    BF16,
    CUDA,
    Decoder,
    Table,
    busiest,
    freed,
    milliseconds,
    relative_error,
    settings,
)
from torch import Tensor, nn

from klein_cli.device.choose import no_tf32
from klein_cli.device.device import device_for
from klein_cli.models.vae import Convolved
from klein_cli.optimize.backend import PLAIN, Backend, backend_for, device_context
from klein_cli.optimize.graphs import direct
from klein_cli.optimize.kernels import group_norm
from klein_cli.optimize.kernels.ops import FusedVaeOps
from klein_cli.optimize.kernels.upsample import interleave
from klein_cli.optimize.upsampling import FoldedConv, fold

REPEATS = 20
DEPTHS = (1, 2, 3, 4, 5)
ENLARGED = ((512, 128), (512, 256), (256, 512))
"""Channels and side of what an image of 1024x1024 enlarges."""


class NotFolded(FusedVaeOps):
    """Enlarges, then convolves; the convolution adds its bias in a pass of its own."""

    def upsample(self, x: Tensor, conv: nn.Module) -> Convolved:
        return Convolved(conv(F.interpolate(x, scale_factor=2.0, mode="nearest")))


def in_channels_last(model: nn.Module) -> None:
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def ways() -> Iterator[tuple[str, Backend]]:
    kernels = backend_for(settings("triton"))
    yield "torch", backend_for(settings("torch"))
    yield "not folded", replace(kernels, vae=NotFolded(), steps={"vae": (in_channels_last,)})
    yield "folded", kernels


def measure(sides: list[int]) -> None:
    table, exact = Table(), {}
    with freed():
        part = Decoder(PLAIN, torch.float32)
        for side in sides:
            part.at(side)
            exact[side] = part(direct)
        del part
    for name, backend in ways():
        with freed():
            part = Decoder(backend)
            for side in sides:
                part.at(side)
                table.both(f"decode, {side}", name, backend, part, exact[side], REPEATS)
            if name != "torch":
                part.at(sides[0])
                busiest(f"decode, {sides[0]}, {name}", partial(part, direct), 20)
            del part
    with freed():
        depths(table, Decoder(backend_for(settings("triton"))), sides)
    convolutions(table)


def depths(table: Table, part: Decoder, sides: list[int]) -> None:
    """The folded decoder with so many tiles of a group norm's statistics on their way."""
    kept = group_norm._STAGES
    for side in sides:
        part.at(side)
        for depth in DEPTHS:
            group_norm._STAGES = depth
            ms = milliseconds(partial(part, direct), REPEATS)
            table.add(f"decode, {side}", f"{depth} deep", ms)
    group_norm._STAGES = kept


def transposed(folded: Tensor) -> Tensor:
    """(4, n, C, 2, 2) -> (C, n, 4, 4): of a transposed convolution of stride 2 and padding 1."""
    weight = folded.new_empty(folded.shape[2], folded.shape[1], 4, 4)
    for phase, part in enumerate(folded.transpose(1, 2)):
        down, across = divmod(phase, 2)
        weight[:, :, 1 - down :: 2, 1 - across :: 2] = part.flip(-1, -2)
    return weight.contiguous(memory_format=torch.channels_last)


def convolutions(table: Table, shapes: tuple[tuple[int, int], ...] = ENLARGED) -> None:
    """Each by itself, without its bias."""
    for channels, side in shapes:
        conv = nn.Conv2d(channels, channels, 3, padding=1, device=CUDA, dtype=BF16)
        folded = FoldedConv(conv.requires_grad_(False))
        in_channels_last(conv)
        across = transposed(fold(conv.weight)).to(BF16)
        x = torch.randn(1, channels, side, side, device=CUDA, dtype=BF16)
        x = x.contiguous(memory_format=torch.channels_last)
        large = F.interpolate(x, scale_factor=2.0, mode="nearest")
        phases = folded(x)
        exact = F.conv2d(large.float(), conv.weight.float(), padding=1)
        for name, call in (
            ("3x3 alone", partial(F.conv2d, large, conv.weight, padding=1)),
            ("2x2 alone", partial(folded, x)),
            ("interleaving", partial(interleave, phases)),
            ("transposed", partial(F.conv_transpose2d, x, across, stride=2, padding=1)),
        ):
            found = call()
            error = relative_error(found, exact) if found.shape == exact.shape else None
            what = f"{channels} channels, {side} to {2 * side}"
            table.add(what, name, milliseconds(call, REPEATS), error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[1024, 512])
    options = parser.parse_args()
    print(json.dumps({"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}))
    with torch.inference_mode(), no_tf32(), device_context(device_for("cuda")):
        measure(options.sides)


if __name__ == "__main__":
    main()
