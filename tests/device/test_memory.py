"""Out of memory, in the words of all who say so."""

from __future__ import annotations

import pytest
import torch

from klein_cli.device.memory import check_room, is_out_of_memory
from klein_cli.errors import OutOfMemoryError


def test_a_host_without_memory_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("could not create a primitive descriptor"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("shapes do not fit"), False),
        (ValueError("out of memory"), False),
    ],
    ids=str,
)
def test_it_is_told_from_other_errors(error: Exception, is_it: bool) -> None:
    assert is_out_of_memory(error) == is_it


def test_what_does_not_fit_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch holds without using it counts as free; of a CPU nothing is known."""
    for name, value in (("memory_reserved", 5), ("memory_allocated", 3)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value * 10**9)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * 10**9, 10**10))
    check_room(6 * 10**9, torch.device("cuda"), "the keys")
    check_room(7 * 10**9, torch.device("cpu"), "the keys")
    with pytest.raises(OutOfMemoryError, match=r"the keys take 7\.0 GB, and 6\.0 GB are free"):
        check_room(7 * 10**9, torch.device("cuda"), "the keys")
