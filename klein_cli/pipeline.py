"""The whole story: prompts -> tokens -> embeddings -> latents -> pixels.

pipe = Pipeline.open("klein-4b")
images = pipe("a red fox", seed=7, n=2)
images[0].save("fox.png")
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from klein_cli.checkpoints.fingerprint import fingerprint, part_files
from klein_cli.checkpoints.given import wanted
from klein_cli.checkpoints.lora.store import AdapterStore
from klein_cli.checkpoints.reader import Reader
from klein_cli.checkpoints.resolve import Snapshot, resolve
from klein_cli.checkpoints.source import size_of
from klein_cli.device.choose import choose, no_tf32, provenance, torch_dtype
from klein_cli.device.device import device_for
from klein_cli.device.memory import is_out_of_memory, release_memory
from klein_cli.engines.adapters import Adapters
from klein_cli.engines.engine import Engine
from klein_cli.engines.load import load_engine
from klein_cli.engines.references import NOTHING, Given, References
from klein_cli.errors import ModelError, ModelTooLargeError, OutOfMemoryError, UsageError
from klein_cli.images.inputs import ImageSource, masked, references
from klein_cli.images.masks import Expand
from klein_cli.images.store import ImageStore
from klein_cli.optimize.backend import Backend, backend_for, device_context
from klein_cli.optimize.part import Part, Target
from klein_cli.output.carry import DRAWN
from klein_cli.output.image import Image
from klein_cli.output.metadata import Origin
from klein_cli.presets import DEFAULT_MODEL
from klein_cli.prompts.rows import Defaults, Inputs, Row, prompt_fault, recipe_of
from klein_cli.recipe import CPU_SEEDS, PIXELS_PER_TOKEN, Adapter, Recipe, check_sides
from klein_cli.sampling import schedule
from klein_cli.sampling.decode import to_pixels
from klein_cli.sampling.latents import Latents, noise, position_ids
from klein_cli.sampling.loop import Callback, denoise
from klein_cli.sampling.watch import OnEvent, Trace, Watch, on_host
from klein_cli.settings import Settings
from klein_cli.text.encoder import PromptTokens, TextEncoder
from klein_cli.text.tokenizer import PromptTokenizer

__all__ = ["Pipeline", "Trace", "choose"]

_REMEMBERED_BATCHES = 2
"""Batches of embeddings kept: images of one prompt, and of one negative prompt, share them."""


Result = TypeVar("Result")


class Pipeline:
    """A model on a device, making images. Its weights may still be on their way.

    One image, or batch, is made at a time, whoever asks: calls from other threads wait.
    `parts` are the text encoder, the transformer and the VAE.
    """

    default_batch_size = 1

    def __init__(
        self,
        snapshot: Snapshot,
        settings: Settings,
        tokenizer: PromptTokenizer,
        encoder: TextEncoder,
        engine: Engine[Any],
        backend: Backend,
        adapters: Adapters,
    ) -> None:
        self.snapshot = snapshot
        self.settings = settings
        self.parts: dict[str, Part[Any]] = {"text encoder": encoder.part, **engine.parts}
        self.loading_seconds = 0.0
        self._device = device_for(settings.device)
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._engine = engine
        self._references = References(engine)
        self._backend = backend
        self._adapters = adapters
        self._remembered: dict[tuple[str, ...], Tensor] = {}
        self._lock = threading.RLock()

    @classmethod
    def open(
        cls,
        model: str = DEFAULT_MODEL,
        *,
        transformer: str | None = None,
        text_encoder: str | None = None,
        vae: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        quantize: str = "none",
        settings: Settings | None = None,
        adapters: Iterable[str | Path] = (),
        on_event: OnEvent | None = None,
    ) -> Pipeline:
        """The model of a preset's name, a folder, a hub id or a file; downloaded if it is not here.

        `transformer`, `text_encoder` and `vae` are files in place of
        its own.

        `settings` say more than the three words before them can, and then stand for these too.
        `adapters`, as --lora takes them, are those of all images that name no others. `on_event`
        hears what is being done. Raises KleinError: UsageError for settings that cannot run here,
        ModelError for a model or an adapter that is not available, damaged or for another model.
        """
        if settings is None:
            settings = Settings(device=device, dtype=dtype, quantize=quantize)
        given = {"transformer": transformer, "text_encoder": text_encoder, "vae": vae}
        asked = wanted(model, given)
        for note in asked.notes:
            (on_event or _ignore)(note)
        snapshot, store = resolve(asked.model, parts=asked.parts), AdapterStore()
        first = store.named(adapters)
        store.check(snapshot)
        chosen = choose(settings, snapshot.preset)
        return cls.load(snapshot, chosen, adapters=store, first=first, on_event=on_event)

    @classmethod
    def load(
        cls,
        snapshot: Snapshot,
        settings: Settings,
        *,
        tokenizer: PromptTokenizer | None = None,
        adapters: AdapterStore | None = None,
        first: Sequence[Adapter] = (),
        on_event: OnEvent | None = None,
    ) -> Pipeline:
        """Read a snapshot's weights, and its tokenizer unless it is given; `settings` come from
        `choose`.

        `adapters` has the files of all adapters that recipes will name; the `first` of them are
        merged while the weights arrive. `on_event` hears what is being done. On a GPU this returns
        while the weights come: the first prompt is encoded meanwhile.

        Raises ModelError for a snapshot that is damaged or does not fit together,
        ModelTooLargeError when it is too large for the device.
        """
        try:
            with device_context(device_for(settings.device)):
                store = AdapterStore() if adapters is None else adapters  # an empty one is false
                merged = Adapters(snapshot, store, first)
                return cls._load(snapshot, settings, tokenizer, merged, on_event or _ignore)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        raise _too_large(snapshot, settings)

    @classmethod
    def _load(
        cls,
        snapshot: Snapshot,
        settings: Settings,
        tokenizer: PromptTokenizer | None,
        adapters: Adapters,
        on_event: OnEvent,
    ) -> Pipeline:
        started = time.perf_counter()
        device, backend = device_for(settings.device), backend_for(settings)
        target = Target(
            device=device,
            dtype=torch_dtype(settings.dtype),
            backend=backend,
            changes={"transformer": adapters.changes()},
        )
        on_event(f"loading the text encoder{_weight(snapshot, 'text_encoder')}")
        tokenizer = tokenizer or PromptTokenizer.of(snapshot)
        with Reader(device.torch_device) if device.streams else nullcontext() as reader:
            target = replace(target, reader=reader)
            encoder = TextEncoder.load(
                snapshot.part("text_encoder"),
                snapshot.preset.tapped_layers,
                target,
                attention=settings.attention,
            )
            if tokenizer.vocabulary > encoder.vocabulary:
                raise ModelError(
                    f"the tokenizer of {snapshot.name} knows {tokenizer.vocabulary} tokens, its "
                    f"text encoder {encoder.vocabulary}",
                    "the model's parts do not belong together: download it again",
                )
            on_event(
                f"loading the transformer and the VAE{_weight(snapshot, 'transformer', 'vae')}"
            )
            engine = load_engine(settings.engine, snapshot, target, text_channels=encoder.channels)
        backend.get_ready()
        pipeline = cls(snapshot, settings, tokenizer, encoder, engine, backend, adapters)
        pipeline.loading_seconds = time.perf_counter() - started
        return pipeline

    @property
    def skipped_tensors(self) -> tuple[str, ...]:
        """The tensors that are not read; those of the VAE's encoder are when an image is given."""
        parts = ((f"{name}.", part) for name, part in self._engine.parts.items())
        skipped = (f"{name}{tensor}" for name, part in parts for tensor in part.skipped)
        return (*self._encoder.part.skipped, *skipped)

    @cached_property
    def origin(self) -> Origin:
        """Where this pipeline's images come from. Raises ModelError when files have gone."""
        return Origin(
            model=replace(
                self.snapshot.model,
                weights=fingerprint(self.snapshot),
                parts=part_files(self.snapshot),
            ),
            settings=self.settings,
            provenance=provenance(self.settings),
        )

    def __call__(
        self,
        prompt: str,
        *,
        seed: int | None = None,
        n: int = 1,
        width: int | None = None,
        height: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        negative_prompt: str | None = None,
        adapters: Iterable[str | Path] | None = None,
        images: Sequence[ImageSource] = (),
        mask: ImageSource | None = None,
        expand: Expand | None = None,
        keep: bool = True,
        mask_blur: int = 0,
        callback: Callback | None = None,
        on_event: OnEvent | None = None,
    ) -> list[Image]:
        """`n` images of a prompt; image k (from 0) has the seed `seed` + k.

        What is not given is the model's own choice, and the seed a random one. Sides are in pixels,
        multiples of 16. `adapters` stand in place of those that the pipeline was opened with.

        `images`, to edit or to draw after, are paths, bytes of files or Pillow's; the result has
        the shape of the first. A `mask`, white or "alpha", and what `expand` adds at the left, top,
        right and bottom in pixels say which part of the first is painted; all else stays as it was
        unless `keep` is false. `mask_blur` pixels inside its edge soften it.

        `callback` hears of each step: its number, the noise level it reached and the latents (1,
        tokens, channels) float32 that it left. Raises KleinError: UsageError for a value that
        cannot make an image, OutOfMemoryError.
        """
        if n < 1:
            raise UsageError(f"n {n} is out of range", "use 1 or more")
        return list(
            self.stream(
                [prompt] * n,
                seed=seed,
                width=width,
                height=height,
                steps=steps,
                guidance=guidance,
                negative_prompt=negative_prompt,
                adapters=adapters,
                images=images,
                mask=mask,
                expand=expand,
                keep=keep,
                mask_blur=mask_blur,
                callback=callback,
                on_event=on_event,
            )
        )

    def stream(
        self,
        prompts: Iterable[str],
        *,
        seed: int | None = None,
        width: int | None = None,
        height: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        negative_prompt: str | None = None,
        adapters: Iterable[str | Path] | None = None,
        images: Sequence[ImageSource] = (),
        mask: ImageSource | None = None,
        expand: Expand | None = None,
        keep: bool = True,
        mask_blur: int = 0,
        callback: Callback | None = None,
        on_event: OnEvent | None = None,
    ) -> Iterator[Image]:
        """An image of each prompt, as it is made; see `__call__`. Image k has the seed `seed` + k.

        Prompts are taken when their turn comes, so there may be any number of them.
        """
        first = secrets.randbelow(CPU_SEEDS) if seed is None else seed
        defaults = Defaults(
            preset=self.snapshot.preset,
            width=width,
            height=height,
            steps=steps,
            guidance=guidance,
            negative_prompt=negative_prompt,
        )
        with self._lock:
            adapted = self._adapters.named(adapters)
        store = ImageStore()
        inputs = _inputs(store, images, mask, expand, blur=mask_blur, keep=keep)
        inputs = replace(inputs, adapters=adapted)
        for k, prompt in enumerate(prompts):
            if fault := prompt_fault(prompt):
                raise UsageError(*fault)
            recipe = recipe_of(Row(prompt=prompt), defaults, first + k, inputs)
            (pixels,) = self.render([recipe], images=store, callback=callback, on_event=on_event)
            for _, note in store.notes():
                (on_event or _ignore)(note)
            record = self.origin.record(recipe)
            pixels, extras = DRAWN.of(recipe, pixels, store)
            yield Image(pixels=pixels, recipe=recipe, record=record, extras=extras)

    def render(
        self,
        recipes: Sequence[Recipe],
        *,
        images: ImageStore | None = None,
        callback: Callback | None = None,
        on_event: OnEvent | None = None,
        seconds: dict[str, float] | None = None,
        trace: Trace | None = None,
        tiled: bool = False,
    ) -> list[NDArray[Any]]:
        """One (height, width, 3) uint8 image a recipe, in their order.

        The recipes share `Recipe.shape`, and `images` has those that they name. One with a mask
        makes an image of its source's size, in its source's profile, uint16 where that has 16 bits
        a channel. Of each step the `callback` hears; `on_event` of what is being done. `seconds`,
        by phase, and a `trace` are added to; `tiled` saves memory at the price of small differences
        (`klein_cli.sampling.decode`). Raises OutOfMemoryError when the batch does not fit,
        UsageError when an image has gone, and what `load` raises if that only shows now, when
        weights arrive.
        """
        if len({recipe.shape for recipe in recipes}) != 1:
            raise ValueError("recipes of one batch differ in shape, or there are none")
        if recipes[0].references and images is None:
            raise ValueError("recipes name images, and none are there")
        watch = Watch(
            on_event or _ignore,
            {} if seconds is None else seconds,
            synchronize=self._device.synchronize,
            waited=lambda: sum(part.waited for part in self.parts.values()),
        )
        render = partial(self._render, recipes, images, watch, callback, trace, tiled)
        first = recipes[0]
        size = first.width, first.height
        return self._compute(render, len(recipes), size, len(first.references))

    def _render(
        self,
        recipes: Sequence[Recipe],
        images: ImageStore | None,
        watch: Watch,
        callback: Callback | None,
        trace: Trace | None,
        tiled: bool,
    ) -> list[NDArray[Any]]:
        shape = recipes[0].shape
        if not self._adapters.are_merged(shape.adapters):
            with watch.phase("load", "switching adapters"):
                self._adapt(shape.adapters)
        with watch.phase("encode", "reading the prompt"):
            text = self._embed([recipe.prompt for recipe in recipes])
            negative = None
            if shape.guidance > 1.0 and not self.snapshot.preset.distilled:
                negative = self._embed([recipe.negative_prompt or "" for recipe in recipes])
        if trace is not None:
            trace.embeddings.append(on_host(text))
        given = NOTHING
        if images is not None and shape.references:
            with watch.phase("encode", "reading the images"):
                given = self._references.given(recipes, images)
        with watch.phase("denoise", f"step 1 of {shape.steps}"):
            seeds = [recipe.seed for recipe in recipes]
            latents = self.noise(seeds, width=shape.width, height=shape.height)
            sigmas = schedule.sigmas(latents.packed.shape[1], shape.steps)
            on_step = watch.steps(shape.steps, callback, trace)
            latents = self._denoise(
                latents, text, sigmas, shape.guidance, negative, on_step, given=given
            )
        with watch.phase("decode", "decoding"):
            return given.finished(recipes, self._decode(latents, tiled=tiled))

    def _adapt(self, wanted: Sequence[Adapter]) -> None:
        """Have the transformer's weights changed by these adapters, and by no others."""
        if not self._adapters.are_merged(wanted):
            self._references.forget_referred()
            self._adapters.merge(wanted, self._engine)

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """(B, 512, channels) embeddings on the device, in the model's dtype.

        Equal prompts are encoded once, and the last batches remembered.
        """
        return self._compute(lambda: self._embed(prompts), len(prompts))

    def noise(self, seeds: Sequence[int], *, width: int, height: int) -> Latents:
        """What images begin as, one a seed; sides in pixels, multiples of 16, or UsageError."""
        check_sides(width, height)
        return noise(
            seeds,
            width=width,
            height=height,
            channels=self._engine.latent_channels,
            device=self._device.torch_device,
            drawn_on=self.settings.rng,
            dtype=torch_dtype(self.settings.dtype),
        )

    def denoise(
        self,
        latents: Latents,
        embeddings: Tensor,
        *,
        steps: int | None = None,
        sigmas: Sequence[float] | None = None,
        guidance: float = 1.0,
        negative: Tensor | None = None,
        callback: Callback | None = None,
    ) -> Latents:
        """Move latents from noise to images, in so many steps, or down noise levels of your own.

        `sigmas` fall from 1 to 0, one more than there are steps; latents that are to begin lower
        hold so much noise already. With embeddings of `negative` prompts, `guidance` counts.
        The adapters are those that the pipeline was opened with. Raises UsageError when these do
        not fit together, OutOfMemoryError.
        """
        if sigmas is None:
            steps = self.snapshot.preset.steps if steps is None else steps
            sigmas = schedule.sigmas(latents.packed.shape[1], steps).tolist()
        _check_together(latents, embeddings, negative, sigmas)
        given = latents, embeddings, sigmas, guidance, negative, callback

        def work() -> Latents:
            self._adapt(self._adapters.first)
            return self._denoise(*given)

        return self._compute(work, len(embeddings), _pixels(latents))

    def decode(self, latents: Latents, *, tiled: bool = False) -> list[Image]:
        """The images that latents hold, without recipes. See `render` for `tiled`."""
        decode = partial(self._decode, latents, tiled=tiled)
        return [Image(pixels=one) for one in self._compute(decode, 1, _pixels(latents))]

    def _embed(self, prompts: Sequence[str]) -> Tensor:
        distinct = tuple(dict.fromkeys(prompts))
        states = self._remembered.pop(distinct, None)
        if states is None:
            tokens = PromptTokens.of([self._tokenizer.tokenize(prompt) for prompt in distinct])
            states = self._encoder.encode(tokens)
        self._remembered[distinct] = states
        while len(self._remembered) > _REMEMBERED_BATCHES:
            del self._remembered[next(iter(self._remembered))]
        return states[[distinct.index(prompt) for prompt in prompts]]

    def _denoise(
        self,
        latents: Latents,
        text: Tensor,
        sigmas: Sequence[float] | NDArray[np.float32],
        guidance: float,
        negative: Tensor | None,
        callback: Callback | None,
        *,
        given: Given = NOTHING,
    ) -> Latents:
        device = self._device.torch_device
        ids = position_ids(text.shape[1], latents.grid, device, given.grids)
        noise = latents.packed.to(device, torch.float32)

        def condition(text: Tensor) -> Any:
            return self._engine.condition(text.to(device), ids, given.references)

        packed = denoise(
            self._engine.velocity,
            noise,
            torch.tensor(sigmas, dtype=torch.float32),
            condition(text),
            guidance=guidance,
            negative=None if negative is None else condition(negative),
            blend=given.blend(noise),
            callback=callback,
        )
        return replace(latents, packed=packed)

    def _decode(self, latents: Latents, *, tiled: bool) -> list[NDArray[np.uint8]]:
        decode = self._engine.decode
        return [to_pixels(decode(one, latents.grid, tiled=tiled)) for one in latents.packed]

    def _compute(
        self,
        work: Callable[[], Result],
        images: int,
        size: tuple[int, int] | None = None,
        references: int = 0,
    ) -> Result:
        """`work` with nobody else computing; memory that runs out is given back, and an error."""
        try:
            with self._lock, torch.inference_mode(), no_tf32(), device_context(self._device):
                return work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Raised outside the handler, so that it does not hold on to the frames' tensors.
        self._remembered.clear()
        self._references.clear()
        self._backend.run.clear()
        release_memory()
        if any(part.failed for part in self.parts.values()):
            raise _too_large(self.snapshot, self.settings)
        what, option = "an image", "--size"
        if images > 1:
            what, option = f"{images} images", "--batch-size"
        of = f" of {size[0]}x{size[1]}" if size else ""
        at_once = " at once" if images > 1 else ""
        raise OutOfMemoryError(
            f"{what}{of}{at_once} did not fit into the memory of {self.settings.device}",
            f"use a smaller {option}" + (", or fewer or smaller images" if references else ""),
        )


def _inputs(
    store: ImageStore,
    images: Sequence[ImageSource],
    mask: ImageSource | None,
    expand: Expand | None,
    *,
    blur: int,
    keep: bool,
) -> Inputs:
    """What is given, taken into the store. Raises UsageError."""
    given = references(store, images)
    if mask is None and expand is None:
        return Inputs(references=given)
    if not given:
        raise UsageError("a mask is given, and no image", "give the image that it is of")
    source, painted = masked(store, given[0], mask, expand=expand, blur=blur, keep=keep)
    return Inputs(references=(source, *given[1:]), mask=painted)


def _check_together(
    latents: Latents, embeddings: Tensor, negative: Tensor | None, sigmas: Sequence[float]
) -> None:
    """Raise UsageError for what cannot be denoised together."""
    for what, given in (("embeddings", embeddings), ("negative embeddings", negative)):
        if given is not None and len(given) != len(latents.packed):
            raise UsageError(
                f"there are {what} of {len(given)} prompts for {len(latents.packed)} images",
                "give one prompt an image",
            )
    if len(sigmas) < 2 or not all(0.0 <= sigma <= 1.0 for sigma in sigmas):
        raise UsageError(
            "sigmas are not noise levels from 1 down to 0", "give one more of them than steps"
        )


def _pixels(latents: Latents) -> tuple[int, int]:
    """Width and height."""
    rows, columns = latents.grid
    return columns * PIXELS_PER_TOKEN, rows * PIXELS_PER_TOKEN


def _weight(snapshot: Snapshot, *parts: str) -> str:
    """ ", 7.9 GB": how much there is to read, where it takes a while."""
    size = sum(size_of(snapshot.part(part)) for part in parts)
    return f", {size / 1e9:.1f} GB" if size >= 1e8 else ""


def _too_large(snapshot: Snapshot, settings: Settings) -> ModelTooLargeError:
    return ModelTooLargeError(
        f"{snapshot.name} does not fit into the memory of {settings.device}",
        "close what else uses it, or use --model tiny",
    )


def _ignore(event: str) -> None:
    pass
