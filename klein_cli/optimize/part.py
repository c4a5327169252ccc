"""A part of a model: a module, the arrival of its weights, and how its functions are run."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from klein_cli.checkpoints.load import Change, load_weights, put_again
from klein_cli.checkpoints.reader import Reader, ReadHandle
from klein_cli.checkpoints.source import DAMAGED, Checkpoint, check_unchanged, stamp_of
from klein_cli.device.device import Device
from klein_cli.errors import ModelError
from klein_cli.optimize.backend import PLAIN, Backend
from klein_cli.optimize.graphs import Run, direct

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What weights are loaded for: the model's device and dtype, and what it computes with.

    With a `reader`, one of the device, they come while the caller goes on. `changes` are made to
    the tensors of a part, by the part's name and theirs, as they come.
    """

    device: Device
    dtype: torch.dtype
    backend: Backend = PLAIN
    reader: Reader | None = None
    changes: Mapping[str, Mapping[str, Change]] = field(default_factory=dict)


class _PutAgain(Protocol):
    """`klein_cli.checkpoints.load.put_again` for a part."""

    def __call__(
        self, names: Collection[str], *, changes: Mapping[str, Change], reader: Reader | None
    ) -> ReadHandle | None: ...


class Part(Generic[Module]):
    """A module whose weights may still be on their way to the device.

    `run` computes functions of it; `skipped` names the tensors of the checkpoint that are not read;
    `waited` counts the seconds spent waiting for weights, which is less than `read_seconds` where
    something else was done meanwhile.
    """

    def __init__(
        self,
        module: Module,
        handle: ReadHandle | None = None,
        skipped: tuple[str, ...] = (),
        run: Run = direct,
        put_again: _PutAgain | None = None,
        changed: Collection[str] = (),
        stamps: Mapping[Path, tuple[int, int]] = MappingProxyType({}),
    ) -> None:
        self.run = run
        self.skipped = skipped
        self.waited = 0.0
        self._module = module
        self._handle = handle
        self._whole = handle is None
        self._failure: tuple[Any, ...] | None = None
        self._put_again = put_again
        self._changed = set(changed)
        self._stamps = stamps

    @classmethod
    def load(
        cls,
        name: str,
        module: Module,
        checkpoint: Checkpoint,
        target: Target,
        *,
        run: Run | None = None,
        prefix: str = "",
        skip: Callable[[str], bool] = lambda name: False,
    ) -> Part[Module]:
        """The part called `name`, one of `klein_cli.checkpoints.source.PARTS`.

        Its `module` was made with `init_on_meta`. `run` is the backend's own unless it is given.
        See `klein_cli.checkpoints.load.load_weights` for the rest, and for what it raises.
        """
        stamps = {path: stamp_of(path) for path in checkpoint.files}
        target.backend.prepare(name, module)
        where: dict[str, Any] = {
            "device": target.device.torch_device,
            "dtype": target.dtype,
            "prefix": prefix,
        }
        changes = target.changes.get(name, {})
        handle, skipped = load_weights(
            module, checkpoint, skip=skip, changes=changes, reader=target.reader, **where
        )
        again = partial(put_again, module, checkpoint, **where)
        return cls(module, handle, skipped, run or target.backend.run, again, changes, stamps)

    def reload(self, changes: Mapping[str, Change], device: Device) -> None:
        """Put the tensors that are changed, or were, again: from the file, in their places.

        Waits for them. Raises what `ready` raises; the next call then puts all of them again.
        Raises ModelError, too, when a file was replaced: half of a model would be another's.
        """
        assert self._put_again is not None
        for path, stamp in self._stamps.items():
            check_unchanged(path, stamp)
        with self.ready():
            self._changed |= changes.keys()
        with Reader(device.torch_device) if device.streams else nullcontext() as reader:
            handle = self._put_again(self._changed, changes=changes, reader=reader)
            if handle is not None:
                _wait_for(handle)
        self._changed = set(changes)

    @property
    def read_bytes(self) -> int:
        """What the threads of a `Reader` read."""
        return self._handle.bytes if self._handle else 0

    @property
    def read_seconds(self) -> float:
        """How long they took."""
        return self._handle.seconds if self._handle else 0.0

    @property
    def failed(self) -> bool:
        """Whether the module will never be whole."""
        return self._failure is not None

    @contextmanager
    def ready(self) -> Iterator[Module]:
        """The module, whole. Waits for its weights.

        Raises ModelError when a file fails, and whatever keeps the module from being made of it;
        then it does so each time.
        """
        if not self._whole:
            self._wait()
        yield self._module

    def _wait(self) -> None:
        if self._failure is not None:
            kind, its, *_ = self._failure
            raise kind(*its)
        started = time.perf_counter()
        assert self._handle is not None
        try:
            _wait_for(self._handle)
        except Exception as error:
            self._fail(error)
            raise
        self._whole = True
        torch.cuda.empty_cache()  # of what weights passed through
        self.waited += time.perf_counter() - started

    def _fail(self, error: Exception) -> None:
        # Not the error itself, whose traceback holds on to what was made by then.
        self._failure = tuple(error.__reduce__())


def _wait_for(handle: ReadHandle) -> None:
    try:
        handle.wait()
    except (OSError, EOFError) as error:
        raise ModelError(f"the weights cannot be read: {error}", DAMAGED) from None
