"""Medians and quartiles, synchronised seconds, and whose bytes are whose."""

from __future__ import annotations

import time

import pytest
import torch

from klein_cli.bench.measure import Memory, Spread, seconds_per_call, timed

CPU = torch.device("cpu")


def test_one_odd_sample_does_not_move_the_median() -> None:
    spread = Spread.of([5.0, 1.0, 2.0, 3.0, 1000.0])
    assert spread == Spread(median=3.0, low=2.0, high=5.0, runs=5)


def test_one_sample_is_its_own_spread() -> None:
    assert Spread.of([2.0]) == Spread(median=2.0, low=2.0, high=2.0, runs=1)


def test_a_call_is_timed_and_its_result_kept() -> None:
    result, seconds = timed(CPU, lambda word: (time.sleep(0.02), word)[1], "done")
    assert result == "done"
    assert 0.02 <= seconds < 2


def test_short_calls_are_timed_by_the_many() -> None:
    """A clock's own cost must not count: thousands of calls make one sample."""
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1

    spread = seconds_per_call(call, CPU, budget=0.0)
    assert spread.runs == 5
    assert calls > 1000
    assert 0 < spread.median < 1e-4


def test_a_long_call_is_a_sample_by_itself() -> None:
    spread = seconds_per_call(lambda: time.sleep(0.03), CPU, budget=0.0)
    assert spread.runs == 5
    assert 0.03 <= spread.low <= spread.median <= spread.high


def test_nothing_is_known_of_a_cpus_memory() -> None:
    memory = Memory(CPU)
    with memory.watch() as peak:
        torch.ones(1000)
    assert (memory.known, peak, memory.held, memory.reserved) == (False, [], 0, 0)


def test_what_two_sides_share_counts_for_each() -> None:
    memory = Memory(CPU)
    memory.share(100)
    memory.share(20)
    assert (memory.held, memory.reserved) == (120, 120)


class FakeCuda:
    """An allocator in which another side has reserved 150 bytes and uses 100."""

    allocated = most = 100
    reserved = 150

    def memory_allocated(self, _: object) -> int:
        return self.allocated

    def max_memory_allocated(self, _: object) -> int:
        return self.most

    def memory_reserved(self, _: object) -> int:
        return self.reserved

    max_memory_reserved = memory_reserved

    def synchronize(self, *_: object) -> None: ...

    reset_peak_memory_stats = empty_cache = synchronize


def test_work_in_anothers_gap_counts_as_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    monkeypatch.setattr(torch, "cuda", cuda)
    memory = Memory(torch.device("cuda"))
    with memory.watch() as peak:
        cuda.most, cuda.allocated = 140, 110
    assert (peak, memory.held, memory.reserved) == ([40], 10, 40)


@pytest.mark.gpu
def test_two_sides_on_one_gpu_are_told_apart() -> None:
    """Each side's peak is what it holds and needs, whatever the other has there."""
    device, mib = torch.device("cuda"), 1 << 20

    def bytes_(count: int) -> torch.Tensor:
        return torch.empty(count * mib, dtype=torch.uint8, device=device)

    first, second = Memory(device), Memory(device)
    with first.watch():
        ours = bytes_(64)
    with second.watch():
        theirs = bytes_(256)
    with first.watch() as peak:
        del_me = bytes_(32)
        del del_me
    assert peak == [96 * mib]
    assert (first.held, second.held) == (64 * mib, 256 * mib)
    assert first.reserved >= 96 * mib
    assert len(ours) + len(theirs) == 320 * mib
