"""Workers: the same images from several processes, whatever happens to one of them.

What is asked of processes of this host is asked of a Ray cluster, too.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from given_images import photo

from klein_cli.cli.app import main
from klein_cli.errors import KleinError, UsageError
from klein_cli.run.executors import process
from klein_cli.run.executors.placement import Placement
from klein_cli.run.executors.process import Processes, visible_gpus
from klein_cli.run.executors.worker import LoadRequest

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc to see the workers"),
]

LAUNCH = "import sys; from klein_cli.cli.app import main; sys.exit(main())"
PROGRAM = "klein_cli.run.executors.worker_process"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a test's workers are: the options and variables that say so, how `ps` shows them, and
    what marks their environment; none is the run's own mark.
    """

    options: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    title: str = PROGRAM
    mark: str | None = None


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A Ray that runs, which must be running still when the tests are over."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ray, mark = Path(sys.executable).with_name("ray"), f"klein-test-{port}"
    head = ["start", "--head", "--block", "--port", port, "--num-cpus", "2"]
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": mark.ljust(40, "x")}
    quiet = os.environ | token | {"RAY_USAGE_STATS_ENABLED": "0", "KLEIN_TEST": mark}
    running = subprocess.Popen(
        [ray, *head, "--include-dashboard", "false"],
        env=quiet,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    look = f"import ray; ray.init('127.0.0.1:{port}', logging_level='ERROR')"
    answers = [sys.executable, "-c", look]

    def is_up() -> bool:
        return subprocess.run(answers, capture_output=True, env=quiet).returncode == 0

    try:
        assert wait_until(is_up, 120), "Ray does not start"
        options = ["--ray", f"127.0.0.1:{port}"]
        mine = f"KLEIN_TEST={mark}"
        yield Place(options=options, environment=token, title="ray::Worker.draw", mark=mine)
        assert running.poll() is None
        assert is_up(), "klein ended a Ray that is not its own"
    finally:
        running.terminate()
        running.wait()


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Place:
    if request.param == "processes":
        return Place()
    if find_spec("ray") is None:
        pytest.skip("needs Ray")
    found: Place = request.getfixturevalue("cluster")
    return found


everywhere = pytest.mark.parametrize("place", ["processes", "ray"], indirect=True)
quickly = pytest.mark.parametrize(
    "place", ["processes", pytest.param("ray", marks=pytest.mark.slow)], indirect=True
)


def command(folder: Path, pictures: int, *more: str) -> list[str]:
    """A run of so many images, of which every other edits one of two that were given."""
    given = [photo(folder.parent / f"given-{k}.png", seed=k) for k in range(2)]
    rows = [
        {"prompt": f"a red circle, number {n}", "image": [given[n // 2 % 2].name] * (n % 2)}
        for n in range(pictures)
    ]
    prompts = folder.parent / "prompts.jsonl"
    prompts.write_text("\n".join(map(json.dumps, rows)))
    options = ["-m", "tiny", "--size", "128x128", "--steps", "2", "--device", "cpu", "-s", "5"]
    source = ["--prompts-file", str(prompts), "-o", f"{folder}/"]
    return ["generate", *source, *options, *more]


class Running:
    """`klein` with two workers, as a process that can be watched and wounded.

    What it says goes to files: `out` and `err`.
    """

    def __init__(self, arguments: Sequence[str], folder: Path, place: Place) -> None:
        self.folder, self.where, self.place = folder, folder.parent, place
        self.mark = f"KLEIN_TEST={folder}"
        name, _, value = self.mark.partition("=")
        with open(self.where / "out", "w") as out, open(self.where / "err", "w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-c", LAUNCH, *arguments, "--workers", "2", *place.options],
                stdout=out,
                stderr=err,
                env=os.environ | place.environment | {name: value},
                start_new_session=True,
            )

    def said(self, name: str) -> str:
        return (self.where / name).read_text()

    def pictures(self) -> int:
        return len(list(self.folder.glob("*.png")))

    def wait_until(self, true: Callable[[], bool]) -> bool:
        while not true() and self.process.poll() is None:
            time.sleep(0.02)
        return true()

    def workers(self) -> list[int]:
        marked = processes(self.place.mark or self.mark)
        return [pid for pid, title in marked if self.place.title in title]

    def ended(self) -> int:
        code = self.process.wait(timeout=300)
        left = [title for _, title in processes(self.mark)]
        assert not left, "klein left processes behind"
        assert wait_until(lambda: not self.workers(), 60)
        return code


def processes(mark: str) -> Iterator[tuple[int, str]]:
    """(pid, title) of every living process in whose environment the mark is."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            environment = (place / "environ").read_bytes()
            title = (place / "cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            continue
        if os.fsencode(mark) in environment.split(b"\0"):
            yield int(place.name), title.decode(errors="replace").strip()


def wait_until(true: Callable[[], bool], seconds: float) -> bool:
    ends = time.monotonic() + seconds
    while not true() and time.monotonic() < ends:
        time.sleep(0.1)
    return true()


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


@everywhere
def test_two_workers_one_of_which_is_killed_make_the_same_files(
    place: Place, tmp_path: Path
) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    running = Running(command(together, 10, "--json"), together, place)
    assert running.wait_until(lambda: running.pictures() >= 2 and len(running.workers()) == 2)
    os.kill(running.workers()[0], signal.SIGKILL)
    assert running.ended() == 0
    events = [json.loads(line) for line in running.said("out").splitlines()]
    assert [event["event"] for event in events if event["event"] != "picture"] == [
        "started",
        "warning",
        "finished",
    ]
    assert running.said("err") == (
        "warning: a worker died; what it had is drawn by others, and another is started\n"
    )
    assert main(command(alone, 10, "-q")) == 0
    assert pictures(together) == pictures(alone)
    assert len(pictures(alone)) == 10
    lines = [json.loads(line) for line in (together / "manifest.jsonl").read_text().splitlines()]
    made = [line["index"] for line in lines if line["kind"] == "picture"]
    assert sorted(made) == list(range(1, 11)), "an image was made twice, or is not on record"


@pytest.mark.slow
@everywhere
def test_workers_that_are_killed_all_the_time_make_the_same_files(
    place: Place, tmp_path: Path
) -> None:
    """Twenty kills over one run, which is taken up when too many workers have died."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    count, kills, random = 60, 0, Random(7)
    while kills < 20:
        running = Running(command(together, count, "--resume"), together, place)
        while running.wait_until(lambda: bool(running.workers())):  # noqa: B023
            time.sleep(random.uniform(0, 0.5))
            workers = running.workers()
            if workers and kills < 20:
                os.kill(random.choice(workers), signal.SIGKILL)
                kills += 1
        if running.ended() == 0:
            # Faster than the killer. Half of it goes, so that there is work left.
            for path in sorted(together.glob("*.png"))[::2]:
                path.unlink()
    running = Running(command(together, count, "--resume"), together, place)
    assert running.ended() == 0
    assert main(command(alone, count, "-q")) == 0
    assert pictures(together) == pictures(alone)


@quickly
def test_a_driver_that_is_killed_leaves_no_worker_and_is_taken_up(
    place: Place, tmp_path: Path
) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    running = Running(command(together, 10), together, place)
    assert running.wait_until(lambda: running.pictures() >= 3)
    running.process.kill()
    running.process.wait()
    assert wait_until(lambda: not list(processes(running.mark)), 10)
    again = Running(command(together, 10, "--resume"), together, place)
    assert again.ended() == 0
    assert main(command(alone, 10, "-q")) == 0
    assert pictures(together) == pictures(alone)


@quickly
def test_an_interrupt_ends_the_workers(place: Place, tmp_path: Path) -> None:
    together = tmp_path / "together"
    running = Running(command(together, 40), together, place)
    assert running.wait_until(lambda: running.pictures() >= 2)
    os.killpg(running.process.pid, signal.SIGINT)  # as a terminal does: to all of them
    assert running.ended() == 130
    told = running.said("err")
    assert re.fullmatch(
        r"interrupted: \d+ of 40 images made; the same command with --resume makes the rest\n",
        told,
    )


def test_a_worker_does_not_heed_an_interrupt_of_its_own(tmp_path: Path) -> None:
    """What is drawn when the user interrupts is written: its worker must not end before."""
    together = tmp_path / "together"
    running = Running(command(together, 6), together, Place())
    assert running.wait_until(lambda: running.pictures() >= 1)
    for pid in running.workers():
        os.kill(pid, signal.SIGINT)
    assert running.ended() == 0
    assert running.said("err") == ""


CUSTOMIZE = f"""
import os, sys
if {PROGRAM!r} in sys.orig_argv:
    print("noise", flush=True)
    os.write(1, b"more noise\\n")
    print("no such library", file=sys.stderr, flush=True)
    if "KLEIN_TEST_FAILS" in os.environ:
        os._exit(7)
"""


def run_with_noise(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A run in a folder whose files are no modules, with workers that print."""
    (folder / "sitecustomize.py").write_text(CUSTOMIZE)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "numpy.py").write_text("raise SystemExit('not this one')")
    path = os.pathsep.join([str(folder), *map(os.path.abspath, sys.path)])
    launch = [sys.executable, "-P", "-c", LAUNCH, *command(folder / "d", 2, "--workers", "2")]
    return subprocess.run(
        launch,
        capture_output=True,
        text=True,
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": path} | environment,
    )


def test_nothing_that_a_worker_prints_is_a_result(tmp_path: Path) -> None:
    done = run_with_noise(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == sorted(map(str, (tmp_path / "d").glob("*.png")))


def test_when_no_worker_can_start_the_last_that_it_printed_is_told(tmp_path: Path) -> None:
    done = run_with_noise(tmp_path, KLEIN_TEST_FAILS="1")
    assert done.returncode == 1
    assert "error: all workers died; the last error: no such library" in done.stderr
    assert "noise" not in done.stdout


def test_a_worker_is_there_before_anything_heavy_and_without_the_command_line() -> None:
    look = f"import sys, {PROGRAM}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", "numpy", "PIL", "tokenizers", "typer", "klein_cli.cli"}


# What a worker may see.


def environment(pid: int) -> dict[str, str]:
    entries = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def children() -> dict[int, str]:
    """The workers that this process has, and the GPUs that each may see."""
    mine = (
        (int(place.name), place / "stat", place / "cmdline")
        for place in Path("/proc").glob("[0-9]*")
    )
    found = {}
    for pid, stat, line in mine:
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and PROGRAM.encode() in line.read_bytes():
                found[pid] = environment(pid).get("CUDA_VISIBLE_DEVICES", "all")
        except OSError:
            continue
    return found


def test_each_worker_sees_one_gpu_and_its_successor_the_same() -> None:
    transport = Processes(["3", "GPU-5a"])
    links = [transport.start(), transport.start()]
    try:
        assert wait_until(lambda: sorted(children().values()) == ["3", "GPU-5a"], 20)
        transport.end(links[:1])
        links[0] = transport.start()
        assert wait_until(lambda: sorted(children().values()) == ["3", "GPU-5a"], 20)
    finally:
        transport.end(links)
    assert not children()


@pytest.mark.parametrize(
    ("named", "count", "gpus"),
    [
        (None, 2, ["0", "1"]),
        ("2,3,5", 2, ["2", "3"]),
        ("GPU-5a,MIG-7", 2, ["GPU-5a", "MIG-7"]),
    ],
)
def test_the_gpus_are_those_that_the_user_left_visible(
    named: str | None, count: int, gpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus(count) == gpus


def test_more_workers_than_gpus_are_refused_before_one_starts() -> None:
    work: Any = SimpleNamespace(placement=Placement(workers=2), gpus=1)
    with pytest.raises(UsageError, match="there is 1"), process.start(work):
        pass


@pytest.mark.parametrize("model", ["dist", "tiny"])
def test_workers_are_told_of_a_folder_by_its_full_path(
    model: str, small_snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may stand elsewhere, where a name without a slash would be a hub's or nothing."""
    requests: list[LoadRequest] = []

    def stop(transport: object, request: LoadRequest, count: int, **_: object) -> None:
        requests.append(request)
        raise KleinError("enough", "look at the request")

    monkeypatch.setattr("klein_cli.run.executors.pool.Pool", stop)
    monkeypatch.chdir(tmp_path)
    Path("dist").symlink_to(small_snapshot)
    size = ["--size", "128x128", "-n", "2", "-o", "out/"]
    assert main(["generate", "a cat", "-m", model, "--workers", "2", "--device", "cpu", *size]) == 1
    wanted = {"dist": str(small_snapshot.resolve()), "tiny": "tiny"}
    assert [request.model for request in requests] == [wanted[model]]


def test_a_gpu_is_no_place_for_several_workers(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["-m", "tiny", "--workers", "2", "--device", "cuda:1"]
    assert main(["generate", "a cat", "-n", "2", *options]) == 2
    assert "--device cuda:1 is one GPU" in capsys.readouterr().err


@pytest.mark.gpu
def test_two_gpus_make_the_files_of_one(tmp_path: Path) -> None:
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"a red circle, number {n}" for n in range(24)))
    for name, workers in (("alone", "1"), ("together", "auto")):
        options = ["-m", "tiny", "-s", "5", "-q", "--device", "cuda", "--workers", workers]
        launch = [sys.executable, "-c", LAUNCH, "generate", "--prompts-file", str(prompts)]
        done = subprocess.run(
            [*launch, "-o", f"{tmp_path / name}/", *options], capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert pictures(tmp_path / "together") == pictures(tmp_path / "alone")
    assert len(pictures(tmp_path / "alone")) == 24
