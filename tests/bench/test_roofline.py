"""Ceilings are measured, and the limit is arithmetic on them."""

from __future__ import annotations

import pytest
import torch

from klein_cli.bench.flops import Flops, Model
from klein_cli.bench.measure import Spread
from klein_cli.bench.roofline import Ceiling, ceilings, limits
from klein_cli.checkpoints.resolve import resolve

TINY = Model.of(resolve("tiny"))
WORK = Flops(encode=10, dit_linears=400, dit_attention=80, decode=20)
NO_TIME = Spread.of([1.0])


def ceiling(kind: str, rate: float) -> Ceiling:
    return Ceiling(kind=kind, shape="", rate=rate, seconds=NO_TIME)


def test_every_rate_is_its_work_over_its_time() -> None:
    found, left_out = ceilings(TINY, 544, torch.device("cpu"), torch.float32, budget=0.0)
    assert [c.kind for c in found] == ["copy", "matmul", "matmul", "attention"]
    copy, _, linear, attention = found
    assert copy.rate * copy.seconds.median == pytest.approx(2 * (1 << 28))
    rows, inner, columns = map(int, linear.shape.split("x"))
    assert (rows, inner, columns) == (544, *TINY.widest_linear)
    assert linear.rate * linear.seconds.median == pytest.approx(2 * rows * inner * columns)
    width = TINY.dit.width
    assert attention.rate * attention.seconds.median == pytest.approx(4 * 544 * 544 * width)
    assert list(left_out) == ["the fp8 ceiling"]


def test_the_limit_is_all_work_at_the_best_rate() -> None:
    found = [ceiling("copy", 9e9), ceiling("matmul", 5.0), ceiling("matmul", 10.0)]
    (limit,) = limits(WORK, 4, found, "float32").values()
    times = {"encode": 1.0, "step": 12.0, "denoise": 48.0, "decode": 2.0, "picture": 51.0}
    assert limit == times


def test_fp8_quickens_the_linears_of_the_dit_alone() -> None:
    found = [ceiling("matmul", 10.0), ceiling("fp8", 20.0), ceiling("attention", 99.0)]
    by_name = limits(WORK, 4, found, "bfloat16")
    assert by_name["bfloat16"]["picture"] == 51.0
    assert by_name["fp8"]["picture"] == 31.0


@pytest.mark.gpu
def test_a_gpu_has_more_of_them() -> None:
    """fp8 where there are such units; attention by whichever kernel is quickest."""
    found, left_out = ceilings(TINY, 768, torch.device("cuda"), torch.bfloat16, budget=0.05)
    kinds = {c.kind for c in found}
    fp8 = torch.cuda.get_device_capability() >= (8, 9)
    assert ("fp8" in kinds) == fp8
    assert bool(left_out) != fp8
    assert all(c.rate > 1e9 for c in found)
