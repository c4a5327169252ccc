"""kill -9 at any moment: nothing is lost, torn, or made twice."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from zygote import Zygote

from klein_cli.output.reading import is_torn

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals"),
]

PICTURES = 80
KILLS = 24


def command(snapshot: Path, folder: Path, *more: str) -> list[str]:
    prompts = folder.parent / "prompts.txt"
    lines = [f"a cat {number % 20}" for number in range(PICTURES)]
    prompts.write_text("\n".join(lines))
    options = ["-m", str(snapshot), "--size", "64x64", "--steps", "1", "--device", "cpu", "-q"]
    return [
        "generate",
        "--prompts-file",
        str(prompts),
        "-o",
        f"{folder}/",
        "-s",
        "5",
        *options,
        *more,
    ]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*") if path.suffix != ".jsonl"}


def made(folder: Path) -> Counter[str]:
    """How often the manifest says that each file was made."""
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return Counter(entry["file"] for entry in entries if entry["kind"] == "picture")


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """What tells a file from one that was written over it."""
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.png")
    }


def test_a_run_that_is_killed_again_and_again_ends_as_if_it_never_was(
    small_snapshot: Path, tmp_path: Path
) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    random, longest = Random(7), 0.8
    kills, among = 0, 0
    seen: dict[str, tuple[int, int]] = {}
    with Zygote() as klein:
        assert klein.run(command(small_snapshot, whole)).returncode == 0
        while kills < KILLS:
            moment = random.uniform(0, longest)
            line = command(small_snapshot, torn, "--resume")
            code = klein.run(line, kill_after=moment).returncode
            now = stamps(torn)
            assert seen.items() <= now.items(), "an image that was there was made again"
            assert not any(map(is_torn, torn.glob("*.png")))
            if code == 0:
                # Faster than the killer. Half of it goes, so that there is work left.
                for path in sorted(torn.glob("*.png"))[::2]:
                    now.pop(path.name)
                    path.unlink()
            else:
                assert code == -signal.SIGKILL
                kills += 1
                among += len(seen) < len(now) < PICTURES
            # As fast as this machine is today: some kills before the first picture, most after it.
            longest *= 1.2 if len(now) == len(seen) else 0.9
            seen = now
        assert klein.run(command(small_snapshot, torn, "--resume")).returncode == 0
    assert among >= KILLS // 4, "hardly a kill fell among images"
    assert files(torn) == files(whole)
    assert len(files(whole)) == PICTURES
    assert set(made(torn)) == set(files(whole))
