"""A thousand requests to `tiny`, from clients good, impatient, broken and mad; and a kill amid."""

from __future__ import annotations

import base64
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.process]

REQUESTS = 1000
SEEDS = 20
GROWTH = 40_000
"""KB that the front may grow by after the first quarter: noise of its allocator."""


class Front:
    """`klein serve` in a process, on a port of its own."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        command = [sys.executable, "-P", "-m", "klein_cli", "serve", "-m", "tiny", "--no-config"]
        command += ["--socket", str(folder / "s"), "--port", str(self.port), "--log", "none"]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        self.url = f"http://127.0.0.1:{self.port}"

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def memory(self) -> int:
        """KB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])

    def kill_the_engine(self) -> None:
        folder = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        for child in folder.read_text().split():
            os.kill(int(child), signal.SIGKILL)


@pytest.fixture
def front(short_folder: Path) -> Iterator[Front]:
    found = Front(short_folder)
    try:
        until = time.monotonic() + 120
        while not found.ready():
            assert time.monotonic() < until
            time.sleep(0.1)
        yield found
    finally:
        found.process.terminate()
        assert found.process.wait(60) == 0


def one(front: Front, number: int, drawn: dict[int, bytes]) -> str:
    """What became of one request."""
    kind, seed = number % 10, number % SEEDS
    body = {"prompt": "a red circle", "seed": seed, "size": "128x128", "steps": 1}
    with httpx.Client(base_url=front.url, trust_env=False, timeout=300) as client:
        if kind < 6:
            answer = client.post("/v1/images/generations", json=body)
            assert answer.status_code == 200, answer.text
            (entry,) = answer.json()["data"]
            assert entry["seed"] == seed, "an answer of somebody else"
            data = base64.b64decode(entry["b64_json"])
            assert drawn.setdefault(seed, data) == data
            return "drawn"
        if kind == 6:
            try:
                client.post("/v1/images/generations", json=body | {"n": 5}, timeout=0.05)
            except httpx.TimeoutException:
                return "left"
            return "drawn"
        if kind == 7:
            answer = client.post("/v1/images/generations", json={"prompt": ["?"] * 1000, "n": {}})
            assert answer.status_code == 400
            return "nonsense"
    with socket.create_connection(("127.0.0.1", front.port), timeout=60) as raw:
        garbage = os.urandom(2000)
        half = b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n"
        raw.sendall(garbage if kind == 8 else half)
        return "garbage"


def test_a_thousand_requests(front: Front) -> None:
    drawn: dict[int, bytes] = {}
    quarter = REQUESTS // 4
    with ThreadPoolExecutor(8) as pool:
        became = list(pool.map(lambda n: one(front, n, drawn), range(quarter)))
        before = front.memory()
        rest = [pool.submit(one, front, number, drawn) for number in range(quarter, REQUESTS)]
        while sum(each.done() for each in rest) < quarter:
            time.sleep(0.01)
        front.kill_the_engine()
        became += [each.result() for each in rest]
    assert became.count("drawn") >= REQUESTS * 6 // 10
    assert len(drawn) == SEEDS * 6 // 10
    assert front.memory() < before + GROWTH
    metrics = httpx.get(f"{front.url}/metrics", trust_env=False).text
    assert "klein_engine_deaths_total 1" in metrics
    status = httpx.get(f"{front.url}/klein/v1/status", trust_env=False).json()
    assert status["jobs"] == []
