"""Several processes that train one student: one a GPU, each with data of its own."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Team:
    """This process among those that torchrun started, or alone."""

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda", local) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(self.device)
        if self.size > 1:
            dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")

    @property
    def leads(self) -> bool:
        """True in the one process that writes files."""
        return self.rank == 0

    def wait(self) -> None:
        """Go on when all have come here."""
        self.agree(0.0)

    def agree(self, value: float) -> float:
        """The first process's value, in all of them."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(shared, 0)
        return shared.item()

    @torch.no_grad()
    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients by their means over all processes.

        All must hold gradients of the same parameters.
        """
        if self.size == 1:
            return
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        parts = (flat / self.size).split([grad.numel() for grad in grads])
        torch._foreach_copy_(
            grads, [part.view_as(grad) for part, grad in zip(parts, grads, strict=True)]
        )

    @torch.no_grad()
    def share(self, tensors: Iterable[Tensor]) -> None:
        """Take over the first process's values."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def leave(self) -> None:
        """Part, at the end."""
        if self.size > 1:
            dist.destroy_process_group()
