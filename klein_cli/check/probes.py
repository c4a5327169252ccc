"""What only torch can tell of this machine: `klein doctor` runs it in a process of its own.

A broken torch does not only raise: it crashes, or it hangs. So each probe says its name before it
begins and what it found when it ends, and whoever listens knows what was going on when the messages
stopped. Imports torch and what needs it only after having said so.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from klein_cli.check.finding import SKIPPED, Finding, guarded
from klein_cli.errors import first_line

Tell = Callable[[str, Any], None]
"""Takes a kind of message and what it says: "begin" a name, "facts" a dict, "finding" a Finding."""


def run(tell: Tell) -> None:
    """Tell torch's facts, and what each probe finds."""
    # What the imports make stays: looking through it takes a fifth of their time.
    gc.disable()
    tell("begin", "torch")
    try:
        facts = torch_facts()
    except BaseException as error:
        tell("facts", {"error": f"{type(error).__name__}: {first_line(error)}"})
        return
    tell("facts", facts)
    for name, probe in _probes("cuda" if facts["available"] else "cpu"):
        tell("begin", name)
        tell("finding", guarded(name, probe))


def torch_facts() -> dict[str, Any]:
    """What torch was built for and what it sees. Raises whatever its import raises."""
    import torch

    from klein_cli.device.device import cuda_devices, device_for, why_no_gpu

    gpus = cuda_devices()
    facts: dict[str, Any] = {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "available": bool(gpus),
        "mps": torch.backends.mps.is_available(),
        "built for": torch.cuda.get_arch_list() if torch.version.cuda else [],
        "threads": torch.get_num_threads(),
        "gpus": [],
    }
    if not gpus:
        return facts | {"why": why_no_gpu()[0]}
    try:
        for index in range(gpus):
            memory = device_for(f"cuda:{index}").memory()
            facts["gpus"].append(
                {
                    "name": torch.cuda.get_device_name(index),
                    "capability": list(torch.cuda.get_device_capability(index)),
                    **(memory._asdict() if memory else {}),
                }
            )
    except RuntimeError as error:
        # Another program has it for itself, or its memory is full.
        return facts | {"available": False, "why": first_line(error)}
    cudnn: Any = torch.backends.cudnn
    return facts | {"cudnn": cudnn.version()}


def _probes(device: str) -> Iterator[tuple[str, Callable[[], Finding]]]:
    import torch

    from klein_cli.check import backends

    for name in backends.BACKENDS:
        yield name, partial(backends.attention, name, torch.device(device))
    if device == "cuda":
        yield "cuDNN attention", backends.cudnn_attention
        yield "triton", backends.triton
        yield "fp8", backends.fp8
    else:
        said = "not tried: there is no GPU to use"
        yield "GPU kernels", partial(Finding, "GPU kernels", SKIPPED, said)

    from klein_cli.check import embedded

    yield "mask", embedded.mask
    yield "picture", embedded.image
    yield "edit", embedded.edited
    if device == "cuda":
        yield "picture on the GPU", embedded.image_on_gpu
        yield "edit on the GPU", embedded.edited_on_gpu
