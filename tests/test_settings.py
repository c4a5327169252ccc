"""Settings: what is not valid is refused wherever it comes from, and no field is forgotten."""

from __future__ import annotations

from dataclasses import fields
from typing import get_args, get_type_hints

import pytest

from klein_cli.cli.options import MachineOptions
from klein_cli.errors import UsageError
from klein_cli.settings import CHOICES, Settings


@pytest.mark.parametrize(
    "device",
    [
        "gpu",
        "cuda:",
        "cuda:N",
        "cuda:01",
        "cuda:100",
        "cuda:256",
        "cuda:\u0661",
        "cuda:1 ",
        "cuda:1\n",
    ],
)
def test_a_number_that_torch_reads_otherwise_is_no_gpu(device: str) -> None:
    """torch takes cuda:256 for cuda:0, and answers cuda:01 with a traceback."""
    with pytest.raises(UsageError, match=r"^--device (cuda|gpu)") as caught:
        Settings(device=device)
    assert caught.value.hint == "use auto, cuda, cuda:N, cpu, mps"
    assert Settings(device="cuda:99").device == "cuda:99"


@pytest.mark.parametrize("name", CHOICES)
def test_a_changed_copy_is_checked_as_the_first_one_was(name: str) -> None:
    """An image's record and a worker's message end here too."""
    with pytest.raises(UsageError, match=f"--{name} nonsense is not valid"):
        Settings().with_(**{name: "nonsense"})


def test_every_setting_is_listed() -> None:
    """A new field that -v does not tell of would change images in silence."""
    last = {name: choice.words[-1] for name, choice in CHOICES.items()}
    listed = Settings(**last).listed()
    assert listed == (
        "mps, float32, attention eager, engine diffusers, noise from cuda, kernels torch, "
        "quantize fp8"
    )
    assert Settings(**last).listed(leave_out=("device", "rng")).startswith("float32, attention")


def test_every_setting_is_an_option_with_its_own_default() -> None:
    """A new field without an option could not be chosen."""
    hints = get_type_hints(MachineOptions, include_extras=True)
    for field in fields(Settings):
        _, option = get_args(hints[field.name])
        assert f"--{field.name}" in (option.default, *(option.param_decls or ()))
        assert getattr(MachineOptions(), field.name) == field.default
