"""A part's folder -> its weights on the device, strictly checked.

The module is built without memory, on the meta device, and takes each tensor as it comes from the
file: the host never holds the weights a second time. Only safetensors are read, never pickles.
Everything that can be known from the files' headers is checked before the first weight is read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from klein_cli.checkpoints.folder import read_json, tensors_of, weight_files
from klein_cli.checkpoints.reader import Arrival, Reader, Stored
from klein_cli.errors import ModelError

_FLOATS = ("F64", "F32", "F16", "BF16")
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_AGAIN = "the model is damaged or not complete: download it again"


def _nothing(name: str) -> bool:
    return False


def _as_it_is(module: nn.Module) -> None:
    pass


def part_config(folder: Path, key: str, wanted: str) -> dict[str, Any]:
    """A part's config.json, whose entry `key` must name the class `wanted`.

    Raises ModelError when it is absent, broken or names another class.
    """
    table = read_json(folder / "config.json")
    found = table.get(key)
    if wanted not in (found if isinstance(found, list) else [found]):
        raise ModelError(
            f"{folder / 'config.json'} describes {found}, not {wanted}",
            "this is not a FLUX.2 [klein] snapshot",
        )
    return table


class _Unfilled(TorchFunctionMode):
    """Leaves out the initial values of modules.

    On the meta device they come to nothing, and the first random one imports torch's compiler,
    which takes a second.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


@contextmanager
def without_memory() -> Iterator[None]:
    """Modules made in here have shapes, but neither memory nor values: see `load_weights`."""
    with torch.device("meta"), _Unfilled():
        yield


class Loading:
    """A module whose weights are on their way to the device. `wait` before it is used.

    `skipped` names the tensors of the files that are not read; `waited` counts the seconds spent
    in `wait`, which is less than `read_seconds` where something else was done meanwhile.
    """

    def __init__(
        self, module: nn.Module, skipped: tuple[str, ...], then: Callable[[nn.Module], None]
    ) -> None:
        self.skipped = skipped
        self.waited = 0.0
        self._module: nn.Module | None = module
        self._failure: tuple[Any, ...] | None = None
        self._then = then
        self._tensors: dict[str, tuple[Tensor, torch.dtype]] = {}
        self._arrival: Arrival | None = None

    @property
    def read_bytes(self) -> int:
        """What the threads of a `Reader` read."""
        return self._arrival.bytes if self._arrival else 0

    @property
    def read_seconds(self) -> float:
        """How long they took."""
        return self._arrival.seconds if self._arrival else 0.0

    def expect(self, name: str, tensor: Tensor, dtype: torch.dtype) -> None:
        """`tensor` is, or will be, the module's `name`, and becomes `dtype`."""
        self._tensors[name] = (tensor, dtype)

    def arrive_by(self, arrival: Arrival) -> None:
        """The tensors are whole when `arrival` is."""
        self._arrival = arrival

    @property
    def failed(self) -> bool:
        """Whether the module will never be whole."""
        return self._failure is not None

    def wait(self) -> None:
        """Return when the module is whole and ready.

        Raises ModelError when a file fails, and whatever keeps the module from being made of it;
        then it does so each time.
        """
        if self._failure is not None:
            kind, its, *_ = self._failure
            raise kind(*its)
        if self._module is None:
            return
        started = time.perf_counter()
        try:
            self._arrive()
            with torch.inference_mode(mode=False), torch.no_grad():
                self._fill(self._module)
                self._then(self._module)
        except Exception as error:
            self._tensors.clear()
            # Not the error itself, whose traceback holds on to what was made by then.
            self._failure = tuple(error.__reduce__())
            raise
        self._module = None
        torch.cuda.empty_cache()  # `then` may have put weights together in new places
        self.waited += time.perf_counter() - started

    def _arrive(self) -> None:
        try:
            if self._arrival is not None:
                self._arrival.wait()
        except (OSError, EOFError) as error:
            raise ModelError(f"the weights cannot be read: {error}", _AGAIN) from None

    def _fill(self, module: nn.Module) -> None:
        tensors = {}
        for name in list(self._tensors):
            tensor, dtype = self._tensors.pop(name)
            tensors[name] = tensor.to(dtype)
        module.requires_grad_(False).eval()
        module.load_state_dict(tensors, assign=True)
        _check_complete(module)


def load_weights(
    module: nn.Module,
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    prefix: str = "",
    unread: Callable[[str], bool] = _nothing,
    reader: Reader | None = None,
    then: Callable[[nn.Module], None] = _as_it_is,
) -> Loading:
    """Fill a module made `without_memory` from the safetensors in `folder`.

    Names in the files carry `prefix` before the module's own. Parameters become `dtype`; buffers
    hold statistics and become float32, unless they are whole numbers. Tensors for which `unread`
    is true need not exist and are not read. With a `reader`, one of this device, the weights are
    read while the caller goes on; without, they are there on return. `then` is done to the filled
    module. Raises ModelError naming any other tensor that is missing, not wanted or of another
    shape, and any file that is absent or cannot be read.
    """
    wanted = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    buffers = {prefix + name for name, _ in module.named_buffers()}
    found: dict[str, Path] = {}
    skipped: list[str] = []
    for path in weight_files(folder):
        with _opened(path) as weights:
            for name in weights.keys():  # noqa: SIM118 (not a dict)
                if unread(name):
                    skipped.append(name)
                    continue
                _check(path, name, weights.get_slice(name), wanted)
                found[name] = path
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ModelError(f"{folder} lacks {_some(missing)}", _AGAIN)

    loading = Loading(module, tuple(sorted(skipped)), then)
    for name, tensor in _tensors(found, wanted, device, reader, loading):
        kind = tensor.dtype
        if tensor.is_floating_point():
            kind = torch.float32 if name in buffers else dtype
        loading.expect(name.removeprefix(prefix), tensor, kind)
    if reader is None:
        loading.wait()
        loading.waited = 0.0
    return loading


def _tensors(
    found: dict[str, Path],
    wanted: dict[str, Tensor],
    device: torch.device,
    reader: Reader | None,
    loading: Loading,
) -> Iterator[tuple[str, Tensor]]:
    """Each tensor, as it is stored; a reader fills it later, in the order of the module."""
    if reader is None:
        for path in dict.fromkeys(found.values()):
            with _opened(path, device) as weights:
                yield from ((n, weights.get_tensor(n)) for n in found if found[n] == path)
        return
    headers = {path: tensors_of(path) for path in set(found.values())}
    stored = []
    for name in wanted:
        held = headers[found[name]][name]
        tensor = torch.empty(wanted[name].shape, dtype=_TYPES[held.dtype], device=device)
        stored.append(Stored(found[name], held.begin, tensor))
        yield name, tensor
    loading.arrive_by(reader.read(stored))


@contextmanager
def _opened(path: Path, device: torch.device | str = "cpu") -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt", device=str(device)) as weights:
            yield weights
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read: {error}", _AGAIN) from None


def _check(path: Path, name: str, found: Any, wanted: dict[str, Tensor]) -> None:
    if name not in wanted:
        raise ModelError(
            f"{path} holds {name}, which this model has no place for",
            "the weights and their config.json do not belong together",
        )
    shape, place = tuple(found.get_shape()), wanted[name]
    if shape != tuple(place.shape):
        raise ModelError(
            f"{path}: {name} has shape {shape}, not {tuple(place.shape)}",
            "the weights and their config.json do not belong together",
        )
    kind = found.get_dtype()
    if kind not in _TYPES or (kind in _FLOATS) != place.is_floating_point():
        raise ModelError(
            f"{path}: {name} is stored as {kind}, which klein cannot read",
            "get the model in bfloat16, float16 or float32",
        )


def _check_complete(module: nn.Module) -> None:
    """Buffers outside the state dict are nobody's tensors: they would stay without memory."""
    places = chain(module.named_parameters(), module.named_buffers())
    left = [name for name, tensor in places if tensor.is_meta]
    if left:
        raise RuntimeError(f"{type(module).__name__} has no values for {_some(left)}")


def _some(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more tensors"
