"""Bytes that several threads bring: all of them, where they belong, or an error for who waits."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from klein_cli.checkpoints.reader import Extent, Reader, ReadHandle, Rows

CPU = torch.device("cpu")


def written(folder: Path, name: str, size: int) -> tuple[Path, torch.Tensor]:
    """A file of random bytes."""
    content = torch.randint(0, 256, (size,), dtype=torch.uint8)
    path = folder / name
    path.write_bytes(content.numpy().tobytes())
    return path, content


@pytest.mark.parametrize("piece", [1000, 4096, 10**6])
def test_every_byte_arrives_in_its_place(tmp_path: Path, piece: int) -> None:
    """Tensors larger and smaller than a piece, of several types, from two files."""
    wanted, stored = [], []
    for name in ("one", "two"):
        path, content = written(tmp_path, name, 60_000)
        for offset, shape, kind in (
            (8, (50, 40, 4), torch.float32),
            (32_008, (999,), torch.bfloat16),
            (34_006, (), torch.int64),
            (34_014, (0, 3), torch.float32),
        ):
            into = torch.zeros(shape, dtype=kind)
            count = into.numel() * into.itemsize
            wanted.append(content[offset : offset + count])
            stored.append(Extent(path, offset, into))
    with Reader(CPU, piece) as reader:
        arrival = reader.read(stored)
    arrival.wait()
    for one, expected in zip(stored, wanted, strict=True):
        assert torch.equal(one.into.reshape(-1).view(torch.uint8), expected)
    assert arrival.bytes == sum(map(len, wanted))
    assert arrival.seconds > 0


def test_what_is_asked_for_first_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text encoder before the transformer: by one thread, that no race blurs the order."""
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    path, _ = written(tmp_path, "file", 5000)
    began: list[ReadHandle] = []
    begin = ReadHandle.begin
    monkeypatch.setattr(ReadHandle, "begin", lambda self: (began.append(self), begin(self)))
    with Reader(CPU, 1000) as reader:
        arrivals = [
            reader.read([Extent(path, 0, torch.zeros(5000, dtype=torch.uint8))]) for _ in range(3)
        ]
    arrivals[-1].wait()
    assert began == [arrival for arrival in arrivals for _ in range(5)]


def test_a_file_that_ends_too_early_is_named(tmp_path: Path) -> None:
    path, _ = written(tmp_path, "short", 100)
    with Reader(CPU, 64) as reader:
        bad = reader.read([Extent(path, 0, torch.zeros(101, dtype=torch.uint8))])
        good = reader.read([Extent(path, 0, torch.zeros(100, dtype=torch.uint8))])
    with pytest.raises(EOFError, match="short ends too early"):
        bad.wait()
    good.wait()


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with Reader(CPU) as reader:
        arrival = reader.read([Extent(tmp_path / "gone", 0, torch.zeros(9))])
    with pytest.raises(FileNotFoundError, match="gone"):
        arrival.wait()


def test_nothing_is_read_on_after_an_error(tmp_path: Path) -> None:
    """Nobody waits for ever, and no thread stays."""
    path, _ = written(tmp_path, "file", 20_000)
    reader = Reader(CPU, 1)
    arrival = reader.read([Extent(path, 0, torch.zeros(20_000, dtype=torch.uint8))])
    with contextlib.suppress(ZeroDivisionError), reader:
        raise ZeroDivisionError
    with pytest.raises(InterruptedError):
        arrival.wait()
    assert not any(thread.is_alive() for thread in reader._threads)


@pytest.mark.parametrize("piece", [1, 50, 1000, 10**6])
def test_rows_are_put_whole_and_in_their_order(tmp_path: Path, piece: int) -> None:
    """Also rows longer than a piece; each some time, by one thread at a time."""
    path, content = written(tmp_path, "file", 10_000)
    found = torch.zeros(99, 100, dtype=torch.uint8)
    inside: list[int] = []

    def put(first: int, rows: torch.Tensor) -> None:
        inside.append(first)
        time.sleep(0.0005)  # another thread would come in now
        assert inside == [first]
        rows = rows.view(-1, 100)
        found[first : first + len(rows)] = rows
        assert inside.pop() == first

    with Reader(CPU, piece) as reader:
        arrival = reader.read([Rows(path, 7, 99, 100, put)])
    arrival.wait()
    assert torch.equal(found.view(-1), content[7:9907])
    assert arrival.bytes == 9900


def test_what_goes_wrong_while_rows_are_put_is_told_to_who_waits(tmp_path: Path) -> None:
    path, _ = written(tmp_path, "file", 100)

    def put(first: int, rows: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with Reader(CPU) as reader:
        arrival = reader.read([Rows(path, 0, 10, 10, put)])
    with pytest.raises(torch.OutOfMemoryError):
        arrival.wait()


_ENDING = """
import os, sys, torch
from pathlib import Path
from klein_cli.checkpoints.reader import Extent, Reader

for end in sys.argv[2:]:
    child = os.fork()
    if not child:
        with Reader(torch.device("cpu"), 4096) as reader:
            into = torch.empty(50_000_000, dtype=torch.uint8)
            reader.read([Extent(Path(sys.argv[1]), 0, into)] * 2)
        exec(end)
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.process
def test_a_process_that_ends_while_weights_come_ends_as_it_should(tmp_path: Path) -> None:
    """Python would end threads that are inside torch by a way that aborts."""
    path, _ = written(tmp_path, "file", 50_000_000)
    ends = {"": 0, "sys.exit(3)": 3, "raise KeyboardInterrupt": -signal.SIGINT}
    command = [sys.executable, "-c", _ENDING, str(path), *list(ends) * 3]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "terminate" not in done.stderr
    assert list(map(int, done.stdout.split())) == list(ends.values()) * 3


def test_nothing_to_read_is_there_at_once() -> None:
    with Reader(CPU) as reader:
        reader.read([]).wait()


@pytest.mark.gpu
def test_every_byte_arrives_on_a_gpu(tmp_path: Path) -> None:
    path, content = written(tmp_path, "file", 50_000_000)
    device = torch.device("cuda")
    with Reader(device, 2**20) as reader:
        into = [torch.empty(10_000_000, dtype=torch.uint8, device=device) for _ in range(5)]
        arrival = reader.read([Extent(path, n * 10_000_000, t) for n, t in enumerate(into)])
        while not arrival._whole.is_set():  # the main thread goes on computing
            torch.ones(1000, 1000, device=device).sum().item()
    arrival.wait()
    assert torch.equal(torch.cat(into).cpu(), content)
