"""What this machine can do: Settings with every `auto` decided, and a record of what computed.

Choices follow from the machine, the versions and the flags alone, never from a run's length, its
timing or the memory that happens to be free.
"""

from __future__ import annotations

import os
import platform
import shutil
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from klein_cli import __version__
from klein_cli.device.architectures import built_for
from klein_cli.errors import ModelError, UsageError
from klein_cli.models.attention import attention_backend
from klein_cli.presets import Preset
from klein_cli.settings import Settings

_OLDEST_FOR_TRITON = (8, 0)
_OLDEST_FOR_FP8 = (8, 9)
_TORCH = "https://pytorch.org/get-started/locally/"


def choose(settings: Settings, preset: Preset | None = None) -> Settings:
    """`settings` with every "auto" decided for this machine.

    Raises UsageError for a combination that cannot run here, ModelError when `preset` is a
    full-size model, no device was asked for and there is no GPU.
    """
    device = _device(settings.device, preset)
    on_gpu = device.type == "cuda"
    dtype = settings.dtype
    if dtype == "auto":
        dtype = "bfloat16" if on_gpu else "float32"
    attention = "sdpa" if settings.attention == "auto" else settings.attention
    attention_backend(attention, device, torch_dtype(dtype))
    if settings.rng == "cuda" and not on_gpu:
        raise UsageError("--rng cuda needs the pictures to be made on a GPU", "use --rng cpu")
    if settings.quantize == "fp8":
        _check_fp8(device, dtype, settings.engine)
    return settings.with_(
        device=str(device),
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


def without_triton(device: torch.device) -> str | None:
    """Why Triton's kernels cannot run on a device; None if nothing is known against it."""
    if device.type != "cuda":
        return "Triton's kernels need a GPU"
    if torch.version.cuda is None:
        return "Triton's kernels are tried with CUDA only"
    if torch.cuda.get_device_capability(device) < _OLDEST_FOR_TRITON:
        return f"{torch.cuda.get_device_name(device)} is too old for Triton's kernels"
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


def left_out(settings: Settings) -> list[str]:
    """What would be quicker, and why it is off, for settings that `choose` has decided."""
    device = torch.device(settings.device)
    if device.type != "cuda":
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
    """What besides the recipe can change a bit of a picture: versions, device, threads."""
    device = torch.device(settings.device)
    record = {
        "klein": __version__,
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "tokenizers": version("tokenizers"),
        "python": platform.python_version(),
    }
    if settings.attention == "flash-attn":
        record["flash-attn"] = version("flash-attn")
    if settings.kernels == "triton":
        record["triton"] = _triton_version()
    if device.type == "cuda":
        record["device name"] = torch.cuda.get_device_name(device)
        record["cuda"] = str(torch.version.cuda)
        cudnn: Any = torch.backends.cudnn
        record["cudnn"] = str(cudnn.version())
    else:
        record["device name"] = platform.machine()
        record["cpu capability"] = torch.backends.cpu.get_cpu_capability()
        record["threads"] = str(torch.get_num_threads())
    return record


@contextmanager
def full_precision() -> Iterator[None]:
    """Keep float32 convolutions in float32 on CUDA, where torch would take TF32 by default."""
    with torch.backends.cudnn.flags(
        enabled=torch.backends.cudnn.enabled,
        benchmark=torch.backends.cudnn.benchmark,
        deterministic=torch.backends.cudnn.deterministic,
        allow_tf32=False,
    ):
        yield


def _kernels(wanted: str, device: torch.device) -> str:
    reason = without_triton(device)
    if wanted == "triton" and reason:
        raise UsageError(f"--kernels triton is not possible: {reason}", "use --kernels torch")
    return "torch" if wanted == "torch" or reason else "triton"


def _check_fp8(device: torch.device, dtype: str, engine: str) -> None:
    without = "use --quantize none"
    if engine != "native":
        raise UsageError(
            "--quantize fp8 is for the native engine", "use --engine native, or --quantize none"
        )
    if device.type != "cuda":
        raise UsageError("--quantize fp8 needs a GPU", without)
    if torch.cuda.get_device_capability(device) < _OLDEST_FOR_FP8:
        raise UsageError(
            f"{torch.cuda.get_device_name(device)} cannot compute in fp8: that takes an NVIDIA GPU "
            "of compute capability 8.9 or more (Ada, Hopper, Blackwell)",
            without,
        )
    if dtype != "bfloat16":
        raise UsageError(
            f"--quantize fp8 goes with --dtype bfloat16, not {dtype}",
            "leave out --dtype, or use --quantize none",
        )


def _device(name: str, preset: Preset | None) -> torch.device:
    if name == "cpu":
        return torch.device(name)
    gpus = _gpus()
    if name == "auto":
        if not gpus and preset is not None and preset.repo:
            raise ModelError(
                f"no GPU was found ({_why_no_gpu()[0]}), and {preset.name} takes minutes a picture "
                "without one",
                "use --model tiny, or --device cpu if you have the patience and the memory",
            )
        name = "cuda" if gpus else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not gpus:
        why, todo = _why_no_gpu()
        raise UsageError(f"--device {name} cannot be had: {why}", f"{todo}, or use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= gpus:
        known = ", ".join(f"cuda:{number}" for number in range(gpus))
        raise UsageError(f"there is no {name} here", f"use {known}")
    if device.type == "cuda":
        _check_built_for(device)
    return device


def _gpus() -> int:
    with warnings.catch_warnings():
        # torch warns of a driver that is too old; what it says is told where it matters.
        warnings.simplefilter("ignore")
        return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _why_no_gpu() -> tuple[str, str]:
    """What stands between torch and a GPU, in torch's own words, and what to do about it."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA", f"install another: {_TORCH}"
    try:
        init: Any = torch.cuda.init
        init()
    except (AssertionError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0].partition(". ")[0]
        return reason, f"see what nvidia-smi says, or get a torch for your driver: {_TORCH}"
    return "torch finds none", "see what nvidia-smi says"


def _check_built_for(device: torch.device) -> None:
    capability = torch.cuda.get_device_capability(device)
    if not built_for(capability, torch.cuda.get_arch_list()):
        major, minor = capability
        raise UsageError(
            f"torch {torch.__version__} is not built for {torch.cuda.get_device_name(device)} "
            f"(compute capability {major}.{minor})",
            f"install one that is: {_TORCH}, or use --device cpu",
        )
