"""What only torch can tell of this machine: run by `klein doctor` in a process of its own.

    python -m klein_cli.check.probes

A broken torch does not only raise: it crashes, or it hangs. So each probe says its name before it
begins and a line of JSON when it ends, and whoever listens knows what was going on when the lines
stopped. Imports torch and what needs it only after having said so.
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

from klein_cli.check.finding import BAD, SKIPPED, Finding
from klein_cli.errors import KleinError

PREFIX = "klein-probe "


def main() -> int:
    """Run every probe, each result a line on standard output."""
    # What the imports make stays: looking through it takes a fifth of their time.
    gc.disable()
    _tell("begin", name="torch")
    try:
        facts = torch_facts()
    except BaseException as error:
        _tell("facts", error=f"{type(error).__name__}: {_first_line(error)}")
        return 0
    _tell("facts", **facts)
    for name, probe in _probes("cuda" if facts["available"] else "cpu"):
        _tell("begin", name=name)
        try:
            finding = probe()
        except KleinError as error:
            finding = Finding(name=name, state=BAD, said=error.message, hint=error.hint)
        except Exception as error:
            said = f"{type(error).__name__}: {_first_line(error)}"
            finding = Finding(name=name, state=BAD, said=said, hint="report it, with --json")
        _tell("finding", **asdict(finding))
    return 0


def torch_facts() -> dict[str, Any]:
    """What torch was built for and what it sees. Raises whatever its import raises."""
    import torch

    available = torch.cuda.is_available()
    facts: dict[str, Any] = {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "available": available,
        "built for": torch.cuda.get_arch_list() if torch.version.cuda else [],
        "threads": torch.get_num_threads(),
        "gpus": [],
    }
    if not available:
        facts["why"] = _why_no_cuda()
        return facts
    try:
        facts["gpus"] = [_gpu(index) for index in range(torch.cuda.device_count())]
    except RuntimeError as error:
        # Another program has it for itself, or its memory is full.
        return facts | {"available": False, "why": _first_line(error)}
    cudnn: Any = torch.backends.cudnn
    facts["cudnn"] = cudnn.version()
    return facts


def _gpu(index: int) -> dict[str, Any]:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    return {
        "name": torch.cuda.get_device_name(index),
        "capability": list(torch.cuda.get_device_capability(index)),
        "free": free,
        "total": total,
    }


def _why_no_cuda() -> str:
    """What torch says when it is made to start CUDA; "" where it was built without."""
    import torch

    if torch.version.cuda is None:
        return ""
    try:
        cuda: Any = torch.cuda
        cuda.init()
    except (RuntimeError, AssertionError) as error:
        return _first_line(error)
    return ""


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
        yield "GPU kernels", partial(Finding, name="GPU kernels", state=SKIPPED, said=said)

    from klein_cli.check import embedded

    yield "mask", embedded.mask
    yield "picture", embedded.picture
    if device == "cuda":
        yield "picture on the GPU", embedded.picture_on_gpu


def _tell(kind: str, **said: Any) -> None:
    # Libraries print what they like on the same stream: ours begins a line of its own.
    sys.stdout.write(f"\n{PREFIX}{json.dumps({'kind': kind, **said})}\n")
    sys.stdout.flush()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        code = main()
        gc.freeze()
        sys.exit(code)
