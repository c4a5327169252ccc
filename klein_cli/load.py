"""A part's folder -> its weights on the device, strictly checked.

The module is built without memory, on the meta device, and takes each tensor as it comes from the
file: the host never holds the weights a second time. Only safetensors are read, never pickles.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from klein_cli.errors import ModelError
from klein_cli.model_files import read_json, weight_files

_FLOATS = ("F64", "F32", "F16", "BF16")
_AGAIN = "the model is damaged or not complete: download it again"


def _nothing(name: str) -> bool:
    return False


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


def load_weights(
    module: nn.Module,
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    prefix: str = "",
    unread: Callable[[str], bool] = _nothing,
) -> tuple[str, ...]:
    """Fill a module made `without_memory` from the safetensors in `folder`.

    Names in the files carry `prefix` before the module's own. Parameters become `dtype`; buffers
    hold statistics and become float32, unless they are whole numbers. Tensors for which `unread`
    is true need not exist and are not read; their names in the files are returned. Raises
    ModelError naming any other tensor that is missing, not wanted or of another shape, and any
    file that is absent or cannot be read.
    """
    wanted = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    buffers = {prefix + name for name, _ in module.named_buffers()}
    tensors: dict[str, Tensor] = {}
    skipped: list[str] = []
    for path in weight_files(folder):
        with _opened(path, device) as weights:
            for name in weights.keys():  # noqa: SIM118 (not a dict)
                if unread(name):
                    skipped.append(name)
                    continue
                _check(path, name, weights.get_slice(name), wanted)
                tensor = weights.get_tensor(name)
                if tensor.is_floating_point():
                    tensor = tensor.to(torch.float32 if name in buffers else dtype)
                tensors[name.removeprefix(prefix)] = tensor
    missing = [name for name in wanted if name.removeprefix(prefix) not in tensors]
    if missing:
        raise ModelError(f"{folder} lacks {_some(missing)}", _AGAIN)
    module.requires_grad_(False).eval()
    module.load_state_dict(tensors, assign=True)
    _check_complete(module)
    return tuple(sorted(skipped))


@contextmanager
def _opened(path: Path, device: torch.device) -> Iterator[Any]:
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
    if (found.get_dtype() in _FLOATS) != place.is_floating_point():
        raise ModelError(
            f"{path}: {name} is stored as {found.get_dtype()}, which klein cannot read",
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
