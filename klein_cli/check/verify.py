"""Our engine and the official pipeline on the same weights, noise, device and dtype, compared.

The embeddings are the real gate, the padded rows above all: images alone hardly see a wrong
mask. The two models are never in memory together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import groupby, islice

from torch import Tensor, nn

from klein_cli.check.limits import LIMITS, Limits, precision
from klein_cli.check.metrics import Pixels, mean_abs_diff, psnr, relative_error, row_errors, ssim
from klein_cli.check.official import reference
from klein_cli.check.official_layout import official_layout
from klein_cli.checkpoints.load import read_tensor
from klein_cli.checkpoints.lora.changes import changes_to
from klein_cli.checkpoints.lora.store import AdapterStore
from klein_cli.checkpoints.resolve import Snapshot
from klein_cli.device.choose import provenance, torch_dtype
from klein_cli.device.memory import release_memory
from klein_cli.images.store import ImageStore
from klein_cli.pipeline import Pipeline, Trace
from klein_cli.recipe import Adapter, Recipe
from klein_cli.settings import Settings
from klein_cli.text.tokenizer import PromptTokenizer

Likeness = Callable[[Pixels, Pixels], float]
"""The cosine of two images' CLIP embeddings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One number, and the limit it is held to: at most, or `at_least`."""

    part: str
    name: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def passed(self) -> bool:
        """False also for NaN."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def words(self) -> tuple[str, str]:
        """The value and its limit, as a person reads them."""
        return _number(self.value), f"{'>=' if self.at_least else '<='} {_number(self.limit)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One prompt drawn twice. `length`: the positions of 512 that prompt and template take."""

    recipe: Recipe
    length: int
    measures: tuple[Measure, ...]
    ours: Pixels
    theirs: Pixels

    @property
    def passed(self) -> bool:
        """True when every measure is within its limit."""
        return all(measure.passed for measure in self.measures)


def verify(
    snapshot: Snapshot,
    settings: Settings,
    recipes: Sequence[Recipe],
    *,
    images: ImageStore | None = None,
    adapters: AdapterStore | None = None,
    batch_size: int | None = None,
    likeness: Likeness | None = None,
    on_event: Callable[[str], None],
) -> list[Comparison]:
    """Draw each recipe with our engine and with diffusers' pipeline, and compare all on the way.

    `settings` come from `choose`, `images` has those that the recipes name, and `adapters` has
    theirs, which are one set: diffusers' weights get them by a plain sum. Of one shape in a
    row, ours are drawn in batches of `batch_size`, the pipeline's own choice if None; the reference
    draws all alone. Raises ModelError for
    a snapshot that either cannot load, or that is too large for klein's, OutOfMemoryError when the
    other or an image does not fit.
    """
    store = AdapterStore() if adapters is None else adapters
    ours = _ours(snapshot, settings, recipes, images, store, batch_size, on_event)
    adapt = partial(_add_adapters, snapshot, store, recipes[0].adapters)
    with official_layout(snapshot, torch_dtype(settings.dtype), on_event) as root:
        theirs = reference(
            root,
            settings,
            recipes,
            on_event,
            images=images,
            kv_cache=snapshot.preset.kv_cache,
            adapt=adapt,
        )
    release_memory()
    tokenizer = PromptTokenizer.of(snapshot)
    return [
        compare(
            recipe,
            tokenizer.tokenize(recipe.prompt).length,
            precision(settings),
            mine,
            other,
            likeness,
        )
        for recipe, mine, other in zip(recipes, ours, theirs, strict=True)
    ]


def compare(
    recipe: Recipe,
    length: int,
    held_to: str,
    ours: tuple[Trace, Pixels],
    theirs: tuple[Trace, Pixels],
    likeness: Likeness | None = None,
) -> Comparison:
    """Two drawings of one recipe, each with its trace, held to the LIMITS of that name."""
    limits = LIMITS[held_to]
    (our_trace, our_image), (their_trace, their_image) = ours, theirs
    found, wanted = our_trace.embeddings[0][0], their_trace.embeddings[0][0]
    measures = (
        *_rows("valid rows", found[:length], wanted[:length], limits),
        *_rows("padded rows", found[length:], wanted[length:], limits),
        *_steps(our_trace.latents, their_trace.latents, limits),
        *_images(our_image, their_image, limits, likeness),
    )
    return Comparison(
        recipe=recipe, length=length, measures=measures, ours=our_image, theirs=their_image
    )


def versions(settings: Settings) -> dict[str, str]:
    """What computed the two sides, besides the settings."""
    libraries = {name: version(name) for name in ("diffusers", "transformers")}
    return {**provenance(settings), **libraries}


def _ours(
    snapshot: Snapshot,
    settings: Settings,
    recipes: Sequence[Recipe],
    images: ImageStore | None,
    adapters: AdapterStore,
    batch_size: int | None,
    on_event: Callable[[str], None],
) -> list[tuple[Trace, Pixels]]:
    pipeline = Pipeline.load(
        snapshot, settings, adapters=adapters, first=recipes[0].adapters, on_event=on_event
    )
    made: list[tuple[Trace, Pixels]] = []
    for batch in _batches(recipes, batch_size or pipeline.default_batch_size):
        on_event(f"drawing with klein: {len(made) + 1} of {len(recipes)}")
        trace = Trace()
        drawn = pipeline.render(batch, images=images, trace=trace)
        made += zip(_each(trace, len(drawn)), drawn, strict=True)
    del pipeline
    release_memory()
    return made


def _add_adapters(
    snapshot: Snapshot,
    store: AdapterStore,
    adapters: Sequence[Adapter],
    transformer: nn.Module,
) -> None:
    """Change the weights of diffusers' transformer, whole tensors at a time and on the host."""
    checkpoint = snapshot.part("transformer")
    given = [(store.file(adapter), adapter.weight) for adapter in adapters]
    changes, tensors = changes_to(checkpoint, given), checkpoint.tensors()
    for name, parameter in transformer.named_parameters():
        if name in changes:
            rows = read_tensor(tensors[name]).float().clone()
            parameter.data.copy_(changes[name](0, rows))


def _batches(recipes: Sequence[Recipe], size: int) -> Iterator[list[Recipe]]:
    """In their order, of one shape each."""
    for _, alike in groupby(recipes, key=lambda recipe: recipe.shape):
        while batch := list(islice(alike, size)):
            yield batch


def _each(trace: Trace, images: int) -> Iterator[Trace]:
    """The trace of a batch -> a trace for each of its images."""
    for row in range(images):
        only = slice(row, row + 1)
        yield Trace([x[only] for x in trace.embeddings], [x[only] for x in trace.latents])


def _rows(name: str, found: Tensor, wanted: Tensor, limits: Limits) -> Iterator[Measure]:
    """Two measures, or none where a prompt has no such row. max and median pass a NaN on."""
    if not len(wanted):
        return
    errors, part = row_errors(found, wanted), f"embeddings, {name}"
    median, worst = float(errors.median()), float(errors.max())
    yield Measure(part=part, name="median", value=median, limit=limits.row_median)
    yield Measure(part=part, name="worst", value=worst, limit=limits.row_worst)


def _steps(found: Sequence[Tensor], wanted: Sequence[Tensor], limits: Limits) -> Iterator[Measure]:
    for step, pair in enumerate(zip(found, wanted, strict=True), start=1):
        error = relative_error(*pair)
        yield Measure(part="latents", name=f"step {step}", value=error, limit=limits.latents)


def _images(
    found: Pixels, wanted: Pixels, limits: Limits, likeness: Likeness | None
) -> Iterator[Measure]:
    at_least = {
        "ssim": (ssim(found, wanted), limits.ssim),
        "psnr": (psnr(found, wanted), limits.psnr),
    }
    if likeness is not None:
        at_least["clip"] = (likeness(found, wanted), limits.clip)
    for name, (value, limit) in at_least.items():
        yield Measure(part="picture", name=name, value=value, limit=limit, at_least=True)
    value = mean_abs_diff(found, wanted)
    yield Measure(part="picture", name="mean_abs_diff", value=value, limit=limits.mean_abs_diff)


def _number(value: float) -> str:
    """At most four digits that count: 1.20e-07, 0.9998, 46.12."""
    return f"{value:.2e}" if 0 < abs(value) < 1e-2 else f"{value:.4g}"
