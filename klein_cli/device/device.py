"""The kinds of device that klein computes on: a class each, with all that differs between them.

Importing this imports no torch, and `device_for` does not either: the methods do that need it.
"""

from __future__ import annotations

import platform
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

if TYPE_CHECKING:
    import torch

INSTALL_TORCH = "https://pytorch.org/get-started/locally/"


class Memory(NamedTuple):
    """A device's memory in bytes, other programs' share counted as used."""

    free: int
    total: int


class Device:
    """One device, by the name that torch and `Settings.device` give it ("cuda:1", "cpu").

    The class attributes hold for its whole kind, and their defaults are the cautious ones.
    """

    kind: ClassVar[str]
    default_dtype: ClassVar[str] = "float32"
    """What `--dtype auto` means."""
    is_gpu: ClassVar[bool] = False
    one_by_one: ClassVar[bool] = True
    """Whether a batch's images are computed one at a time: where a product's rounding depends on
    how many rows it has, an image would depend on its batch otherwise."""
    rope_on_host: ClassVar[bool] = False
    """Whether rotary tables are made on the CPU, because the device has no float64."""
    graphs: ClassVar[bool] = False
    """Whether a sequence of kernels can be captured and replayed."""
    triton: ClassVar[bool] = False
    fp8: ClassVar[bool] = False
    streams: ClassVar[bool] = False
    """Whether weights are copied through pinned memory while earlier work runs; elsewhere files are
    mapped, and read as they are needed."""
    counts_memory: ClassVar[bool] = False
    """Whether torch's allocator says how much it held at most."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    @property
    def torch_device(self) -> torch.device:
        """The device as torch takes it."""
        import torch

        return torch.device(self.name)

    def current(self) -> AbstractContextManager[Any]:
        """A context in which the device is torch's current one of its kind."""
        return nullcontext()

    def synchronize(self) -> None:
        """Wait for all that the device was asked to do."""
        if self.is_gpu:
            import torch

            torch.accelerator.synchronize(self.torch_device)

    def memory(self) -> Memory | None:
        """What is free and what there is; None where torch does not say."""
        return None

    def provenance(self) -> dict[str, str]:
        """What of the device can change a bit of an image."""
        raise NotImplementedError


class Cpu(Device):
    """The host's own processor."""

    kind = "cpu"

    def provenance(self) -> dict[str, str]:
        """The processor's kind, the instructions torch uses of it, and its threads."""
        import torch

        return {
            "device name": platform.machine(),
            "cpu capability": torch.backends.cpu.get_cpu_capability(),
            "threads": str(torch.get_num_threads()),
        }


class Cuda(Device):
    """An NVIDIA GPU."""

    kind = "cuda"
    default_dtype = "bfloat16"
    is_gpu = True
    one_by_one = False
    graphs = True
    triton = True
    fp8 = True
    streams = True
    counts_memory = True

    def current(self) -> AbstractContextManager[Any]:
        """A context in which this GPU is torch's current one."""
        import torch

        return torch.cuda.device(self.torch_device)

    def memory(self) -> Memory:
        """What the driver says; it counts what other programs use."""
        import torch

        return Memory(*torch.cuda.mem_get_info(self.torch_device))

    def provenance(self) -> dict[str, str]:
        """The GPU's name, and the CUDA and cuDNN that torch uses."""
        import torch

        cudnn: Any = torch.backends.cudnn
        return {
            "device name": torch.cuda.get_device_name(self.torch_device),
            "cuda": str(torch.version.cuda),
            "cudnn": str(cudnn.version()),
        }


class Mps(Device):
    """The GPU of a Mac. Nobody has tried klein on one yet: only this table has tests."""

    kind = "mps"
    default_dtype = "bfloat16"
    is_gpu = True
    rope_on_host = True

    def memory(self) -> Memory:
        """What the system recommends to use at most, less what this process has taken."""
        import torch

        total = torch.mps.recommended_max_memory()
        return Memory(max(0, total - torch.mps.driver_allocated_memory()), total)

    def provenance(self) -> dict[str, str]:
        """The processor's kind and the version of macOS, whose kernels compute."""
        return {"device name": platform.machine(), "macos": platform.mac_ver()[0]}


KINDS: dict[str, type[Device]] = {kind.kind: kind for kind in (Cuda, Cpu, Mps)}
"""Every kind of device, by torch's name for it."""


def device_for(name: str | torch.device) -> Device:
    """The device of that name, as in decided `Settings.device`; whether it is here is not asked."""
    name = str(name)
    return KINDS[name.partition(":")[0]](name)


def cuda_devices() -> int:
    """How many NVIDIA GPUs torch can use."""
    import torch

    with warnings.catch_warnings():
        # torch warns of a driver that is too old; `why_no_gpu` says so where it matters.
        warnings.simplefilter("ignore")
        return torch.cuda.device_count() if torch.cuda.is_available() else 0


def why_no_gpu() -> tuple[str, str]:
    """Why torch can use no NVIDIA GPU, in its own words, and what to do about it."""
    import torch

    if torch.version.cuda is None:
        reason = f"torch {torch.__version__} is built without CUDA"
        return reason, f"install another: {INSTALL_TORCH}"
    try:
        init: Any = torch.cuda.init
        init()
    except (AssertionError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0].partition(". ")[0]
        return reason, f"see what nvidia-smi says, or get a torch for your driver: {INSTALL_TORCH}"
    return "torch finds none", "see what nvidia-smi says"
