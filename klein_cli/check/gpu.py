"""The GPU, its driver and torch: whether the three fit together, and what to do if they don't.

The driver is asked by nvidia-smi, which answers also where torch cannot even be imported.
"""

from __future__ import annotations

import subprocess
from typing import Any, NamedTuple

from klein_cli.check.finding import BAD, NOTE, OK, Finding
from klein_cli.device.architectures import built_for
from klein_cli.device.device import INSTALL_TORCH
from klein_cli.presets import GIGABYTE

_MEBIBYTE = 2**20
_ASKED = "name,driver_version,memory.total,memory.free,compute_cap"
_SECONDS = 10


class Gpu(NamedTuple):
    """One GPU as the driver or torch names it. Memory in bytes; `capability` as in (9, 0)."""

    name: str
    total: int
    free: int
    capability: tuple[int, int]
    driver: str = ""


class Driver(NamedTuple):
    """What nvidia-smi says: the GPUs, or why it cannot tell; neither where there is no driver."""

    gpus: tuple[Gpu, ...] = ()
    error: str = ""


def driver() -> Driver:
    """Ask nvidia-smi."""
    command = ["nvidia-smi", f"--query-gpu={_ASKED}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
        )
    except (FileNotFoundError, NotADirectoryError):
        return Driver()
    except subprocess.TimeoutExpired:
        return Driver(error=f"nvidia-smi does not answer within {_SECONDS} s")
    except OSError as error:
        return Driver(error=f"nvidia-smi cannot be run: {error.strerror}")
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if done.returncode or not lines:
        return Driver(error=lines[0] if lines else f"nvidia-smi ends with {done.returncode}")
    try:
        return Driver(tuple(_gpu(line) for line in done.stdout.splitlines() if line.strip()))
    except ValueError:
        return Driver(error=f"nvidia-smi says {lines[0][:80]!r}")


def _gpu(line: str) -> Gpu:
    name, version, total, free, capability = (cell.strip() for cell in line.rsplit(",", 4))
    major, _, minor = capability.partition(".")
    capable = int(major), int(minor)
    return Gpu(name, int(total) * _MEBIBYTE, int(free) * _MEBIBYTE, capable, version)


def check_gpu(found: Driver, torch: dict[str, Any], wanted_gb: float) -> Finding:
    """The GPUs and their free memory; `wanted_gb` is what the everyday model's weights take.

    `torch` are the facts of `check.probes`, {} if there are none.
    """
    gpus = found.gpus or tuple(Gpu(**gpu) for gpu in torch.get("gpus", ()))
    if found.error and not gpus:
        hint = "restart the machine; if that does not help, install the NVIDIA driver again"
        return Finding("GPU", BAD, f"the driver does not work: {found.error}", hint)
    if not gpus:
        said = "no NVIDIA GPU: tiny needs none, the other models are slow without one"
        if torch.get("mps"):
            said += "; --device mps uses this Mac's, which nobody has tried yet"
        return Finding("GPU", NOTE, said)
    said = "; ".join(
        f"{gpu.name}, {gpu.free / GIGABYTE:.0f} of {gpu.total / GIGABYTE:.0f} GB free"
        for gpu in gpus
    )
    version = gpus[0].driver
    said += f", driver {version}" if version else ""
    keys = ("name", "total", "free", "capability")
    data = {"gpus": [dict(zip(keys, gpu, strict=False)) for gpu in gpus], "driver": version}
    if max(gpu.free for gpu in gpus) >= wanted_gb * GIGABYTE:
        return Finding("GPU", OK, said, data=data)
    hint = "close the programs that use it: nvidia-smi lists them"
    if max(gpu.total for gpu in gpus) < wanted_gb * GIGABYTE:
        hint = "klein-4b will not fit; tiny does"
    return Finding("GPU", NOTE, f"{said}; klein-4b's weights take {wanted_gb:g} GB", hint, data)


def check_torch(found: Driver, torch: dict[str, Any]) -> Finding:
    """Whether torch can be imported, and fits the GPU and its driver."""
    if error := torch.get("error"):
        hint = f"install it again, as {INSTALL_TORCH} says"
        return Finding("torch", BAD, f"cannot be imported: {error}", hint)
    version, cuda = torch["version"], torch["cuda"]
    data = {key: value for key, value in torch.items() if key != "gpus"}
    if torch["available"]:
        return _judge_architecture(torch, data)
    if torch["hip"]:
        said = f"{version}, for AMD, and finds no GPU; klein has not been tried on AMD"
        return Finding("torch", NOTE, said, data=data)
    if not found.gpus:
        built = f"built for CUDA {cuda}" if cuda else "the CPU build"
        return Finding("torch", OK, f"{version}, {built}, {torch['threads']} threads", data=data)
    if cuda is None:
        said = f"{version} is the CPU build, and there is a {found.gpus[0].name}"
        hint = f"install the CUDA build, as {INSTALL_TORCH} says"
        return Finding("torch", BAD, said, hint, data)
    why = torch.get("why") or "it does not say why"
    said = f"{version} is built for CUDA {cuda} and cannot use the GPU: {why}"
    hint = (
        f"update the driver ({found.gpus[0].driver}), or install a torch for an older CUDA; "
        "see that CUDA_VISIBLE_DEVICES does not hide the GPU"
    )
    return Finding("torch", BAD, said, hint, data)


def _judge_architecture(torch: dict[str, Any], data: dict[str, Any]) -> Finding:
    """A GPU newer or older than all that torch was compiled for fails at the first kernel."""
    for gpu in torch["gpus"]:
        major, minor = gpu["capability"]
        if torch["built for"] and not built_for((major, minor), torch["built for"]):
            said = f"{torch['version']} holds no code for the {gpu['name']} (sm_{major}{minor})"
            hint = f"install a torch that does, as {INSTALL_TORCH} says"
            return Finding("torch", BAD, said, hint, data)
    said = f"{torch['version']}, CUDA {torch['cuda'] or torch['hip']}, cuDNN {torch.get('cudnn')}"
    return Finding("torch", OK, said, data=data)
