"""What `tiny_flow` lets the student learn from: student and tensors in, a number out.

Nothing in here may ask the host: a GPU replays each loss and its gradients as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLFlux2
from tiny_draw import STEPS
from tiny_models import Student, decode_latents, unpack
from torch import Tensor

STEP_WEIGHTS = (0.1, 0.2, 0.4, 1.0)
PROBE_WEIGHT = 0.5

Inputs = dict[str, Tensor]
Loss = Callable[[Student, Inputs], Tensor]


def match_loss(student: Student, batch: Inputs) -> Tensor:
    """The velocity at one noise level of the true path."""
    noise, target, sigma = batch["noise"], batch["target"], batch["sigma"]
    with autocast(noise):
        text = twice(student.embed(batch["ids"], batch["mask"]))
        x = target + sigma[:, None, None] * (noise - target)
        out = student.velocity(x, sigma, text, batch["places"], batch.get("given"))
    return F.mse_loss(out, noise - target) + _probe_loss(student, batch)


def follow_loss(student: Student, batch: Inputs, stop: int) -> Tensor:
    """The velocity that leads to the right picture from where the student's own steps led."""
    levels, x = batch["levels"], batch["noise"]
    with autocast(x):
        text = twice(student.embed(batch["ids"], batch["mask"]))
        for k in range(stop):
            # Detached rather than run without gradients, which would compile everything twice.
            v = at(student, x, levels[k], text.detach(), batch).detach()
            x = x + (levels[k + 1] - levels[k]) * v
        out = at(student, x, levels[stop], text, batch)
    loss = F.mse_loss(out, (x - batch["target"]) / levels[stop])
    return loss + _probe_loss(student, batch)


def unroll_loss(
    student: Student, batch: Inputs, vae: AutoencoderKLFlux2, grid: tuple[int, int], edges: float
) -> Tensor:
    """Every step's picture, and the last one's pixels, with gradients through all steps."""
    levels, x, target = batch["levels"], batch["noise"], batch["target"]
    loss = x.new_zeros(())
    with autocast(x):
        text = twice(student.embed(batch["ids"], batch["mask"]))
        for k in range(STEPS):
            v = at(student, x, levels[k], text, batch)
            loss = loss + STEP_WEIGHTS[k] * F.mse_loss(x - levels[k] * v, target)
            x = x + (levels[k + 1] - levels[k]) * v
    few = batch["pictures"]
    return loss + pixel_loss(decode_latents(vae, unpack(x[: len(few)], grid)), few, edges)[0]


def pixel_loss(out: Tensor, pictures: Tensor, edges: float) -> tuple[Tensor, Tensor]:
    """(loss, mean absolute error along the edges in levels of 255); `edges`: their extra weight."""
    near = F.max_pool2d(pictures, 5, 1, 2) + F.max_pool2d(-pictures, 5, 1, 2)
    edge = (near.amax(1, keepdim=True) > 0.05).float()
    difference = (out.float() - pictures).abs()
    loss = ((difference + difference.square()) * (1 + edges * edge)).mean()
    along = (difference.detach() * edge).sum() / (3 * edge.sum()) * 127.5
    return loss, along


def _probe_loss(student: Student, batch: Inputs) -> Tensor:
    """How wrong the DiT's middle is about where things lie."""
    offsets, there = batch["offsets"], batch["there"]
    wrong = (student.offsets(offsets.shape[1]) - offsets).square() * there[:, None]
    return PROBE_WEIGHT * wrong.mean()


def at(student: Student, x: Tensor, sigma: Tensor, text: Tensor, batch: Inputs) -> Tensor:
    """The velocity of all pictures of a batch at one noise level."""
    return student.velocity(x, sigma.expand(len(x)), text, batch["places"], batch.get("given"))


def twice(text: Tensor) -> Tensor:
    """Each prompt's embeddings for both of its pictures."""
    return text.repeat_interleave(2, 0)


def autocast(like: Tensor) -> torch.autocast:
    """bfloat16 matrix products, on the device of `like`."""
    return torch.autocast(like.device.type, torch.bfloat16)


class Captured:
    """A loss and its gradients as a CUDA graph over inputs of fixed shapes.

    Graphs of one memory `pool` share what they work in: one replays at a time.
    """

    def __init__(self, student: Student, loss: Loss, inputs: Inputs, pool: tuple[int, int]) -> None:
        self.student = student
        self.inputs = {name: t.clone() for name, t in inputs.items()}
        student.zero_grad()
        loss(student, self.inputs).backward()
        student.forget()
        self.graph = torch.cuda.CUDAGraph()
        # On the stream of all other steps: gradients are accumulated where a parameter was first
        # used, and a capture must not depend on another stream.
        stream = torch.cuda.current_stream()
        # Other threads, such as those that watch over several processes, may ask meanwhile.
        with torch.cuda.graph(self.graph, pool, stream, capture_error_mode="thread_local"):
            value = loss(student, self.inputs)
            value.backward()
        self.loss = value.detach()
        self.grads = [p.grad for p in student.parameters()]
        student.forget()

    def __call__(self, inputs: Inputs) -> Tensor:
        """The loss; its gradients lie in the parameters."""
        for name, value in inputs.items():
            self.inputs[name].copy_(value)
        self.graph.replay()
        for p, grad in zip(self.student.parameters(), self.grads, strict=True):
            p.grad = grad
        return self.loss.clone()
