"""--seeds -> the seeds of a sweep."""

from __future__ import annotations

import re
from itertools import pairwise

from klein_cli.errors import UsageError
from klein_cli.prompts.rows import MAX_IMAGES
from klein_cli.recipe import MAX_SEED

_PART = re.compile(r"\s*(\d{1,19})\s*(?:-\s*(\d{1,19})\s*)?", re.ASCII)


def parse_seeds(text: str) -> tuple[range, ...]:
    """ "1-20" or "3,7,100-110" -> ranges, in the order given. Raises UsageError."""
    ranges: list[range] = []
    for part in text.split(","):
        found = _PART.fullmatch(part)
        if not found:
            raise UsageError(
                f"--seeds {text} is not a valid sweep", "write it as 1-20 or 3,7,100-110"
            )
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise UsageError(f"--seeds {part.strip()} runs backwards", f"write {last}-{first}")
        if last > MAX_SEED:
            raise UsageError(f"seed {last} is out of range", f"use at most {MAX_SEED}")
        ranges.append(range(first, last + 1))
    in_order = sorted(ranges, key=lambda seeds: seeds.start)
    for before, after in pairwise(in_order):
        if after.start < before.stop:
            raise UsageError(f"--seeds names {after.start} twice", "give each seed once")
    if sum(seeds.stop - seeds.start for seeds in ranges) > MAX_IMAGES:
        raise UsageError(f"--seeds {text} is too many", f"use at most {MAX_IMAGES}")
    return tuple(ranges)
