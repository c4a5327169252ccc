"""The folded convolution against enlarging and the convolution: the same numbers, other weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from small_models import VAE, distance, filled
from torch import Tensor, nn

from klein_cli.checkpoints.folder import FolderCheckpoint
from klein_cli.checkpoints.load import init_on_meta
from klein_cli.checkpoints.reader import Reader
from klein_cli.device.device import device_for
from klein_cli.models.vae import Convolved, VaeDecoder, VaeOps
from klein_cli.optimize.backend import PLAIN, Backend
from klein_cli.optimize.part import Part, Target
from klein_cli.optimize.upsampling import FoldedConv, fold_upsampling


class FoldedOps(VaeOps):
    """What the kernels do with the phases, in plain torch."""

    def upsample(self, x: Tensor, conv: nn.Module) -> Convolved:
        assert isinstance(conv, FoldedConv)
        images, _, height, width = x.shape
        phases = conv(x).view(images, 2, 2, -1, height + 1, width + 1)
        out = x.new_empty(images, phases.shape[3], 2 * height, 2 * width)
        for down in range(2):
            for across in range(2):
                moved = phases[:, down, across, :, down:, across:]
                out[:, :, down::2, across::2] = moved[..., :height, :width]
        return Convolved(out + conv.bias[:, None, None])


FOLDED = Backend(vae=FoldedOps(), steps={"vae": (fold_upsampling,)})


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (6, 2)])
def test_folded_is_enlarged_and_convolved(size: tuple[int, int]) -> None:
    """Edges too: outside the image there are zeros, small or large."""
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 6, 3, padding=1).double().requires_grad_(False)
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    wanted = conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    found = FoldedOps().upsample(x, FoldedConv(conv)).values
    assert distance(found, wanted) < 1e-7  # weights are added in float32


def test_weights_are_rounded_once() -> None:
    """Added in bfloat16, a sum of four would be rounded three times."""
    torch.manual_seed(0)
    conv = nn.Conv2d(32, 32, 3, padding=1, dtype=torch.bfloat16).requires_grad_(False)
    exact, rounded = FoldedConv(nn.Conv2d(32, 32, 3)), FoldedConv(conv)
    exact.folded.put(0, conv.weight.float())
    assert torch.equal(rounded.folded.weight, exact.folded.weight.to(torch.bfloat16))


def decoder(backend: Backend, dtype: torch.dtype) -> VaeDecoder:
    model = filled(VaeDecoder(VAE, backend.vae)).to(dtype)
    backend.prepare("vae", model)
    return model


def test_a_folded_decoder_is_the_decoder() -> None:
    latents = torch.randn(1, 4, 6, 8, generator=torch.manual_seed(1))
    exact = decoder(PLAIN, torch.float32)(latents)
    assert distance(decoder(FOLDED, torch.float32)(latents), exact) < 2e-6
    # In bfloat16 the sums are rounded, which the weights were not: measured 1.07 to 1.10.
    plain, folded = (
        distance(decoder(backend, torch.bfloat16)(latents.bfloat16()), exact)
        for backend in (PLAIN, FOLDED)
    )
    assert folded < 1.15 * plain


@pytest.mark.parametrize("piece", [130, 10**6])
def test_weights_are_folded_as_they_arrive(tmp_path: Path, piece: int) -> None:
    """Row by row, by their official names, and held in no other form."""
    whole = decoder(PLAIN, torch.float32)
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    with init_on_meta():
        model = VaeDecoder(VAE, FOLDED.vae)
    with Reader(torch.device("cpu"), piece) as reader:
        target = Target(
            device=device_for("cpu"), dtype=torch.float32, backend=FOLDED, reader=reader
        )
        part = Part.load("vae", model, FolderCheckpoint(tmp_path), target)
    latents = torch.randn(1, 4, 6, 8, generator=torch.manual_seed(1))
    with part.ready() as loaded:
        assert torch.equal(loaded(latents), decoder(FOLDED, torch.float32)(latents))
        assert not [p for p in loaded.decoder.up_blocks[0].upsamplers.parameters() if 3 in p.shape]
