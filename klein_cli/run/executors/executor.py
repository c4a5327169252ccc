"""Who draws: batches -> their images, or the error in their place.

`local` draws in this process; `process` and `ray` have other processes draw. Which of them it is,
`start` decides.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from klein_cli.errors import KleinError, OutOfMemoryError
from klein_cli.output.metadata import Origin
from klein_cli.recipe import Adapter, Recipe
from klein_cli.run.batching import Batch
from klein_cli.run.events import Listener
from klein_cli.run.executors.placement import Placement
from klein_cli.run.fallback import Renderer, what_fits
from klein_cli.settings import Settings

if TYPE_CHECKING:
    from klein_cli.checkpoints.lora.store import AdapterStore
    from klein_cli.checkpoints.resolve import Snapshot
    from klein_cli.images.store import ImageStore
    from klein_cli.pipeline import Pipeline
    from klein_cli.run.fallback import Pixels
    from klein_cli.text.tokenizer import PromptTokenizer


class WorkerDied(KleinError):
    """A worker's process ended; `drawing` says that the batch was in its hands, not in line.

    Given back as a batch's error, so that the batch can be given to others.
    """

    def __init__(self, *, drawing: bool) -> None:
        super().__init__(
            "the worker that drew it died",
            "if the machine is short of memory, use fewer --workers or a smaller --batch-size",
        )
        self.drawing = drawing


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
    """What became of a batch: its images, or the error in their place.

    `seconds` is how long it took; the `origin` makes the records of who drew it.
    """

    batch: Batch
    images: list[Pixels]
    error: Exception | None
    seconds: float
    origin: Origin


class Executor(Protocol):
    """Draws batches, perhaps several at a time and not in their order."""

    def submit(self, batch: Batch) -> None:
        """Have it drawn; only while there is `capacity`."""

    def next(self) -> BatchResult | None:
        """Wait for one of those submitted, or None when there is capacity now where there was none.

        Raises KleinError when there is nobody left to draw.
        """

    def capacity(self) -> int:
        """How many more batches would be begun, or lie ready, rather than heap up."""

    def busy(self) -> bool:
        """Whether batches were submitted whose results have not been taken."""

    def notices(self) -> Iterator[str]:
        """What has happened to the executor since the last time, in words for the user."""

    def close(self) -> None:
        """End what it started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What an executor is started for: so many `images` of a model, and where they are drawn.

    `settings` are as the user gave them; `chosen` are decided for this machine, None where other
    machines draw. `gpus` counts those of this machine that may be used; the `store` has the images
    that were given, and `adapters` the adapters; the `first` image has those of `first`.
    """

    model: str
    snapshot: Snapshot
    tokenizer: PromptTokenizer
    settings: Settings
    chosen: Settings | None
    placement: Placement
    gpus: int
    images: int
    listener: Listener
    store: ImageStore
    adapters: AdapterStore
    first: tuple[Adapter, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyExecutor:
    """An executor with the model loaded, and what is known of its images before they are made.

    `writers` threads keep up with it; the `pipeline` is None where it is not in this process, and
    `seconds` are what it spends there, by phase.
    """

    executor: Executor
    origin: Origin
    batch_size: int
    writers: int
    pipeline: Pipeline | None = None
    seconds: dict[str, float] = field(default_factory=dict)


def draw(
    renderer: Renderer,
    recipes: Sequence[Recipe],
    *,
    tiled: bool,
    images: ImageStore | None,
    **watching: Any,
) -> tuple[list[Pixels], Exception | None]:
    """The images of a batch, or what went wrong, of which no memory hangs.

    `images` has what the recipes edit, and goes to `Renderer.render` as `watching` does. When an
    image does not fit in any way, the error says what would.
    """
    try:
        return renderer.render(recipes, tiled=tiled, images=images, **watching), None
    except Exception as error:
        # A traceback's frames hold the tensors that the next try needs the place of.
        traceback.clear_frames(error.__traceback__)
        failure = error
    if isinstance(failure, OutOfMemoryError) and tiled and len(recipes) == 1:
        fits = what_fits(renderer, recipes[0], images)
        hint = failure.hint
        if fits is not None:
            hint = f"--size {fits} fits here; or close what else uses the memory"
        failure = OutOfMemoryError(f"{failure.message}, not even decoded in tiles", hint)
    return [], failure
