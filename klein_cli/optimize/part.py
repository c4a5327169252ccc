"""A part of a model: a module, the arrival of its weights, and how its functions are run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from klein_cli.checkpoints.load import load_weights
from klein_cli.checkpoints.reader import Reader, ReadHandle
from klein_cli.checkpoints.source import DAMAGED, Checkpoint
from klein_cli.device.device import Device
from klein_cli.errors import ModelError
from klein_cli.optimize.backend import PLAIN, Backend
from klein_cli.optimize.graphs import Run, direct

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What weights are loaded for: the model's device and dtype, and what it computes with.

    With a `reader`, one of the device, they come while the caller goes on.
    """

    device: Device
    dtype: torch.dtype
    backend: Backend = PLAIN
    reader: Reader | None = None


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
    ) -> None:
        self.run = run
        self.skipped = skipped
        self.waited = 0.0
        self._module = module
        self._handle = handle
        self._whole = handle is None
        self._failure: tuple[Any, ...] | None = None

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
        target.backend.prepare(name, module)
        handle, skipped = load_weights(
            module,
            checkpoint,
            device=target.device.torch_device,
            dtype=target.dtype,
            prefix=prefix,
            skip=skip,
            reader=target.reader,
        )
        return cls(module, handle, skipped, run or target.backend.run)

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
            self._handle.wait()
        except (OSError, EOFError) as error:
            raise self._fail(ModelError(f"the weights cannot be read: {error}", DAMAGED)) from None
        except Exception as error:
            self._fail(error)
            raise
        self._whole = True
        torch.cuda.empty_cache()  # of what weights passed through
        self.waited += time.perf_counter() - started

    def _fail(self, error: Exception) -> Exception:
        # Not the error itself, whose traceback holds on to what was made by then.
        self._failure = tuple(error.__reduce__())
        return error
