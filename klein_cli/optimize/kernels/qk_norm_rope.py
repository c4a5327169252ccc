"""Queries and keys on their way into attention: normalised by head, turned by position."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

from klein_cli.optimize.kernels.options import options

_MOST_HEADS = 8
"""Heads of one program: 8 heads of 128 channels are 1024 values."""


@triton.jit
def _norm_and_rotate(
    source, target, weight, cosine, sine, eps,
    GROUP: tl.constexpr, SIZE: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """GROUP heads of one token: divided by their rms, weighted, turned pair by pair."""
    head = tl.arange(0, GROUP)[:, None] * SIZE
    pair = tl.arange(0, SIZE // 2)[None, :]
    if HALVES:
        first, second = pair, pair + SIZE // 2
        a, b = tl.load(source + head + first), tl.load(source + head + second)
    else:
        first, second = 2 * pair, 2 * pair + 1
        channel = tl.arange(0, SIZE)[None, :]
        both = tl.load(source + head + channel)
        a, b = tl.split(tl.reshape(both, (GROUP, SIZE // 2, 2)))
    a, b = a.to(tl.float32), b.to(tl.float32)
    mean = (tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)) / SIZE
    factor = tl.rsqrt(mean + eps)[:, None]
    a = a * factor * tl.load(weight + first).to(tl.float32)
    b = b * factor * tl.load(weight + second).to(tl.float32)
    c, s = tl.load(cosine + first).to(tl.float32), tl.load(sine + first).to(tl.float32)
    turned_a, turned_b = a * c - b * s, b * c + a * s
    kind = target.dtype.element_ty
    if HALVES:
        tl.store(target + head + first, turned_a.to(kind))
        tl.store(target + head + second, turned_b.to(kind))
    else:
        both = tl.reshape(tl.join(turned_a.to(kind), turned_b.to(kind)), (GROUP, SIZE))
        channel = tl.arange(0, SIZE)[None, :]
        tl.store(target + head + channel, both)


@triton.jit
def _heads(
    query, key, value, out_query, out_key, out_value, query_norm, key_norm, cosine, sine,
    tokens, batch, token, out_batch, out_token, first, eps,
    QUERY_GROUPS: tl.constexpr, KEY_GROUPS: tl.constexpr, GROUP: tl.constexpr,
    SIZE: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    place = first + row % tokens
    source = (row // tokens) * batch + (row % tokens) * token
    target = (row // tokens) * out_batch + place * out_token
    cosines, sines = cosine + place * SIZE, sine + place * SIZE
    if group < QUERY_GROUPS:
        start = group * GROUP * SIZE
        _norm_and_rotate(
            query + source + start, out_query + target + start, query_norm, cosines, sines, eps,
            GROUP, SIZE, HALVES,
        )  # fmt: skip
    elif group < QUERY_GROUPS + KEY_GROUPS:
        start = (group - QUERY_GROUPS) * GROUP * SIZE
        _norm_and_rotate(
            key + source + start, out_key + target + start, key_norm, cosines, sines, eps,
            GROUP, SIZE, HALVES,
        )  # fmt: skip
    else:
        start = (group - QUERY_GROUPS - KEY_GROUPS) * GROUP * SIZE
        channel = start + tl.arange(0, GROUP * SIZE)
        tl.store(out_value + target + channel, tl.load(value + source + channel))


def norm_and_rotate(
    query: Tensor, key: Tensor, norms: tuple[Tensor, Tensor], rotary: tuple[Tensor, Tensor],
    eps: float, *, halves: bool,
) -> None:  # fmt: skip
    """Normalise and turn, in place, query and key (B, tokens, heads * size).

    `norms` are the weights (size,) of query and key; `rotary` cosines and sines (tokens, 1, size),
    equal within a pair. Channel c pairs with its neighbour, or, `halves`, with c + size / 2.
    """
    _launch((query, key, key), (query, key, key), norms, rotary, 0, eps, halves, copy=False)


def norm_rotate_and_concat(
    streams: Sequence[tuple[Tensor, Tensor, Tensor]],
    norms: Sequence[tuple[Tensor, Tensor]],
    rotary: tuple[Tensor, Tensor],
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of several streams, one after the other: (B, all tokens, width).

    Each of `streams` is (query, key, value), (B, tokens, heads * size), of equal widths; queries
    and keys are normalised by their stream's weights and turned, channel 2 i with 2 i + 1.
    """
    query = streams[0][0]
    tokens = sum(stream[0].shape[1] for stream in streams)
    shape = (3, query.shape[0], tokens, query.shape[2])
    out = torch.empty(shape, dtype=query.dtype, device=query.device).unbind(0)
    first = 0
    for stream, weights in zip(streams, norms, strict=True):
        _launch(stream, out, weights, rotary, first, eps, halves=False, copy=True)
        first += stream[0].shape[1]
    return out[0], out[1], out[2]


def _launch(
    source: tuple[Tensor, Tensor, Tensor],
    target: tuple[Tensor, ...],
    norms: tuple[Tensor, Tensor],
    rotary: tuple[Tensor, Tensor],
    first: int,
    eps: float,
    halves: bool,
    *,
    copy: bool,
) -> None:
    query = source[0]
    size = norms[0].numel()
    heads = [x.shape[-1] // size for x in source]
    group = gcd(_MOST_HEADS, *heads)
    groups = [count // group for count in heads]
    assert size == triton.next_power_of_2(size)
    assert all(x.stride() == query.stride() and x.stride(-1) == 1 for x in source)
    assert all(x.stride() == target[0].stride() and x.stride(-1) == 1 for x in target)
    assert all(table.is_contiguous() for table in rotary)
    assert rotary[0].shape[0] >= first + query.shape[1]
    grid = (query.shape[0] * query.shape[1], sum(groups) if copy else groups[0] + groups[1])
    _heads[grid](
        *source, *target, *norms, *rotary,
        query.shape[1], query.stride(0), query.stride(1), target[0].stride(0),
        target[0].stride(1), first, eps,
        QUERY_GROUPS=groups[0], KEY_GROUPS=groups[1], GROUP=group, SIZE=size, HALVES=halves,
        **options(max(1, group * size // 256)),
    )  # fmt: skip
