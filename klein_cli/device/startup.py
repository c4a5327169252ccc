"""What makes a command start and end sooner. None of it changes a number."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_DRIVER = "libcuda.so.1"
_CHUNK = 8 * 2**20


@contextmanager
def quick_start() -> Iterator[None]:
    """For the imports of torch and diffusers, and the loading of a model.

    OpenMP is told, before it starts, that its idle threads sleep: by default they spin, and a
    image takes several times as long on a CPU that is shared with anything else. And the garbage
    collector rests: the imports make 400,000 objects that stay, and looking through them takes a
    fifth of the time of the imports, and a second more when Python ends.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    atexit.register(freeze_imports)
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def freeze_imports() -> None:
    """What has been imported so far stays: the garbage collector need not look at it again.

    Not with Triton among it, whose bindings tell of each object that is not freed at the end; and
    once only, since there may be a model by the next time.
    """
    if "triton" not in sys.modules and not gc.get_freeze_count():
        gc.freeze()


def child_environment() -> dict[str, str]:
    """The variables for a process of klein's own: this one's, with the same modules as here."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}


def wake_gpu(device: str) -> None:
    """Let the driver prepare a GPU while torch is imported, which takes longer.

    torch then finds it awake: the driver shares one context among all who ask. On a machine
    without an NVIDIA driver nothing happens, and torch will say so.
    """
    if not _may_be_nvidia(device):
        return
    number = int(device.partition(":")[2] or 0)
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")  # as torch would, were it first
    threading.Thread(target=_wake, args=(number,), daemon=True, name="klein-wake").start()


def _may_be_nvidia(device: str) -> bool:
    """Whether `Settings.device`, not yet decided, is or may become an NVIDIA GPU."""
    return device.partition(":")[0] in ("auto", "cuda")


def _wake(number: int) -> None:
    with contextlib.suppress(OSError):
        driver = ctypes.CDLL(_DRIVER)
        gpu, context = ctypes.c_int(), ctypes.c_void_p()
        if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(gpu), number) == 0:
            driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), gpu)


def read_ahead(paths: Sequence[Path], device: str) -> None:
    """Bring files of weights from the disk into memory while torch is imported, if on a GPU.

    What is there already is not read again. On a CPU the weights are mapped, and read as needed.
    """
    if not _may_be_nvidia(device) or not hasattr(os, "RWF_NOWAIT"):
        return
    threading.Thread(target=_read_all, args=(list(paths),), daemon=True, name="klein-ahead").start()


def _read_all(paths: list[Path]) -> None:
    buffer = bytearray(_CHUNK)
    for path in paths:
        with contextlib.suppress(OSError), path.open("rb", buffering=0) as file:
            for offset in range(0, os.fstat(file.fileno()).st_size, _CHUNK):
                if not _in_memory(file.fileno(), offset):
                    os.preadv(file.fileno(), [buffer], offset)


def _in_memory(file: int, offset: int) -> bool:
    """Whether a file's first byte from `offset` on can be had without the disk."""
    try:
        return bool(os.preadv(file, [bytearray(1)], offset, os.RWF_NOWAIT))
    except OSError:
        return False


def count_gpus() -> int:
    """How many NVIDIA GPUs this process may use, without torch and without a context on any."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return 0
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value
