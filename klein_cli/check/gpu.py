"""The GPU, its driver and torch: whether the three fit together, and what to do if they don't.

The driver is asked by nvidia-smi, which answers also where torch cannot even be imported.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import Any

from klein_cli.check.finding import BAD, NOTE, OK, Finding
from klein_cli.device.architectures import built_for

_GIGABYTE = 10**9
_MEGABYTE = 2**20
_ASKED = "name,driver_version,memory.total,memory.free,compute_cap"
_SECONDS = 10
_INSTALL = "https://pytorch.org/get-started/locally/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU as the driver or torch names it. Memory in bytes; `capability` as in (9, 0)."""

    name: str
    driver: str
    total: int
    free: int
    capability: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
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
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if done.returncode or not lines:
        return Driver(
            error=lines[0].strip() if lines else f"nvidia-smi ends with {done.returncode}"
        )
    try:
        return Driver(gpus=tuple(_gpu(line) for line in done.stdout.splitlines() if line.strip()))
    except ValueError:
        return Driver(error=f"nvidia-smi says {lines[0].strip()[:80]!r}")


def judge_gpu(found: Driver, torch: dict[str, Any], wanted_gb: float) -> Finding:
    """The GPUs and their free memory; `wanted_gb` is what the everyday model's weights take.

    `torch` are the facts of `check.probes`, {} if there are none.
    """
    gpus = found.gpus or tuple(
        Gpu(driver="", **{**gpu, "capability": tuple(gpu["capability"])})
        for gpu in torch.get("gpus", ())
    )
    if found.error and not gpus:
        return Finding(
            name="GPU",
            state=BAD,
            said=f"the driver is out of order: {found.error}",
            hint="restart the machine; if that does not help, install the NVIDIA driver again",
        )
    if not gpus:
        return Finding(
            name="GPU",
            state=NOTE,
            said="no NVIDIA GPU: tiny needs none, the other models are slow without one",
        )
    said = "; ".join(
        f"{gpu.name}, {gpu.free / _GIGABYTE:.0f} of {gpu.total / _GIGABYTE:.0f} GB free"
        for gpu in gpus
    )
    if gpus[0].driver:
        said += f", driver {gpus[0].driver}"
    data = {"gpus": [_as_json(gpu) for gpu in gpus], "driver": gpus[0].driver}
    if max(gpu.free for gpu in gpus) < wanted_gb * _GIGABYTE:
        enough = max(gpu.total for gpu in gpus) >= wanted_gb * _GIGABYTE
        hint = (
            "close the programs that use it: nvidia-smi lists them"
            if enough
            else "klein-4b will not fit; tiny does"
        )
        said += f"; klein-4b's weights take {wanted_gb:g} GB"
        return Finding(name="GPU", state=NOTE, said=said, hint=hint, data=data)
    return Finding(name="GPU", state=OK, said=said, data=data)


def judge_torch(found: Driver, torch: dict[str, Any]) -> Finding:
    """Whether torch can be imported, and fits the GPU and its driver."""
    if error := torch.get("error"):
        return Finding(
            name="torch",
            state=BAD,
            said=f"cannot be imported: {error}",
            hint=f"install it again, as {_INSTALL} says",
        )
    version, cuda = torch["version"], torch["cuda"]
    data = {key: value for key, value in torch.items() if key not in ("gpus", "kind")}
    if torch["available"]:
        return _judge_architecture(torch, data)
    if torch["hip"]:
        said = f"{version}, for AMD, and finds no GPU; klein has not been tried on AMD"
        return Finding(name="torch", state=NOTE, said=said, data=data)
    if not found.gpus:
        built = f"built for CUDA {cuda}" if cuda else "the CPU build"
        said = f"{version}, {built}, {torch['threads']} threads"
        return Finding(name="torch", state=OK, said=said, data=data)
    if cuda is None:
        return Finding(
            name="torch",
            state=BAD,
            said=f"{version} is the CPU build, and there is a {found.gpus[0].name}",
            hint=f"install the CUDA build, as {_INSTALL} says",
            data=data,
        )
    why = torch.get("why") or "it does not say why"
    return Finding(
        name="torch",
        state=BAD,
        said=f"{version} is built for CUDA {cuda} and cannot use the GPU: {why}",
        hint=f"update the driver ({found.gpus[0].driver}), or install a torch for an older CUDA; "
        "see that CUDA_VISIBLE_DEVICES does not hide the GPU",
        data=data,
    )


def _judge_architecture(torch: dict[str, Any], data: dict[str, Any]) -> Finding:
    """A GPU newer or older than all that torch was compiled for fails at the first kernel."""
    said = f"{torch['version']}, CUDA {torch['cuda'] or torch['hip']}, cuDNN {torch.get('cudnn')}"
    for gpu in torch["gpus"]:
        major, minor = gpu["capability"]
        if torch["built for"] and not built_for((major, minor), torch["built for"]):
            return Finding(
                name="torch",
                state=BAD,
                said=f"{torch['version']} holds no code for the {gpu['name']} (sm_{major}{minor})",
                hint=f"install a torch that does, as {_INSTALL} says",
                data=data,
            )
    return Finding(name="torch", state=OK, said=said, data=data)


def _gpu(line: str) -> Gpu:
    name, version, total, free, capability = (cell.strip() for cell in line.rsplit(",", 4))
    major, _, minor = capability.partition(".")
    return Gpu(
        name=name,
        driver=version,
        total=int(total) * _MEGABYTE,
        free=int(free) * _MEGABYTE,
        capability=(int(major), int(minor)),
    )


def _as_json(gpu: Gpu) -> dict[str, Any]:
    return {
        "name": gpu.name,
        "total": gpu.total,
        "free": gpu.free,
        "capability": list(gpu.capability),
    }
