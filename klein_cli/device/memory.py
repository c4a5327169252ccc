"""Memory that has run out: how it is known, and how what is not needed is given back."""

from __future__ import annotations

import gc
import re

import torch

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
    torch.cuda.empty_cache()
