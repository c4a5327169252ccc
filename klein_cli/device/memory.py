"""Memory that has run out: how it is known, and how what is not needed is given back."""

from __future__ import annotations

import gc
import re

import torch

from klein_cli.errors import OutOfMemoryError
from klein_cli.presets import GIGABYTE

_NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory"
    # cuBLAS and cuDNN, of which the CUDA driver would not have more.
    r"|ALLOC_FAILED|ALLOCATION_FAILED"
    # oneDNN, on a CPU that has no memory for a convolution.
    r"|could not create a primitive$",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or Python means that there is no memory left, on any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error)))


def release_memory() -> None:
    """Give back what nothing uses any more, so that a smaller try finds it in one piece."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def check_room(needed: int, device: torch.device, what: str) -> None:
    """Raise OutOfMemoryError where a GPU has not so many bytes free for `what`."""
    if device.type != "cuda":
        return
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + unused
    if needed > free:
        raise OutOfMemoryError(
            f"{what} take {needed / GIGABYTE:.1f} GB, and {free / GIGABYTE:.1f} GB are free",
            "use fewer or smaller images, or a smaller model",
        )
