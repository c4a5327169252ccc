"""Images that are given out as URLs: for a while, and no more of them than there is room for."""

from __future__ import annotations

from klein_cli.serve.kept import SECONDS, KeptFiles


def test_a_file_is_there_until_its_time_is_over() -> None:
    now = [0.0]
    kept = KeptFiles(clock=lambda: now[0])
    name = kept.put(b"a", ".png")
    assert len(name) == 32 + 4
    assert kept.get(name) == (b"a", ".png")
    assert kept.get("other") is None
    now[0] = SECONDS + 1
    assert kept.get(name) is None


def test_newer_files_take_the_place_of_older_ones() -> None:
    """A client that asks for URLs without end would fill the memory."""
    kept = KeptFiles(most_bytes=10)
    first, second, third = (kept.put(b"x" * 4, ".png") for _ in range(3))
    assert kept.get(first) is None
    assert kept.get(second) is not None
    assert kept.get(third) is not None
    large = kept.put(b"x" * 100, ".png")
    assert kept.get(large) is not None
    assert kept.get(third) is None
