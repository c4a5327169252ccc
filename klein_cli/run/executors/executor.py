"""Who draws: attempts -> outcomes. `Alone` draws here; `ray` beside it has others draw."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from klein_cli.errors import KleinError, OutOfMemoryError
from klein_cli.output.metadata import record
from klein_cli.recipe import Recipe
from klein_cli.run.fallback import Attempt, Renderer, what_fits
from klein_cli.settings import Settings

if TYPE_CHECKING:
    from klein_cli.pipeline import Pipeline
    from klein_cli.run.fallback import Pixels


class Describe(Protocol):
    """The record that goes into a picture's file."""

    def __call__(self, recipe: Recipe, step_down: str | None) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where pictures come from: the model's `repo` and `revision` on the hub, None elsewhere, the
    fingerprint of its `weights`, how it computes, and the versions and machine that do.
    """

    repo: str | None
    revision: str | None
    weights: str
    settings: Settings
    provenance: Mapping[str, str]

    @classmethod
    def of(cls, pipeline: Pipeline) -> Origin:
        """That of a pipeline's pictures. Raises ModelError when the model's files have gone."""
        from klein_cli.checkpoints.fingerprint import fingerprint

        snapshot = pipeline.snapshot
        return cls(
            repo=snapshot.repo,
            revision=snapshot.revision,
            weights=fingerprint(snapshot.root),
            settings=pipeline.settings,
            provenance=pipeline.provenance(),
        )


def describe_with(origin: Origin) -> Describe:
    """Records of pictures of this origin; see `klein_cli.output.metadata.record`."""
    from klein_cli.sampling.schedule import noise_levels

    def describe(recipe: Recipe, step_down: str | None) -> dict[str, Any]:
        return record(
            recipe,
            origin.settings,
            sigmas=noise_levels(recipe.width, recipe.height, recipe.steps),
            repo=origin.repo,
            revision=origin.revision,
            weights=origin.weights,
            provenance=origin.provenance,
            step_down=step_down,
        )

    return describe


class WorkerDied(KleinError):
    """A process of the crew ended; `drawing` says that the attempt was in its hands, not in line.

    Given back as an attempt's error, so that the attempt can be given to others.
    """

    def __init__(self, *, drawing: bool) -> None:
        super().__init__(
            "the worker that drew it died",
            "if the machine is short of memory, use fewer --workers or a smaller --batch-size",
        )
        self.drawing = drawing


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of an attempt: its pictures, or the error in their place.

    `seconds` is how long it took; `describe` makes the records of who drew it.
    """

    attempt: Attempt
    pictures: list[Pixels]
    error: Exception | None
    seconds: float
    describe: Describe


class Crew(Protocol):
    """Draws attempts, perhaps several at a time and not in their order."""

    def has_room(self) -> bool:
        """Whether another attempt would be begun, or lie ready, rather than heap up."""
        ...

    def busy(self) -> bool:
        """Whether attempts were given that have not been taken back."""
        ...

    def give(self, attempt: Attempt) -> None:
        """Have it drawn."""
        ...

    def take(self) -> Outcome | None:
        """Wait for one of those given, or None when there is room now where there was none.

        Raises KleinError when there is nobody left to draw.
        """
        ...

    def notices(self) -> Iterator[str]:
        """What has happened to the crew since the last time, in words for the user."""
        ...


class Alone:
    """Draws in this process, one attempt at a time, when it is taken.

    `on_progress` hears how many pictures' worth of the attempt is done.
    """

    def __init__(
        self, renderer: Renderer, describe: Describe, on_progress: Callable[[float], None]
    ) -> None:
        self._renderer = renderer
        self._describe = describe
        self._on_progress = on_progress
        self._attempt: Attempt | None = None

    def has_room(self) -> bool:
        return self._attempt is None

    def busy(self) -> bool:
        return self._attempt is not None

    def give(self, attempt: Attempt) -> None:
        self._attempt = attempt

    def take(self) -> Outcome:
        attempt, self._attempt = self._attempt, None
        assert attempt is not None
        started = time.perf_counter()
        pictures, error = draw(self._renderer, attempt, self._on_progress)
        return Outcome(
            attempt=attempt,
            pictures=pictures,
            error=error,
            seconds=time.perf_counter() - started,
            describe=self._describe,
        )

    def notices(self) -> Iterator[str]:
        return iter(())


def draw(
    renderer: Renderer, attempt: Attempt, on_progress: Callable[[float], None] | None = None
) -> tuple[list[Pixels], Exception | None]:
    """The pictures of an attempt, or what went wrong, of which no memory hangs.

    When a picture does not fit in any way, the error says what would.
    """

    def on_step(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(len(attempt.jobs) * done / total)

    try:
        return renderer.render(attempt.recipes, on_step=on_step, tiled=attempt.tiled), None
    except Exception as error:
        # A traceback's frames hold the tensors that the next try needs the place of.
        traceback.clear_frames(error.__traceback__)
        failure = error
    if isinstance(failure, OutOfMemoryError) and attempt.tiled and len(attempt.jobs) == 1:
        fits = what_fits(renderer, attempt.recipes[0])
        hint = failure.hint
        if fits is not None:
            hint = f"--size {fits} fits here; or close what else uses the memory"
        failure = OutOfMemoryError(f"{failure.message}, not even decoded in tiles", hint)
    return [], failure
