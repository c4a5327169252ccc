"""What this machine can do: Settings with every `auto` decided, and a record of what computed.

Choices follow from the machine, the versions and the flags alone, never from a run's length, its
timing or the memory that happens to be free.
"""

from __future__ import annotations

import os
import platform
import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch

from klein_cli import __version__
from klein_cli.device.architectures import built_for
from klein_cli.device.device import INSTALL_TORCH, Device, cuda_devices, device_for, why_no_gpu
from klein_cli.device.packages import check_official
from klein_cli.errors import ModelError, UsageError
from klein_cli.models.attention import attention_backend
from klein_cli.presets import Preset
from klein_cli.settings import Settings

_OLDEST_FOR_TRITON = (8, 0)
_OLDEST_FOR_FP8 = (8, 9)


def choose(settings: Settings, preset: Preset | None = None) -> Settings:
    """`settings` with every "auto" decided for this machine.

    Raises UsageError for a combination that cannot run here, ModelError when `preset` is a
    full-size model, no device was asked for and there is no GPU.
    """
    device = _device(settings.device, preset)
    if settings.engine == "diffusers":
        check_official("--engine diffusers")
    dtype = device.default_dtype if settings.dtype == "auto" else settings.dtype
    attention = "sdpa" if settings.attention == "auto" else settings.attention
    attention_backend(attention, device.torch_device, torch_dtype(dtype))
    if settings.rng not in ("cpu", device.kind):
        raise UsageError("--rng cuda needs the images to be made on a GPU", "use --rng cpu")
    if settings.quantize == "fp8":
        _check_fp8(device, dtype, settings.engine)
    return settings.with_(
        device=device.name,
        dtype=dtype,
        attention=attention,
        kernels=_kernels(settings.kernels, device),
    )


def _triton_version() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:  # there are builds of other names
        import triton

        return str(triton.__version__)


def without_triton(device: Device) -> str | None:
    """Why Triton's kernels cannot run on a device; None if nothing is known against it."""
    if not device.triton:
        return "Triton's kernels need an NVIDIA GPU"
    if torch.version.cuda is None:
        return "Triton's kernels are tried with CUDA only"
    if torch.cuda.get_device_capability(device.torch_device) < _OLDEST_FOR_TRITON:
        return f"{torch.cuda.get_device_name(device.torch_device)} is too old for Triton's kernels"
    if find_spec("triton") is None:
        return "Triton is not installed"
    # Triton builds its launcher on each machine, once.
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton finds no C compiler"
    if not Path(_headers(), "Python.h").is_file():
        return "Triton finds no Python.h"
    return None


def _headers() -> str:
    """Where Triton looks for Python's own headers."""
    scheme = sysconfig.get_default_scheme()
    # Debian's scheme for what users install has no headers.
    return sysconfig.get_path("include", "posix_prefix" if scheme == "posix_local" else scheme)


def missing_speedups(settings: Settings) -> list[str]:
    """What would be quicker, and why it is off, for settings that `choose` has decided."""
    device = device_for(settings.device)
    if not device.triton:
        return []
    off = []
    if settings.kernels == "torch":
        reason = without_triton(device) or "--kernels torch"
        off.append(f"fused kernels ({reason})")
    if settings.attention == "flash-attn":
        off.append("the text encoder's CUDA graph (--attention flash-attn)")
    if settings.engine == "diffusers":
        off.append("fused kernels and CUDA graphs of transformer and VAE (--engine diffusers)")
    return off


def torch_dtype(name: str) -> torch.dtype:
    """The dtype that Settings calls "bfloat16", "float16" or "float32"."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def provenance(settings: Settings) -> dict[str, str]:
    """What besides the recipe can change a bit of an image: versions, device, threads."""
    record = {"klein": __version__, "torch": torch.__version__}
    with suppress(PackageNotFoundError):  # the native engine does without
        record["diffusers"] = version("diffusers")
    record |= {"tokenizers": version("tokenizers"), "python": platform.python_version()}
    if settings.attention == "flash-attn":
        record["flash-attn"] = version("flash-attn")
    if settings.kernels == "triton":
        record["triton"] = _triton_version()
    return record | device_for(settings.device).provenance()


@contextmanager
def no_tf32() -> Iterator[None]:
    """Keep float32 convolutions in float32 on CUDA, where torch would take TF32 by default."""
    with torch.backends.cudnn.flags(
        enabled=torch.backends.cudnn.enabled,
        benchmark=torch.backends.cudnn.benchmark,
        deterministic=torch.backends.cudnn.deterministic,
        allow_tf32=False,
    ):
        yield


def _kernels(wanted: str, device: Device) -> str:
    reason = without_triton(device)
    if wanted == "triton" and reason:
        raise UsageError(f"--kernels triton is not available: {reason}", "use --kernels torch")
    return "torch" if wanted == "torch" or reason else "triton"


def _check_fp8(device: Device, dtype: str, engine: str) -> None:
    without = "use --quantize none"
    if engine != "native":
        raise UsageError(
            "--quantize fp8 is for the native engine", "use --engine native, or --quantize none"
        )
    if not device.fp8:
        raise UsageError("--quantize fp8 needs an NVIDIA GPU", without)
    if torch.cuda.get_device_capability(device.torch_device) < _OLDEST_FOR_FP8:
        raise UsageError(
            f"{torch.cuda.get_device_name(device.torch_device)} cannot compute in fp8: that takes "
            "an NVIDIA GPU of compute capability 8.9 or more (Ada, Hopper, Blackwell)",
            without,
        )
    if dtype != "bfloat16":
        raise UsageError(
            f"--quantize fp8 goes with --dtype bfloat16, not {dtype}",
            "leave out --dtype, or use --quantize none",
        )


def _device(name: str, preset: Preset | None) -> Device:
    if name == "auto":
        name = _any_device(preset)
    device = device_for(name)
    if device.kind == "cuda":
        _check_cuda(device)
    if device.kind == "mps" and not torch.backends.mps.is_available():
        raise UsageError(
            "--device mps is not available: torch finds no Mac's GPU", "use --device cpu"
        )
    return device


def _any_device(preset: Preset | None) -> str:
    """A GPU if there is one. On a Mac the CPU, until klein has been tried on its GPU."""
    if cuda_devices():
        return "cuda"
    if preset is not None and preset.repo:
        also = "--device mps (untested), " if torch.backends.mps.is_available() else ""
        raise ModelError(
            f"no GPU was found ({why_no_gpu()[0]}), and {preset.name} takes minutes an image "
            "without one",
            f"use --model tiny, {also}or --device cpu if you have the time and the memory",
        )
    return "cpu"


def _check_cuda(device: Device) -> None:
    gpus = cuda_devices()
    if not gpus:
        why, todo = why_no_gpu()
        raise UsageError(
            f"--device {device.name} is not available: {why}", f"{todo}, or use --device cpu"
        )
    if (device.torch_device.index or 0) >= gpus:
        known = ", ".join(f"cuda:{number}" for number in range(gpus))
        raise UsageError(f"{device.name} is not available", f"use {known}")
    major, minor = torch.cuda.get_device_capability(device.torch_device)
    if not built_for((major, minor), torch.cuda.get_arch_list()):
        name = torch.cuda.get_device_name(device.torch_device)
        raise UsageError(
            f"torch {torch.__version__} is not built for {name} "
            f"(compute capability {major}.{minor})",
            f"install one that is: {INSTALL_TORCH}, or use --device cpu",
        )
