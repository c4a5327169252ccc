"""The tensors of an adapter -> its layers: whole, of known kinds, of sizes that fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from klein_cli.checkpoints.lora.alphas import Strengths, scalar
from klein_cli.checkpoints.lora.keys import Key
from klein_cli.checkpoints.lora.targets import Target
from klein_cli.checkpoints.source import Stored
from klein_cli.errors import ModelError

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""Numbers that factors are stored in; all are computed with in float32."""

NOT_WHOLE = "the adapter is damaged, or of a kind that klein does not know: get it again"

_LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_OF_CONVOLUTIONS = ("mid", "hada_t1", "hada_t2", "lokr_t1", "lokr_t2")
_OF_BIASES = ("bias", "diff_b")
_PRODUCT = {"up": "lora_B (lora_up)", "down": "lora_A (lora_down)"}

Roles = Mapping[str, Stored]


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """What is multiplied to the change of some rows of a layer, times `scale`.

    `kind` is "LoRA", "LoHa", "LoKr" or "full"; `tensors` go by their roles; `shape` is the
    change's; `rank` is None where nothing is factorised.
    """

    kind: str
    tensors: Roles
    shape: tuple[int, ...]
    rank: int | None
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What a file changes under one name.

    The rows of `factors` lie one below the other. `norm` makes it a DoRA: lengths for the rows of
    the changed weight, or for its columns if `by_column`.
    """

    path: str
    target: Target
    factors: tuple[Factors, ...]
    norm: Stored | None = None
    alpha: float | None = None

    @property
    def kind(self) -> str:
        """In one word."""
        return "DoRA" if self.norm is not None else self.factors[0].kind

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the change: (rows, columns), or (entries,) of a norm."""
        return (sum(one.shape[0] for one in self.factors), *self.factors[0].shape[1:])

    @property
    def by_column(self) -> bool:
        """Whether a DoRA has a length for each column rather than for each row."""
        shape = self.shape
        return self.norm is not None and self.norm.shape == (1, *shape[1:]) and shape[0] != 1


def layer_of(
    file: Path, path: str, target: Target, tensors: Mapping[Key, Stored], strengths: Strengths
) -> Layer:
    """The layer called `path`, from all its tensors.

    Raises ModelError when a tensor is missing, is of another size than its partner, or when the
    layer is of a kind that klein does not compute.
    """
    where = f"{file}: {path}"
    roles = {key.role for key in tensors}
    _check_roles(where, roles)
    for key, held in tensors.items():
        if held.dtype not in FLOATS and key.role != "alpha":
            raise ModelError(f"{where} is stored as {held.dtype}, not as fractions", NOT_WHOLE)
    parts: dict[int, dict[str, Stored]] = {}
    single: dict[str, Stored] = {}
    for key, held in tensors.items():
        if key.role in ("alpha", "norm"):
            single[key.role] = held
        else:
            parts.setdefault(key.part, {})[key.role] = held
    if sorted(parts) != list(range(len(parts))):
        raise ModelError(f"{where} lacks one of its parts", NOT_WHOLE)
    if not parts:
        raise ModelError(f"{where} has {' and '.join(sorted(single))}, and no factors", NOT_WHOLE)
    alpha = scalar(where, single["alpha"]) if "alpha" in single else None
    factors = tuple(
        _factors(where, path, parts[number], alpha, strengths) for number in sorted(parts)
    )
    layer = Layer(path=path, target=target, factors=factors, norm=single.get("norm"), alpha=alpha)
    _check_layer(where, layer)
    return layer


def _check_roles(where: str, roles: set[str]) -> None:
    if roles & set(_OF_BIASES):
        raise ModelError(
            f"{where} changes a bias, and the model has none",
            "the adapter is for another model",
        )
    if roles & set(_OF_CONVOLUTIONS):
        raise ModelError(
            f"{where} changes a convolution, and the model has none",
            "the adapter is for another model",
        )
    for role in ("set_weight", "reshape_weight"):
        if role in roles:
            raise ModelError(
                f"{where} replaces a weight ({role}), which klein does not do",
                "get the adapter as a LoRA",
            )


def _factors(
    where: str, path: str, roles: Roles, alpha: float | None, strengths: Strengths
) -> Factors:
    kinds: tuple[tuple[str, bool, Callable[[str, Roles], tuple[tuple[int, ...], int | None]]], ...]
    kinds = (
        ("LoRA", not roles.keys().isdisjoint(_PRODUCT), _lora),
        ("LoHa", any(role.startswith("hada_") for role in roles), _loha),
        ("LoKr", any(role.startswith("lokr_") for role in roles), _lokr),
        ("full", "diff" in roles, _full),
    )
    found = [(kind, measure) for kind, there, measure in kinds if there]
    if len(found) != 1:
        raise ModelError(f"{where} is of two kinds at once: {', '.join(sorted(roles))}", NOT_WHOLE)
    ((kind, measure),) = found
    shape, rank = measure(where, roles)
    if 0 in shape or rank == 0:
        raise ModelError(f"{where} is empty", NOT_WHOLE)
    scale = 1.0 if kind == "full" else strengths.scale(path, kind, alpha, rank)
    if not isfinite(scale):
        raise ModelError(f"{where} has an alpha of {alpha}, which is no strength", NOT_WHOLE)
    return Factors(kind=kind, tensors=roles, shape=shape, rank=rank, scale=scale)


def _lora(where: str, roles: Roles) -> tuple[tuple[int, ...], int | None]:
    for role, partner in (("up", "down"), ("down", "up")):
        if role not in roles:
            raise ModelError(f"{where} has {_PRODUCT[partner]} without {_PRODUCT[role]}", NOT_WHOLE)
    return _product(where, roles["up"], roles["down"])


def _loha(where: str, roles: Roles) -> tuple[tuple[int, ...], int | None]:
    _check_all(where, roles, _LOHA)
    first, rank = _product(where, roles["hada_w1_a"], roles["hada_w1_b"])
    second, _ = _product(where, roles["hada_w2_a"], roles["hada_w2_b"])
    if first != second:
        raise _unlike(where, first, second)
    return first, rank


def _lokr(where: str, roles: Roles) -> tuple[tuple[int, ...], int | None]:
    (left, left_rank), (right, right_rank) = (
        _lokr_factor(where, roles, name) for name in ("lokr_w1", "lokr_w2")
    )
    rank = left_rank if right_rank is None else right_rank
    return (left[0] * right[0], left[1] * right[1]), rank


def _lokr_factor(where: str, roles: Roles, name: str) -> tuple[tuple[int, ...], int | None]:
    """The size of one of a LoKr's two factors, which may be a product itself, and its rank."""
    whole, product = name in roles, (f"{name}_a", f"{name}_b")
    if whole and not roles.keys().isdisjoint(product):
        raise ModelError(f"{where} has {name} twice, whole and as a product", NOT_WHOLE)
    if not whole:
        _check_all(where, roles, product)
        return _product(where, roles[product[0]], roles[product[1]])
    return _two_sides(where, roles[name]), None


def _full(where: str, roles: Roles) -> tuple[tuple[int, ...], int | None]:
    shape = roles["diff"].shape
    if len(shape) not in (1, 2):
        raise ModelError(f"{where} has {len(shape)} dimensions, not 1 or 2", NOT_WHOLE)
    return shape, None


def _check_all(where: str, roles: Roles, wanted: tuple[str, ...]) -> None:
    there = [role for role in wanted if role in roles]
    lacking = [role for role in wanted if role not in roles]
    if lacking:
        has = f"has {' and '.join(there)} without" if there else "lacks"
        raise ModelError(f"{where} {has} {' and '.join(lacking)}", NOT_WHOLE)


def _product(where: str, left: Stored, right: Stored) -> tuple[tuple[int, ...], int | None]:
    """The size of a product of two matrices, and its rank."""
    (rows, inner), (rank, columns) = _two_sides(where, left), _two_sides(where, right)
    if inner != rank:
        raise _unlike(where, left.shape, right.shape)
    return (rows, columns), rank


def _two_sides(where: str, held: Stored) -> tuple[int, int]:
    if len(held.shape) != 2:
        raise ModelError(f"{where} has a factor of {len(held.shape)} dimensions, not 2", NOT_WHOLE)
    return held.shape[0], held.shape[1]


def _unlike(where: str, left: tuple[int, ...], right: tuple[int, ...]) -> ModelError:
    return ModelError(
        f"{where} has factors that do not fit each other: {sides(left)} and {sides(right)}",
        NOT_WHOLE,
    )


def sides(shape: tuple[int, ...]) -> str:
    """A size in words: "12 x 34"."""
    return " x ".join(map(str, shape))


def _check_layer(where: str, layer: Layer) -> None:
    columns = {one.shape[1:] for one in layer.factors}
    if len(columns) > 1:
        raise ModelError(f"{where} has parts of different widths", NOT_WHOLE)
    norm, shape = layer.norm, layer.shape
    if norm is None:
        return
    if len(shape) != 2 or layer.factors[0].kind == "full":
        raise ModelError(f"{where} has the lengths of a DoRA, and is none", NOT_WHOLE)
    if norm.shape not in ((shape[0],), (shape[0], 1), (1, shape[1])):
        raise _unlike(where, shape, norm.shape)
