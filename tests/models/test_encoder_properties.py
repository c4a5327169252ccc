"""What a right text encoder does to its padded rows, and proof that no wrong one does it.

Every known wrong version of this encoder but a few leaves the valid rows right; what catches it
are the padded rows. Each property below is asked of every backend and names the bug that it
catches. The last tests ask them of the wrong encoders: the table says which rejects which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from random import Random

import pytest
import torch
from encoders import (
    LENGTHS,
    POSITIONS,
    TAPS,
    WIDE,
    WORDS,
    Kind,
    backend,
    ids_of,
    oracle,
    row_changes,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from varlen import flash_attention
from wrong_encoders import RIGHT_ON_VALID_ROWS, WRONG

from klein_cli.models.attention import AttentionLengths
from klein_cli.models.qwen3 import Qwen3Model

pytestmark = pytest.mark.lengthy

HALVES = (torch.bfloat16, torch.float16)
RIGHT = {
    "eager": backend("eager"),
    "sdpa": backend("sdpa"),
    "flash-attn in torch": Kind(attend=flash_attention()),
}
ROW = 1e-5
"""Relative error of a row in float32; measured: at most 3.3e-6."""

right = pytest.mark.parametrize("kind", RIGHT.values(), ids=RIGHT)
some_pads = pytest.mark.parametrize("length", [n for n in LENGTHS if n < POSITIONS])


@cache
def usual(kind: Kind, length: int) -> Tensor:
    return kind.encode(ids_of([length]), [length])


def weights(kind: Kind) -> Kind:
    """The right encoder with the weights that this one has."""
    return replace(kind, attend=RIGHT["eager"].attend, model=Qwen3Model)


@cache
def expected(kind: Kind, lengths: Sequence[int]) -> Tensor:
    return oracle(kind.build(TAPS), ids_of(lengths), lengths)


def moved(kind: Kind, length: int, first: int, last: int | None = None) -> Tensor:
    """Relative change of each row (taps, S) when the ids from `first` to `last` become others."""
    ids = ids_of([length])
    ids[0, first:last] = (ids[0, first:last] + 1) % WORDS
    return row_changes(kind.encode(ids, [length]), usual(kind, length))[:, 0]


def every_row_is_the_oracles(kind: Kind, lengths: Sequence[int] = (20,)) -> None:
    """Catches everything, where a float64 oracle can be had."""
    found = kind.encode(ids_of(lengths), lengths)
    assert row_changes(found, expected(weights(kind), tuple(lengths))).max() < ROW


def pads_leave_the_prompt_alone(kind: Kind, length: int = 20) -> None:
    """Catches a prompt that reads its pads: neither causal nor masked."""
    assert moved(kind, length, first=length)[:, :length].max() == 0


def the_first_pad_leaves_every_other_row_alone(kind: Kind, length: int = 20) -> None:
    """Catches a mask that is ignored, or off by one: the first pad gets into all later rows."""
    changes = moved(kind, length, length, length + 1)
    changes[:, length] = 0
    assert changes.max() == 0


def the_first_pad_moves_its_own_row(kind: Kind, length: int = 20) -> None:
    """Catches padded rows that are zeros, or copies of another."""
    assert moved(kind, length, length, length + 1)[:, length].min() > 0.1


def the_last_token_moves_every_pad(kind: Kind, length: int = 20, least: float = 0.03) -> None:
    """Catches padded rows without attention (flash_attention_2), and a mask one token short."""
    changes = moved(kind, length, length - 1, length)
    assert changes[:, : length - 1].max() == 0
    assert changes[-1, length:].median() > least
    assert changes[:, length:].min() > 0


def the_pads_differ_from_each_other(kind: Kind, length: int = 20) -> None:
    """Catches padded rows without attention: the same at every position."""
    states = usual(kind, length)[-1, 0].float()
    assert (states[length] - states[-1]).norm() / states[-1].norm() > 0.1


def a_batch_is_each_prompt_alone(
    kind: Kind, lengths: Sequence[int] = (20, 512), most: float = 0.0
) -> None:
    """Catches lengths that are shared or mixed up; 512 needs no mask when it is alone."""
    ids = ids_of(lengths)
    together = kind.encode(ids, lengths)
    for row, length in enumerate(lengths):
        alone = kind.encode(ids[row : row + 1], [length])
        assert row_changes(together[:, row : row + 1], alone).max() <= most


def later_layers_change_nothing(kind: Kind, length: int = 20) -> None:
    """Catches the final norm: a model that ends at layer 27 would normalise the last tap."""
    deeper = (*TAPS, 28)
    assert len(kind.build(TAPS).layers) < len(kind.build(deeper).layers)
    assert torch.equal(usual(kind, length), kind.encode(ids_of([length]), [length], deeper)[:3])


PROPERTIES: dict[str, Callable[[Kind], None]] = {
    "oracle": every_row_is_the_oracles,
    "pads, prompt": pads_leave_the_prompt_alone,
    "first pad, others": the_first_pad_leaves_every_other_row_alone,
    "first pad, itself": the_first_pad_moves_its_own_row,
    "last token, pads": the_last_token_moves_every_pad,
    "pads differ": the_pads_differ_from_each_other,
    "batch": a_batch_is_each_prompt_alone,
    "depth": later_layers_change_nothing,
}

CAUGHT_BY = {
    "mask ignored": {"oracle", "first pad, others"},
    "no mask at all": {*PROPERTIES} - {"batch", "depth"},
    "not causal": {"oracle", "last token, pads"},
    "first pad unmasked": {"oracle", "first pad, others"},
    "last token masked": {"oracle", "last token, pads"},
    "pads see themselves": {"oracle"},
    "zeroed pads": {"oracle", "last token, pads", "pads differ"},
    "causal from the bottom right": {"oracle", "last token, pads"},
    "zeros after the prompt": {"oracle", "first pad, itself", "last token, pads", "pads differ"},
    "final norm on the last tap": {"oracle", "depth"},
    "taps one layer early": {"oracle"},
    "taps one layer late": {"oracle"},
    "lengths of the longest prompt": {"batch"},
    "lengths counted from the ids": {
        *("oracle", "pads, prompt", "first pad, others", "last token, pads"),
    },
}


@right
def test_every_row_is_the_oracles(kind: Kind) -> None:
    every_row_is_the_oracles(kind, LENGTHS)


@right
def test_every_row_is_the_oracles_with_heads_of_the_real_width(kind: Kind) -> None:
    """Heads of 128 turn by 64 frequencies: how these are rounded shows at the last positions."""
    every_row_is_the_oracles(replace(kind, config=WIDE), (12,))


@right
@some_pads
def test_pads_leave_the_prompt_alone(kind: Kind, length: int) -> None:
    pads_leave_the_prompt_alone(kind, length)


@right
@some_pads
def test_the_first_pad_changes_its_own_row_alone(kind: Kind, length: int) -> None:
    the_first_pad_leaves_every_other_row_alone(kind, length)
    the_first_pad_moves_its_own_row(kind, length)


@right
@pytest.mark.parametrize("length", [12, 20, 77])
def test_the_last_token_moves_every_pad(kind: Kind, length: int) -> None:
    the_last_token_moves_every_pad(kind, length)


@right
def test_the_pads_differ_from_each_other(kind: Kind) -> None:
    the_pads_differ_from_each_other(kind)


@right
def test_a_batch_of_differing_lengths_is_each_prompt_alone(kind: Kind) -> None:
    a_batch_is_each_prompt_alone(kind, LENGTHS)


@right
def test_later_layers_change_nothing(kind: Kind) -> None:
    later_layers_change_nothing(kind)


SHORT, SHALLOW = 40, (1, 2, 3)
mixes = st.lists(st.integers(1, SHORT), min_size=1, max_size=5)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(lengths=mixes, order=st.randoms(use_true_random=False))
def test_any_mix_of_lengths_in_any_order(lengths: list[int], order: Random) -> None:
    """Every row the oracle's, and a row the same bits wherever it stands in the batch."""
    ids, places = ids_of(lengths, SHORT), list(range(len(lengths)))
    order.shuffle(places)
    wanted = oracle(RIGHT["eager"].build(SHALLOW), ids, lengths)
    for kind in RIGHT.values():
        found = kind.encode(ids, lengths, SHALLOW)
        assert row_changes(found, wanted).max() < ROW
        shuffled = kind.encode(ids[places], [lengths[place] for place in places], SHALLOW)
        assert torch.equal(shuffled, found[:, places])


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_bfloat16_stays_close(name: str) -> None:
    """Right implementations differ by up to 4.4e-2 on a row, 2e-2 on the median one."""
    kind = backend(name, dtype=torch.bfloat16)
    lengths = (12, 20)
    changes = row_changes(kind.encode(ids_of(lengths), lengths), expected(weights(kind), lengths))
    assert changes.median() < 4e-2
    assert changes.max() < 8e-2


def test_sliced_attention_lets_nothing_out_of_the_pads() -> None:
    """NaN in the pads' keys and values; the masked forms would spread it (0 times NaN)."""
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(2, 64, 4, 16, generator=generator)
    key, value = torch.randn(2, 2, 64, 2, 16, generator=generator)
    lengths = AttentionLengths.of((20, 7), 64, torch.device("cpu"))
    clean = flash_attention()(query, key, value, lengths)
    for row, length in enumerate(lengths.lengths):
        key[row, length:] = value[row, length:] = float("nan")
    assert torch.equal(flash_attention()(query, key, value, lengths), clean)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_encoder_is_rejected_by_the_properties_of_the_table(wrong: str) -> None:
    caught = {name for name, check in PROPERTIES.items() if rejects(check, WRONG[wrong])}
    assert caught == CAUGHT_BY[wrong]


def test_every_property_rejects_some_wrong_encoder() -> None:
    assert CAUGHT_BY.keys() == WRONG.keys()
    assert set().union(*CAUGHT_BY.values()) == PROPERTIES.keys()


@pytest.mark.parametrize("wrong", WRONG)
def test_the_prompts_own_rows_tell_too_little(wrong: str) -> None:
    """Looking at them alone, half of the wrong encoders pass: so nothing here does."""
    lengths, kind = (20, 77), WRONG[wrong]
    changes = row_changes(kind.encode(ids_of(lengths), lengths), expected(weights(kind), lengths))
    valid = max(float(changes[:, row, :length].max()) for row, length in enumerate(lengths))
    assert (valid < ROW) == (wrong in RIGHT_ON_VALID_ROWS)


def rejects(check: Callable[[Kind], None], kind: Kind) -> bool:
    try:
        check(kind)
    except AssertionError:
        return True
    return False


CUDA = torch.device("cuda")
ON_CUDA = [
    ("eager", torch.float32),
    ("sdpa", torch.float32),
    *((name, half) for name in ("eager", "sdpa", "flash-attn") for half in HALVES),
]


@pytest.fixture(params=ON_CUDA, ids=lambda pair: f"{pair[0]}-{str(pair[1])[6:]}")
def on_cuda(request: pytest.FixtureRequest) -> Kind:
    """Each backend in each dtype that it runs in, heads of 128, TF32 off."""
    name, dtype = request.param
    if name == "flash-attn":
        pytest.importorskip("flash_attn")
    assert torch.get_float32_matmul_precision() == "highest"  # no TF32
    return backend(name, CUDA, dtype, config=WIDE)


@pytest.mark.gpu
def test_rows_on_a_gpu(on_cuda: Kind) -> None:
    """Half precision tells right from wrong on short prompts; the long ones are for float32."""
    if on_cuda.dtype == torch.float32:
        every_row_is_the_oracles(on_cuda, LENGTHS)
        return
    lengths = (12, 20)
    found = on_cuda.encode(ids_of(lengths), lengths)
    changes = row_changes(found, expected(weights(on_cuda), lengths))
    assert changes.median() < 4e-2
    assert changes.max() < 8e-2


@pytest.mark.gpu
@pytest.mark.parametrize("length", [12, 300])
def test_pads_on_a_gpu(on_cuda: Kind, length: int) -> None:
    pads_leave_the_prompt_alone(on_cuda, length)
    the_first_pad_leaves_every_other_row_alone(on_cuda, length)
    the_first_pad_moves_its_own_row(on_cuda, length)
    the_pads_differ_from_each_other(on_cuda, length)
    if length == 12:
        the_last_token_moves_every_pad(on_cuda, length)


@pytest.mark.gpu
def test_batches_and_depth_on_a_gpu(on_cuda: Kind) -> None:
    """A batch rounds otherwise than its prompts alone: matrix products depend on its size."""
    most = ROW if on_cuda.dtype == torch.float32 else 8e-2
    a_batch_is_each_prompt_alone(on_cuda, (12, 20), most)
    later_layers_change_nothing(on_cuda)
