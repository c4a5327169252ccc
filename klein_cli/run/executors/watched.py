"""What a worker does between the steps of a batch: tell of them, look ahead, stop if nobody waits.

A look ahead is where the last step's velocity leads: the image as the model sees it then. It costs
a decoding, and changes nothing of the image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from klein_cli.errors import CancelledError

if TYPE_CHECKING:
    from torch import Tensor

    from klein_cli.pipeline import Pipeline
    from klein_cli.run.executors.worker import DrawRequest
    from klein_cli.run.fallback import Pixels

Tell = Callable[[int, "list[Pixels]"], None]
"""Hears of each step: its number, from 1 on, and the images that are seen by then, if any."""


def shown_after(steps: int, previews: int) -> set[int]:
    """After which steps, from 1 on, an image is shown: never the last, which is the image."""
    count = min(previews, steps - 1)
    return {round(steps * (number + 1) / (count + 1)) for number in range(count)}


class WatchedSteps:
    """A callback of the loop, for one `request`. `cancelled` says whether it is to end.

    Raises CancelledError between two steps.
    """

    def __init__(
        self, request: DrawRequest, pipeline: Pipeline, tell: Tell, cancelled: Callable[[], bool]
    ) -> None:
        self._request = request
        self._pipeline = pipeline
        self._tell = tell
        self._cancelled = cancelled
        self._shown = shown_after(request.recipes[0].steps, request.previews)
        self._before: tuple[float, Tensor] | None = None
        self._launched: Any = None

    def __call__(self, step: int, sigma: float, latents: Tensor) -> None:
        if self._cancelled():
            raise CancelledError("the image was cancelled", "ask for it again")
        if self._request.number:
            self._keep_pace(latents)
        if not self._request.watched:
            return
        images = self._seen(sigma, latents) if step in self._shown else []
        if self._shown:
            self._before = sigma, latents
        self._tell(step, images)

    def _keep_pace(self, latents: Tensor) -> None:
        """Wait until a GPU has done the step before: launched ahead, all would be told of at once,
        and none be left to cancel.
        """
        if latents.device.type != "cuda":
            return
        import torch

        before, self._launched = self._launched, torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._launched.record()
        if before is not None:
            before.synchronize()

    def _seen(self, sigma: float, latents: Tensor) -> list[Pixels]:
        from klein_cli.sampling.latents import Latents

        first = self._request.recipes[0]
        seeds = [recipe.seed for recipe in self._request.recipes]
        noise = self._pipeline.noise(seeds, width=first.width, height=first.height)
        level, before = self._before or (1.0, noise.packed.to(latents.device))
        velocity = (latents - before) / (sigma - level)
        ahead = Latents(latents - sigma * velocity, noise.grid)
        return [image.pixels for image in self._pipeline.decode(ahead)]
