"""The text encoder against a float64 oracle written apart, against transformers, and by property.

Every known wrong version of this encoder leaves the valid rows right; what catches it are the
padded rows, so all 512 rows are looked at here. The measured signals of the wrong versions are
far above the gates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from klein_cli.errors import ModelError
from klein_cli.models.attention import AttentionLengths, attention_backend
from klein_cli.models.qwen3 import Qwen3Config, Qwen3Model, rotary_embedding

CPU = torch.device("cpu")
POSITIONS = 512
TAPS = (9, 18, 27)
LENGTHS = (12, 20, 77, 511, 512)

CONFIG = Qwen3Config(
    vocab_size=200,
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=30,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
)
WIDE = Qwen3Config(
    vocab_size=200,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=30,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=128,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
)
on_cpu = pytest.mark.parametrize("attention", ["eager", "sdpa"])


def build(
    attention: str,
    *,
    config: Qwen3Config = CONFIG,
    taps: Sequence[int] = TAPS,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> Qwen3Model:
    """Random weights, norms included; layers are drawn in order, so that depth changes nothing."""
    model = Qwen3Model(config, taps, attention_backend(attention, device, dtype))
    generator = torch.Generator().manual_seed(11)
    for parameter in model.parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        scale = 1 / math.sqrt(parameter.shape[-1])
        parameter.data = drawn * scale if parameter.ndim == 2 else 1 + 0.2 * drawn
    return model.to(device=device, dtype=dtype).requires_grad_(False).eval()


def ids_of(lengths: Sequence[int]) -> Tensor:
    """Random prompts padded with token 7, which also occurs inside prompts."""
    ids = torch.randint(0, 200, (len(lengths), POSITIONS), generator=torch.manual_seed(5))
    for row, length in enumerate(lengths):
        ids[row, length:] = 7
    return ids


def run(model: Qwen3Model, ids: Tensor, lengths: Sequence[int]) -> Tensor:
    """(taps, B, S, hidden) in the model's dtype."""
    device = model.embed_tokens.weight.device
    states = model(ids.to(device), AttentionLengths(tuple(lengths), POSITIONS, device))
    return torch.stack(states)


def oracle(model: Qwen3Model, ids: Tensor, lengths: Sequence[int]) -> Tensor:
    """Qwen3 from its paper's formulas, row by row in float64, sharing no code with the model."""
    weights = {name: tensor.double().cpu() for name, tensor in model.state_dict().items()}
    return torch.stack(
        [
            _oracle_row(model.config, weights, row, length)
            for row, length in zip(ids, lengths, strict=True)
        ],
        dim=1,
    )


def _oracle_row(c: Qwen3Config, w: dict[str, Tensor], ids: Tensor, length: int) -> Tensor:
    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return weight * x / (x.square().mean(-1, keepdim=True) + c.rms_norm_eps).sqrt()

    half = c.head_dim // 2
    turns = c.rope_theta ** -(torch.arange(half).double() / half)
    angle = torch.exp(1j * torch.arange(POSITIONS).double()[:, None] * turns)

    def rotate(x: Tensor) -> Tensor:
        turned = torch.complex(x[..., :half], x[..., half:]) * angle[:, None]
        return torch.cat((turned.real, turned.imag), dim=-1)

    seen = torch.arange(POSITIONS)
    blocked = ~((seen[None] <= seen[:, None]) & (seen[None] < length))
    x, states = w["embed_tokens.weight"][ids], []
    for number in range(max(TAPS)):
        p = f"layers.{number}."
        h = norm(x, w[p + "input_layernorm.weight"])
        q, k, v = (
            (h @ w[f"{p}self_attn.{n}_proj.weight"].T).view(POSITIONS, -1, c.head_dim)
            for n in "qkv"
        )
        q = rotate(norm(q, w[p + "self_attn.q_norm.weight"]))
        k = rotate(norm(k, w[p + "self_attn.k_norm.weight"]))
        out = torch.zeros_like(q)
        for head in range(c.num_attention_heads):
            source = head * c.num_key_value_heads // c.num_attention_heads
            scores = q[:, head] @ k[:, source].T / math.sqrt(c.head_dim)
            out[:, head] = scores.masked_fill(blocked, -math.inf).softmax(-1) @ v[:, source]
        x = x + out.flatten(1) @ w[p + "self_attn.o_proj.weight"].T
        h = norm(x, w[p + "post_attention_layernorm.weight"])
        gate = h @ w[p + "mlp.gate_proj.weight"].T
        up = h @ w[p + "mlp.up_proj.weight"].T
        x = x + (gate * gate.sigmoid() * up) @ w[p + "mlp.down_proj.weight"].T
        if number + 1 in TAPS:
            states.append(x)
    return torch.stack(states)


def row_changes(found: Tensor, wanted: Tensor) -> Tensor:
    """Relative change of every row, over all taps: (taps, B, S)."""
    wanted = wanted.double().cpu()
    return (found.double().cpu() - wanted).norm(dim=-1) / wanted.norm(dim=-1)


@on_cpu
def test_every_row_of_every_tap_is_the_oracles(attention: str) -> None:
    model, ids = build(attention), ids_of(LENGTHS)
    changes = row_changes(run(model, ids, LENGTHS), oracle(model, ids, LENGTHS))
    assert changes.max() < 1e-5


@pytest.mark.parametrize("theirs", ["eager", "sdpa"])
def test_every_row_is_transformers(theirs: str) -> None:
    """hidden_states[27] of 30 layers: not the last, which transformers would normalise."""
    import transformers

    model, ids = build(theirs), ids_of(LENGTHS)
    table = {name: getattr(CONFIG, name) for name in Qwen3Config.__slots__}
    theta = table.pop("rope_theta")
    config = transformers.Qwen3Config(
        **table,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        pad_token_id=None,
        attn_implementation=theirs,
    )
    reference = transformers.Qwen3Model(config).eval()
    missing, unexpected = reference.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected
    assert all(name == "norm.weight" or int(name.split(".")[1]) >= 27 for name in missing)
    mask = (torch.arange(POSITIONS) < torch.tensor(LENGTHS)[:, None]).long()
    with torch.no_grad():
        states = reference(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    wanted = torch.stack([states[tap] for tap in TAPS])
    assert row_changes(run(model, ids, LENGTHS), wanted).max() < 1e-6


@on_cpu
@pytest.mark.parametrize("length", [12, 20, 77, 511])
def test_pad_ids_reach_only_their_own_rows(attention: str, length: int) -> None:
    """A mask that is ignored, or off by one, lets the first pad into all later rows."""
    model, ids = build(attention), ids_of([length])
    before = run(model, ids, [length])
    first = ids.clone()
    first[0, length] = 55
    changes = row_changes(run(model, first, [length]), before)[:, 0]
    assert changes[:, length].min() > 0.1
    changes[:, length] = 0
    assert changes.max() == 0
    every = ids.clone()
    every[0, length:] = 55
    assert torch.equal(run(model, every, [length])[:, 0, :length], before[:, 0, :length])


@on_cpu
@pytest.mark.parametrize(("length", "least"), [(12, 0.1), (77, 0.03)])
def test_pad_rows_read_the_whole_prompt(attention: str, length: int, least: float) -> None:
    """Zeroed pad rows, as flash_attention_2 of transformers makes them, would not move."""
    model, ids = build(attention), ids_of([length])
    before = run(model, ids, [length])
    ids[0, length - 1] = (ids[0, length - 1] + 1) % 200
    changes = row_changes(run(model, ids, [length]), before)[:, 0]
    assert changes[:, : length - 1].max() == 0
    assert changes[-1, length:].median() > least


@on_cpu
def test_pad_rows_differ_from_each_other(attention: str) -> None:
    states = run(build(attention), ids_of([20]), [20])[-1, 0]
    assert (states[20] - states[-1]).norm() / states[-1].norm() > 0.1


@on_cpu
def test_a_batch_of_differing_lengths_is_each_prompt_alone(attention: str) -> None:
    """Also the prompt without a pad, for which sdpa drops the mask when it is alone."""
    model, ids = build(attention), ids_of(LENGTHS)
    together = run(model, ids, LENGTHS)
    for row, length in enumerate(LENGTHS):
        alone = run(model, ids[row : row + 1], [length])
        assert torch.equal(alone[:, 0], together[:, row])


@on_cpu
def test_later_layers_change_nothing(attention: str) -> None:
    """Stopping at layer 27 is computing all and taking 27, before any final norm."""
    ids = ids_of([20])
    short, full = build(attention), build(attention, taps=(*TAPS, 29))
    assert len(short.layers) == 27
    assert torch.equal(run(short, ids, [20]), run(full, ids, [20])[:3])


def test_rotary_angles_are_taken_in_float32() -> None:
    """Rounded to bfloat16 before the cosine, late positions are off by up to .3."""
    exact = rotary_embedding(CONFIG, POSITIONS, CPU, torch.float32)
    rounded = rotary_embedding(CONFIG, POSITIONS, CPU, torch.bfloat16)
    for wide, narrow in zip(exact, rounded, strict=True):
        assert torch.equal(wide.bfloat16(), narrow)
    assert not list(build("sdpa").buffers())


def test_a_tap_beyond_the_last_layers_input_is_refused() -> None:
    with pytest.raises(ModelError, match="hidden state 30"):
        build("sdpa", taps=(9, 18, 30))


def table(**changes: object) -> dict[str, object]:
    values = {name: getattr(CONFIG, name) for name in Qwen3Config.__slots__}
    return {**values, "hidden_act": "silu", **changes}


def test_config_as_transformers_4_and_5_write_it() -> None:
    newer = table(rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    assert Qwen3Config.from_json(table(rope_scaling=None)) == CONFIG
    assert Qwen3Config.from_json(newer) == CONFIG


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_theta": None}, "lacks rope_theta"),
        ({"head_dim": None}, "lacks head_dim"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
    ],
)
def test_another_qwen3_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        Qwen3Config.from_json(table(**changes))


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["eager", "sdpa", "flash-attn"])
def test_bfloat16_on_a_gpu(attention: str) -> None:
    """Right implementations differ by up to 4.4e-2 on a row; the least wrong one by far more."""
    if attention == "flash-attn":
        pytest.importorskip("flash_attn")
    cuda, lengths = torch.device("cuda"), (12, 20)
    ids, half = ids_of(lengths), torch.bfloat16
    model = build(attention, config=WIDE, device=cuda, dtype=half)
    changes = row_changes(run(model, ids, lengths), oracle(model, ids, lengths))
    assert changes.median() < 4e-2
    assert changes.max() < 8e-2


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["eager", "sdpa", "flash-attn"])
def test_pads_on_a_gpu(attention: str) -> None:
    """The first pad id moves its own row alone; the last prompt token moves every pad row."""
    half = torch.float32
    if attention == "flash-attn":
        pytest.importorskip("flash_attn")
        half = torch.bfloat16
    model = build(attention, config=WIDE, device=torch.device("cuda"), dtype=half)
    ids, lengths = ids_of([12, 300]), [12, 300]
    before = run(model, ids, lengths)

    def changes_with(change: Callable[[Tensor], None]) -> Tensor:
        changed = ids.clone()
        change(changed)
        return row_changes(run(model, changed, lengths), before)[-1, 0]

    def first_pad(changed: Tensor) -> None:
        changed[0, 12] = 55

    def last_word(changed: Tensor) -> None:
        changed[0, 11] = (changed[0, 11] + 1) % 200

    moved = changes_with(first_pad)
    assert moved[12] > 0.1
    moved[12] = 0
    assert moved.max() == 0
    assert changes_with(last_word)[12:].median() > 0.1
