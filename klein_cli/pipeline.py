"""The whole story: prompts -> tokens -> embeddings -> latents -> pixels."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from klein_cli.checkpoints.folder import weight_files
from klein_cli.checkpoints.load import Loading
from klein_cli.checkpoints.reader import Reader
from klein_cli.checkpoints.resolve import Snapshot
from klein_cli.device.choose import (
    choose,
    full_precision,
    provenance,
    torch_dtype,
)
from klein_cli.device.memory import is_out_of_memory, release_memory
from klein_cli.engines.engine import Engine, load_engine
from klein_cli.errors import ModelError, ModelTooLargeError, OutOfMemoryError
from klein_cli.optimize.backend import Tools, at_work, tools
from klein_cli.recipe import Recipe
from klein_cli.sampling.decode import in_tiles, to_pixels
from klein_cli.sampling.latents import noise, position_ids
from klein_cli.sampling.loop import OnStep, denoise
from klein_cli.sampling.schedule import sigmas
from klein_cli.settings import Settings
from klein_cli.text.encoder import PromptTokens, TextEncoder
from klein_cli.text.tokenizer import POSITIONS, PromptTokenizer

__all__ = ["Pipeline", "Trace", "choose"]

_DOING = {"encode": "reading the prompt", "decode": "decoding"}
_REMEMBERED_BATCHES = 2
"""Batches of embeddings kept: pictures of one prompt, and of one negative prompt, share them."""


@dataclass(frozen=True, slots=True)
class Trace:
    """What a batch was on its way to pixels, on the host in float32: for those who compare.

    `embeddings`: one (B, 512, channels); `latents`: (B, h * w, channels) after each step.
    """

    embeddings: list[Tensor] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)


class Pipeline:
    """A model on a device, making pictures. Its weights may still be on their way.

    `timings` holds seconds by phase since the beginning of loading, where "load" has all that was
    spent waiting for weights; `loadings` are the parts' weights; `skipped_tensors` those that are
    not read because nothing needs them.
    """

    default_batch_size = 1

    def __init__(
        self,
        snapshot: Snapshot,
        settings: Settings,
        tokenizer: PromptTokenizer,
        encoder: TextEncoder,
        engine: Engine,
        kit: Tools,
    ) -> None:
        self.snapshot = snapshot
        self.settings = settings
        self.timings = dict.fromkeys(("load", "encode", "denoise", "decode"), 0.0)
        self.loadings: dict[str, Loading] = {"text encoder": encoder.loading, **engine.loadings}
        self.skipped_tensors = (*encoder.skipped, *engine.skipped)
        self._device = torch.device(settings.device)
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._engine = engine
        self._kit = kit
        self._remembered: dict[tuple[str, ...], Tensor] = {}
        self._on_event: Callable[[str], None] = _ignore

    @classmethod
    def load(
        cls,
        snapshot: Snapshot,
        settings: Settings,
        *,
        tokenizer: PromptTokenizer | None = None,
        on_event: Callable[[str], None] | None = None,
    ) -> Pipeline:
        """Read a snapshot's weights, and its tokenizer unless it is given; `settings` come from
        `choose`.

        `on_event` hears what is being done, now and while pictures are made. On a GPU this returns
        while the weights come: the first prompt is encoded meanwhile.

        Raises ModelError for a snapshot that is damaged or does not fit together,
        ModelTooLargeError when it is too large for the device.
        """
        try:
            with at_work(torch.device(settings.device)):
                return cls._load(snapshot, settings, tokenizer, on_event or _ignore)
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
        on_event: Callable[[str], None],
    ) -> Pipeline:
        started = time.perf_counter()
        device, dtype = torch.device(settings.device), torch_dtype(settings.dtype)
        kit = tools(settings)
        on_event(f"loading the text encoder{_weight(snapshot.root, 'text_encoder')}")
        tokenizer = tokenizer or PromptTokenizer.from_snapshot(snapshot.root)
        with Reader(device) if device.type == "cuda" else nullcontext() as reader:
            encoder = TextEncoder.from_snapshot(
                snapshot.root,
                snapshot.preset.tapped_layers,
                attention=settings.attention,
                device=device,
                dtype=dtype,
                tools=kit,
                reader=reader,
            )
            if tokenizer.vocabulary > encoder.model.config.vocab_size:
                raise ModelError(
                    f"the tokenizer of {snapshot.root} knows {tokenizer.vocabulary} tokens, its "
                    f"text encoder {encoder.model.config.vocab_size}",
                    "the snapshot's parts are not from one model: download it again",
                )
            on_event(
                f"loading the transformer and the VAE{_weight(snapshot.root, 'transformer', 'vae')}"
            )
            engine = load_engine(
                settings.engine,
                snapshot.root,
                text_channels=encoder.channels,
                device=device,
                dtype=dtype,
                tools=kit,
                reader=reader,
            )
        kit.get_ready()
        pipeline = cls(snapshot, settings, tokenizer, encoder, engine, kit)
        pipeline.timings["load"] = time.perf_counter() - started
        pipeline._on_event = on_event
        return pipeline

    def render(
        self,
        recipes: Sequence[Recipe],
        *,
        on_step: OnStep | None = None,
        trace: Trace | None = None,
        tiled: bool = False,
    ) -> list[NDArray[np.uint8]]:
        """One (height, width, 3) uint8 picture a recipe, in their order.

        The recipes share `Recipe.shape`; a `trace` is filled; `tiled` saves memory at the price of
        small differences (`klein_cli.sampling.decode`). Raises OutOfMemoryError when the batch
        does not fit, and what `load` raises if that only shows now, when weights arrive.
        """
        if len({recipe.shape for recipe in recipes}) != 1:
            raise ValueError("recipes of one batch differ in shape, or there are none")
        try:
            with torch.inference_mode(), full_precision(), at_work(self._device):
                return self._render(recipes, on_step, trace, tiled)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Raised outside the handler, so that it does not hold on to the frames' tensors.
        self._remembered.clear()
        self._engine.forget()
        self._kit.give_back_memory()
        release_memory()
        if any(loading.failed for loading in self.loadings.values()):
            raise _too_large(self.snapshot, self.settings)
        size = f"{recipes[0].width}x{recipes[0].height}"
        what, option = f"a picture of {size}", "--size"
        if len(recipes) > 1:
            what, option = f"{len(recipes)} pictures of {size} at once", "--batch-size"
        raise OutOfMemoryError(
            f"{what} did not fit into the memory of {self.settings.device}",
            f"use a smaller {option}",
        )

    def _render(
        self, recipes: Sequence[Recipe], on_step: OnStep | None, trace: Trace | None, tiled: bool
    ) -> list[NDArray[np.uint8]]:
        width, height, steps, guidance = recipes[0].shape
        guided = guidance > 1.0 and not self.snapshot.preset.distilled
        with self._timed("encode"):
            text = self._embeddings([recipe.prompt for recipe in recipes])
            negative = None
            if guided:
                negative = self._embeddings([recipe.negative_prompt or "" for recipe in recipes])
        if trace is not None:
            trace.embeddings.append(_on_host(text))
        with self._timed("denoise"):
            latents = noise(
                [recipe.seed for recipe in recipes],
                width=width,
                height=height,
                channels=self._engine.latent_channels,
                device=self._device,
                drawn_on=self.settings.rng,
                dtype=torch_dtype(self.settings.dtype),
            )
            packed = denoise(
                self._engine.transformer,
                latents.packed,
                sigmas(latents.packed.shape[1], steps),
                text,
                position_ids(POSITIONS, latents.grid, self._device),
                guidance=guidance,
                negative=negative,
                on_step=self._told(on_step, steps),
                on_latents=None if trace is None else lambda x: trace.latents.append(_on_host(x)),
            )
        decode = in_tiles(self._engine.decode) if tiled else self._engine.decode
        with self._timed("decode"):
            mean, deviation = self._engine.latent_mean, self._engine.latent_deviation
            return [to_pixels(picture, latents.grid, mean, deviation, decode) for picture in packed]

    def _embeddings(self, prompts: Sequence[str]) -> Tensor:
        """(B, 512, channels): equal prompts are encoded once, and the last batches remembered."""
        distinct = tuple(dict.fromkeys(prompts))
        states = self._remembered.pop(distinct, None)
        if states is None:
            tokens = PromptTokens.of([self._tokenizer.tokenize(prompt) for prompt in distinct])
            states = self._encoder.encode(tokens).states
        self._remembered[distinct] = states
        while len(self._remembered) > _REMEMBERED_BATCHES:
            del self._remembered[next(iter(self._remembered))]
        return states[[distinct.index(prompt) for prompt in prompts]]

    def provenance(self) -> dict[str, str]:
        """What besides recipe and settings can change a bit: versions, device, threads."""
        return provenance(self.settings)

    def _told(self, on_step: OnStep | None, steps: int) -> OnStep:
        """`on_step`, and what is being done told before each step."""

        def step(done: int, total: int) -> None:
            if on_step is not None:
                on_step(done, total)
            if done < total:
                self._on_event(f"step {done + 1} of {total}")

        self._on_event(f"step 1 of {steps}")
        return step

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        if phase in _DOING:
            self._on_event(_DOING[phase])
        started, waited = time.perf_counter(), self._waited()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        waited = self._waited() - waited
        self.timings["load"] += waited
        self.timings[phase] += time.perf_counter() - started - waited

    def _waited(self) -> float:
        return sum(loading.waited for loading in self.loadings.values())


def _on_host(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", torch.float32, copy=True)


def _weight(root: Path, *parts: str) -> str:
    """ ", 7.9 GB": how much there is to read, where it takes a while."""
    size = sum(path.stat().st_size for part in parts for path in weight_files(root / part))
    return f", {size / 1e9:.1f} GB" if size >= 1e8 else ""


def _too_large(snapshot: Snapshot, settings: Settings) -> ModelTooLargeError:
    return ModelTooLargeError(
        f"{snapshot.name} does not fit into the memory of {settings.device}",
        "close what else uses it, or use --model tiny",
    )


def _ignore(event: str) -> None:
    pass
