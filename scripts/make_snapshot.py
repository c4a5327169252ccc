"""Write a snapshot of random weights in the official layout, for tests and for timing.

    python scripts/make_snapshot.py FOLDER --size small
    python scripts/make_snapshot.py FOLDER --size 4b      # 16 GB; 9b takes 35

See `klein_cli.bench.random_weights`; `klein bench` writes one by itself.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from klein_cli.bench.random_weights import SIZES, write_snapshot


def main() -> None:
    """Read the command line and write the snapshot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--base", action="store_true", help="a model that is not distilled")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.perf_counter()
    write_snapshot(options.folder, options.size, distilled=not options.base, seed=options.seed)
    print(f"{options.folder} written in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
