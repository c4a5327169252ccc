"""The optimiser, the weight average and the log that `train_tiny` uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon:
    """Muon for the parameters that `matrices` picks, AdamW for everything else.

    A convolution's kernel counts as a matrix of (out, in * height * width).

    Momentum of each matrix is orthogonalised by five Newton-Schulz iterations (Jordan et al.,
    2024) and scaled to the size of an AdamW update (Liu et al., 2025), so that one learning rate
    serves both. Matrices of one shape are orthogonalised as one batch.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        matrices: Callable[[str, nn.Parameter], bool],
        momentum: float = 0.95,
    ) -> None:
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        matrices = [p for n, p in named if matrices(n, p)]
        ids = {id(p) for p in matrices}
        self.momentum, self.lr = momentum, lr
        self.adam = torch.optim.AdamW(
            [p for _, p in named if id(p) not in ids], lr=lr, betas=(0.9, 0.98), weight_decay=0.0,
            fused=all(p.is_cuda for _, p in named),
        )  # fmt: skip
        self.groups: dict[tuple[int, int], list[nn.Parameter]] = {}
        for p in matrices:
            self.groups.setdefault((p.shape[0], p[0].numel()), []).append(p)
        self.buffers = {
            shape: torch.zeros(len(group), *shape, device=group[0].device)
            for shape, group in self.groups.items()
        }
        self.every = [p for _, p in named]

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the next step."""
        self.lr = lr
        for group in self.adam.param_groups:
            group["lr"] = lr

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for p in self.every:
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Clip the gradients to norm 1 and take one step."""
        nn.utils.clip_grad_norm_(self.every, 1.0, foreach=True)
        self.adam.step()
        for shape, group in self.groups.items():
            grads = torch.stack(
                [(torch.zeros_like(p) if p.grad is None else p.grad).flatten(1) for p in group]
            )
            buffer = self.buffers[shape].lerp_(grads, 1 - self.momentum)
            update = _orthogonal(grads.lerp(buffer, self.momentum))
            scale = 0.2 * max(shape) ** 0.5 * self.lr
            torch._foreach_add_(
                group,
                [u.view_as(p) for u, p in zip(update.unbind(0), group, strict=True)],
                alpha=-scale,
            )

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"adam": self.adam.state_dict(), "buffers": self.buffers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up `state_dict` again."""
        self.adam.load_state_dict(state["adam"])
        self.buffers = state["buffers"]


class Ema:
    """An exponential moving average of a module's parameters."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.count = decay, 0
        self.averages = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the averages towards the parameters; early on, faster."""
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        current = [p.detach() for _, p in model.named_parameters()]
        torch._foreach_lerp_(list(self.averages.values()), current, 1 - decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model with the averages in place of its parameters."""
        kept = {name: p.detach().clone() for name, p in model.named_parameters()}
        self._copy(model, self.averages)
        try:
            yield
        finally:
            self._copy(model, kept)

    @torch.no_grad()
    def _copy(self, model: nn.Module, values: dict[str, Tensor]) -> None:
        for name, p in model.named_parameters():
            p.copy_(values[name])


class Log:
    """Lines to a file and to the terminal, or to nowhere."""

    def __init__(self, path: Path, *, silent: bool = False) -> None:
        self.path, self.silent = path, silent

    def __call__(self, line: str) -> None:
        if self.silent:
            return
        print(line, flush=True)
        with self.path.open("a") as file:
            file.write(line + "\n")


def _orthogonal(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix to each of (N, m, n), about."""
    a, b, c = _COEFFICIENTS
    x = matrices.bfloat16()
    wide = x.shape[-2] > x.shape[-1]
    if wide:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if wide else x).float()
