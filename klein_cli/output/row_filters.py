"""Rows of an image -> the rows that a PNG holds: each as its difference from what lies around it.

PNG (W3C, third edition, 9) has five predictors of a byte. A row is stored by the one that leaves
the smallest differences, which its first byte names. All of it is arithmetic in bytes, which numpy
does without Python's lock; in place where it can be, since new memory takes as long as the work.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

_FILTERS = 5
"""None, sub, up, average, Paeth, by their numbers in the file."""


def filtered(rows: Bytes, pixel_bytes: int) -> Bytes:
    """Rows (n + 1, row bytes), of which the first is only looked back at -> (n, 1 + row bytes).

    Above an image's first row lie zeros. `pixel_bytes` is the distance to the pixel on the left.
    """
    padded = np.zeros((rows.shape[0], pixel_bytes + rows.shape[1]), np.uint8)
    padded[:, pixel_bytes:] = rows
    here, above = padded[1:], padded[:-1]
    candidates = _candidates(
        here[:, pixel_bytes:],
        here[:, :-pixel_bytes],
        above[:, pixel_bytes:],
        above[:, :-pixel_bytes],
    )
    best = _sizes(candidates[:, :, 1:]).argmin(0)
    chosen: Bytes = candidates[best, np.arange(len(best))]
    return chosen


def _candidates(here: Bytes, left: Bytes, up: Bytes, corner: Bytes) -> Bytes:
    """Every row by every filter: (filters, rows, 1 + row bytes)."""
    out = np.empty((_FILTERS, here.shape[0], 1 + here.shape[1]), np.uint8)
    out[:, :, 0] = np.arange(_FILTERS)[:, None]
    differences = out[:, :, 1:]
    differences[0] = here
    predictions = left, up, _average(left, up), paeth(left, up, corner)
    for place, prediction in zip(differences[1:], predictions, strict=True):
        np.subtract(here, prediction, out=place)
    return out


def _average(left: Bytes, up: Bytes) -> Bytes:
    """floor((left + up) / 2) without a wider type."""
    out = left ^ up
    out >>= 1
    out += left & up
    return out


def paeth(left: Bytes, up: Bytes, corner: Bytes) -> Bytes:
    """Whichever neighbour of a byte is nearest to left + up - corner; of equals the first.

    The distances are those of (up, corner), (left, corner) and, for the corner itself, their sum
    if the corner lies on one side of both, when it is never the nearest, and else what they differ.
    """
    from_left, from_up = _distance(up, corner), _distance(left, corner)
    edge = _chosen(from_up < from_left, up, left)
    nearer = np.minimum(from_left, from_up)
    from_corner = np.maximum(from_left, from_up, out=from_left)
    from_corner -= nearer
    inner = from_corner < nearer
    inner &= (up > corner) ^ (left > corner)
    return _chosen(inner, corner, edge)


def _distance(a: Bytes, b: Bytes) -> Bytes:
    out = np.maximum(a, b)
    out -= np.minimum(a, b)
    return out


def _chosen(condition: NDArray[np.bool_], yes: Bytes, no: Bytes) -> Bytes:
    """As `np.where`, which takes a hundred times as long for bytes. Writes to `condition`."""
    mask = condition.view(np.uint8)
    np.negative(mask, out=mask)
    out = no ^ yes
    out &= mask
    out ^= no
    return out


def _sizes(differences: Bytes) -> NDArray[np.uint32]:
    """The sums of absolute differences, a byte above 127 being a negative one: (filters, rows)."""
    sizes = np.abs(differences.view(np.int8)).view(np.uint8)
    sums: NDArray[np.uint32] = sizes.sum(2, dtype=np.uint32)
    return sums
