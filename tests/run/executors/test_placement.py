"""Where images are drawn: what the two options mean together, and what is refused."""

from __future__ import annotations

import pytest

from klein_cli.errors import UsageError
from klein_cli.run.executors.placement import Placement


@pytest.mark.parametrize(
    ("workers", "ray", "meant"),
    [
        (None, None, Placement(workers=1)),
        ("1", None, Placement(workers=1)),
        ("03", None, Placement(workers=3)),
        ("auto", None, Placement(workers=None)),
        # A Ray that runs already says itself how many it has room for.
        (None, "auto", Placement(workers=None, ray="auto")),
        ("2", "auto", Placement(workers=2, ray="auto")),
    ],
)
def test_the_two_options_are_one_value(
    workers: str | None, ray: str | None, meant: Placement
) -> None:
    assert Placement.parse(workers, ray) == meant


def test_one_worker_is_this_process_but_for_a_ray() -> None:
    assert Placement.parse(None, None).single
    assert not Placement.parse("1", "auto").single
    assert not Placement.parse("auto", None).single


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", "", "²", "10000"])
def test_a_wrong_number_of_workers_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"--workers {text} is not valid"):
        Placement.parse(text, None)


@pytest.mark.parametrize(
    ("placement", "gpus", "images", "workers"),
    [
        (Placement(workers=None), 4, 100, 4),
        (Placement(workers=None), 0, 100, 1),
        (Placement(workers=None), 4, 3, 3),
        (Placement(workers=8), 0, 3, 3),
        (Placement(workers=None, ray="auto"), 0, 3, None),
    ],
)
def test_no_more_workers_than_images_and_auto_is_one_for_each_gpu(
    placement: Placement, gpus: int, images: int, workers: int | None
) -> None:
    assert placement.settled(gpus=gpus, images=images).workers == workers


def test_more_workers_than_gpus_are_refused_and_without_gpus_they_share_the_cpu() -> None:
    wanted = Placement(workers=2)
    with pytest.raises(UsageError, match="--workers 2 needs a GPU for each, and there is 1"):
        wanted.check_gpus(1)
    wanted.check_gpus(2)
    wanted.check_gpus(0)
