"""CUDA graphs: a function's kernels are recorded once for each shape, then launched as one.

A graph launches the kernels that the function itself would launch: no bit differs. So whether one
is used is not a setting, and is not recorded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from klein_cli.device.memory import is_out_of_memory

MOST_GRAPHS = 8
"""Graphs at a time: one size of image needs three, for the text encoder, a step and the VAE."""

TensorFunction = Callable[..., Tensor]
_Key = tuple[object, ...]


class Run(Protocol):
    """How a function of tensors, and of nothing else that changes, is computed."""

    def __call__(self, function: TensorFunction, *inputs: Tensor) -> Tensor: ...

    def clear(self) -> None:
        """Free what is held only to be quick."""
        ...


class Direct:
    """As it is."""

    def __call__(self, function: TensorFunction, *inputs: Tensor) -> Tensor:
        return function(*inputs)

    def clear(self) -> None:
        pass


direct = Direct()


class Graphs:
    """Runs functions of tensors as CUDA graphs, captured at the second use for each shape.

    The first use compiles kernels and makes workspaces, which a graph cannot record, and is all
    that a process of one image needs of most functions.

    The functions read their inputs and what never changes, such as weights, wait for nothing and
    leave nothing behind. The graphs share one pool of memory: never run two at once. A pool gives
    nothing back as long as one of its graphs is left, so they go all together: when there are
    `most`, and when a function finds no memory. One that finds none for its graph runs as it is.
    """

    def __init__(self, device: torch.device, most: int = MOST_GRAPHS) -> None:
        self._device = device
        self._most = most
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool: Any = None
        self._used: set[_Key] = set()
        self._captured: dict[_Key, _Captured] = {}
        self._too_large: set[_Key] = set()

    def __call__(self, function: TensorFunction, *inputs: Tensor) -> Tensor:
        """function(*inputs), in memory of its own."""
        key = (function, *((x.shape, x.stride(), x.dtype) for x in inputs))
        if key not in self._used:
            result = self._directly(partial(self._on_stream, function), inputs)
            self._used.add(key)
            return result
        if key not in self._captured and key not in self._too_large:
            if len(self._captured) >= self._most:
                self.clear()
            try:
                self._captured[key] = self._capture(function, inputs)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._too_large.add(key)
        if key in self._captured:
            return self._captured[key].replay(inputs)
        return self._directly(function, inputs)

    def clear(self) -> None:
        """Give back the memory. The next use of a function captures it again."""
        torch.cuda.synchronize(self._device)
        for captured in self._captured.values():
            captured.graph.reset()
        self._captured.clear()
        torch.cuda.empty_cache()

    def _on_stream(self, function: TensorFunction, *inputs: Tensor) -> Tensor:
        """On the stream that graphs are captured on, whose workspaces are made by this."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            output = function(*inputs)
        current.wait_stream(self._stream)
        return output

    def _directly(self, function: TensorFunction, inputs: tuple[Tensor, ...]) -> Tensor:
        """Without a graph, if need be in the memory of those that there are."""
        try:
            return function(*inputs)
        except RuntimeError as error:
            if not (self._captured and is_out_of_memory(error)):
                raise
        self.clear()
        return function(*inputs)

    def _capture(self, function: TensorFunction, inputs: tuple[Tensor, ...]) -> _Captured:
        if not self._captured:  # a pool that was given back cannot be used again
            self._pool = torch.cuda.graph_pool_handle()
        held = tuple(torch.empty_like(x).copy_(x) for x in inputs)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            torch.cuda.synchronize(self._device)
            torch.cuda.empty_cache()  # what the first use held, the graph will hold
            # Other threads go on reading weights meanwhile.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                output = function(*held)
            except BaseException:
                # What went wrong first is what is reported.
                with contextlib.suppress(Exception):
                    graph.capture_end()
                raise
            graph.capture_end()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return _Captured(graph, held, output)


class _Captured:
    """A graph, and the memory that it reads and writes."""

    def __init__(self, graph: torch.cuda.CUDAGraph, held: tuple[Tensor, ...], out: Tensor) -> None:
        self.graph = graph
        self._held = held
        self._output = out

    def replay(self, inputs: tuple[Tensor, ...]) -> Tensor:
        for place, value in zip(self._held, inputs, strict=True):
            place.copy_(value)
        self.graph.replay()
        return self._output.clone()
