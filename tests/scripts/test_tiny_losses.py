"""The losses of `tiny`'s training, where a GPU would replay them."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import tiny_losses
import torch
from diffusers import AutoencoderKLFlux2
from tiny_losses import Inputs, Loss, follow_loss, match_loss, pixel_loss, unroll_loss
from tiny_models import VAE, Student
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

TEXT, GRID, PAIRS = 128, (4, 4), 2


class HostTraffic(TorchDispatchMode):
    """Notes every operation that takes from the host and gives to the device, or the reverse."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in (*args, out) if isinstance(x, Tensor)]
        if len({tensor.device.type for tensor in tensors}) > 1:
            self.seen.append(str(func))
        return out


def inputs(references: int) -> Inputs:
    tokens = GRID[0] * GRID[1]
    given = {"given": torch.randn(2 * PAIRS, references * tokens, 128)} if references else {}
    return given | {
        "ids": torch.zeros(PAIRS, TEXT, dtype=torch.long),
        "mask": torch.ones(PAIRS, 1, TEXT, 96, dtype=torch.bool),
        "noise": torch.randn(2 * PAIRS, tokens, 128),
        "target": torch.randn(2 * PAIRS, tokens, 128),
        "levels": torch.rand(5),
        "sigma": torch.rand(2 * PAIRS),
        "places": torch.zeros(TEXT + (1 + references) * tokens, 4, dtype=torch.long),
        "offsets": torch.rand(2 * PAIRS, tokens, 4),
        "there": torch.ones(2 * PAIRS, 4),
        "pictures": torch.rand(2, 3, 16 * GRID[0], 16 * GRID[1]),
    }


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("kind", "references"),
    [("match", 0), ("match", 2), ("follow", 1), ("unroll", 0), ("unroll", 1)],
)
def test_no_loss_asks_the_host(kind: str, references: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy from the host ends the capture of a CUDA graph. Meta tensors stand for a device's."""
    monkeypatch.setattr(tiny_losses, "autocast", lambda like: nullcontext())
    with torch.device("meta"):
        student, batch = Student(), inputs(references)
        vae = AutoencoderKLFlux2(**VAE).requires_grad_(False).eval()
    loss: Loss = {
        "match": match_loss,
        "follow": partial(follow_loss, stop=2),
        "unroll": partial(unroll_loss, vae=vae, grid=GRID, edges=8.0),
    }[kind]
    loss(student, batch).backward()  # as before a capture: what is made once is made
    student.forget()
    with HostTraffic() as traffic:
        loss(student, batch).backward()
    assert traffic.seen == []
    assert all(p.grad is not None for p in student.dit.parameters())


def test_pixels_at_edges_weigh_more() -> None:
    """The same error costs more beside an edge, by its extra weight, and nothing without one."""
    pictures = torch.zeros(1, 3, 16, 16)
    pictures[..., 8:] = 1.0
    inside, beside = pictures.clone(), pictures.clone()
    inside[..., 2] += 0.5
    beside[..., 7] += 0.5
    (far, none), (near, along) = (pixel_loss(out, pictures, 8.0) for out in (inside, beside))
    assert near / far == pytest.approx(9.0)
    assert none == 0
    assert along == pytest.approx(0.5 * 127.5 / 4)  # one of the four columns beside the edge
    plain = [pixel_loss(out, pictures, 0.0)[0] for out in (inside, beside)]
    assert plain[0] == pytest.approx(plain[1].item())
