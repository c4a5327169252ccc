"""A model of random weights at the true sizes, for as long as it is needed: timing needs no other.

Zeros would lie: arithmetic on them takes less power, and so less time.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError

from klein_cli.bench.random_weights import snapshot_bytes, write_snapshot
from klein_cli.checkpoints.folder import free_space
from klein_cli.checkpoints.resolve import Snapshot, resolve
from klein_cli.device.device import cuda_devices
from klein_cli.errors import KleinError

SIZE = "4b"
NAME = "random weights at the sizes of klein-4b"

_SPARE_BYTES = 1 << 30


@contextmanager
def random_model(keep: Path | None, say: Callable[[str], None]) -> Iterator[Snapshot]:
    """The snapshot, in the new folder `keep`, or else in a temporary one that is gone at the end.

    Raises KleinError when the disk has no room for it.
    """
    with nullcontext(keep) if keep else tempfile.TemporaryDirectory(prefix="klein-bench-") as root:
        yield _written(Path(root), say)


def _written(root: Path, say: Callable[[str], None]) -> Snapshot:
    needed = snapshot_bytes(SIZE)
    _check_room(root, needed)
    quick = "about a minute" if cuda_devices() else "many minutes without a GPU"
    say(f"writing {needed / 1e9:.1f} GB of random weights to {root}, {quick}")
    started = time.perf_counter()
    try:
        write_snapshot(root, SIZE)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(root, ignore_errors=True)
        raise KleinError(
            f"cannot write random weights to {root}: {getattr(error, 'strerror', None) or error}",
            "give --keep a folder with room, or -m a model",
        ) from None
    say(f"written in {time.perf_counter() - started:.0f} s")
    return replace(resolve(str(root)), name=NAME)


def _check_room(root: Path, needed: int) -> None:
    free = free_space(root)
    if free < needed + _SPARE_BYTES:
        raise KleinError(
            f"the disk with {root} has {free / 1e9:.1f} GB free, and the random weights take "
            f"{needed / 1e9:.1f} GB",
            "give --keep a folder with room, set TMPDIR, or give -m a model",
        )
