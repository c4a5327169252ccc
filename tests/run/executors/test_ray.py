"""Workers: the same pictures from several processes, whatever happens to one of them."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy
import pytest

import klein_cli.run.executors.ray
from klein_cli.cli.app import main
from klein_cli.errors import KleinError, ModelError, OutOfMemoryError, UsageError
from klein_cli.recipe import Recipe
from klein_cli.run.executors.executor import Origin, WorkerDied
from klein_cli.run.executors.ray import Pool, _own_folder, _whereabouts, hire
from klein_cli.run.executors.worker import Drawn, Hello, Order, Worker
from klein_cli.run.fallback import Attempt
from klein_cli.run.jobs import Job
from klein_cli.settings import Settings

LAUNCH = "import sys; from klein_cli.cli.app import main; sys.exit(main())"


def hello(threads: int) -> Hello:
    origin = Origin(
        repo=None,
        revision=None,
        weights="00",
        settings=Settings(),
        provenance={"threads": str(threads)},
    )
    return Hello(origin=origin, batch_size=1)


HELLO = hello(2)


def attempt(index: int = 1, prompt: str = "a cat", side: int = 64) -> Attempt:
    recipe = Recipe(
        prompt=prompt, seed=index, width=side, height=side, steps=1, guidance=1.0, model="small"
    )
    job = Job(index=index, recipe=recipe, path=Path(f"{index}.png"), exact=False)
    return Attempt(jobs=(job,), planned=1)


# A worker's own side, in this process.


def test_a_worker_draws_what_the_pipeline_draws(small_snapshot: Path) -> None:
    import torch

    from klein_cli.checkpoints.resolve import resolve
    from klein_cli.pipeline import Pipeline, choose

    worker, threads = Worker(), torch.get_num_threads()
    settings = Settings(device="cpu")
    ready = worker.load(Order(model=str(small_snapshot), settings=settings, threads=threads))
    assert isinstance(ready, Hello)
    assert ready.origin.settings.dtype == "float32"
    assert ready.origin.provenance["threads"] == str(threads)
    pipeline = Pipeline.load(resolve(str(small_snapshot)), choose(settings))
    drawn = worker.draw(attempt())
    assert drawn.error is None
    assert numpy.array_equal(drawn.pictures[0], pipeline.render(attempt().recipes)[0])


def test_a_model_that_is_not_there_is_the_workers_answer(tmp_path: Path) -> None:
    answer = Worker().load(Order(model=str(tmp_path / "x"), settings=Settings(), threads=2))
    assert isinstance(answer, ModelError)


def test_errors_come_through_with_what_a_user_needs(small_snapshot: Path) -> None:
    class Broken:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def render(self, *_: object, **__: object) -> None:
            raise self.error

    class Unpicklable(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(f"{one} and {two}")

    worker = Worker()
    worker._pipeline = Broken(OutOfMemoryError("it did not fit", "use less"))  # type: ignore[assignment]
    (error,) = [pickle.loads(pickle.dumps(worker.draw(attempt()))).error]
    assert (type(error), error.message, error.hint) == (
        OutOfMemoryError,
        "it did not fit",
        "use less",
    )
    for bug, kind, words in (
        (ZeroDivisionError("oops"), ZeroDivisionError, "oops"),
        (Unpicklable(1, 2), RuntimeError, "Unpicklable: 1 and 2"),
    ):
        worker._pipeline = Broken(bug)  # type: ignore[assignment]
        error = pickle.loads(pickle.dumps(worker.draw(attempt()))).error
        assert (type(error), str(error)) == (kind, words)
        assert "in render" in error.__notes__[0]


# The driver's side, with a Ray whose answers are written down beforehand.


class Actor:
    """An actor that answers when it is told to; `None` as an answer is its death."""

    def __init__(self) -> None:
        self.calls: deque[Any] = deque()
        self.answers: dict[object, Any] = {}
        self.killed = False
        self.load = SimpleNamespace(remote=self.call)
        self.draw = SimpleNamespace(remote=self.call)

    def call(self, argument: Any) -> object:
        reference = object()
        self.calls.append((reference, argument))
        return reference

    def answer(self, answer: Any) -> None:
        reference, _ = self.calls.popleft()
        self.answers[reference] = answer


class FakeRay:
    exceptions = SimpleNamespace(RayError=LookupError)

    def __init__(self) -> None:
        self.actors: list[Actor] = []

    def start(self) -> tuple[Actor, object]:
        actor = Actor()
        self.actors.append(actor)
        return actor, actor.call("load")

    def wait(self, references: Sequence[object], num_returns: int) -> tuple[list[object], Any]:
        known = [ref for actor in self.actors for ref in actor.answers if ref in references]
        assert known, "the pool waits for an answer that never comes"
        return known[:1], None

    def get(self, reference: object) -> Any:
        answer = next(a.answers.pop(reference) for a in self.actors if reference in a.answers)
        if answer is None:
            raise self.exceptions.RayError
        return answer

    def kill(self, actor: Actor) -> None:
        actor.killed = True


@pytest.fixture
def ray() -> FakeRay:
    return FakeRay()


def pool_of(ray: FakeRay, *answers: Hello | Exception | None) -> Pool:
    """A pool whose workers answered so to load; the rest have not answered yet."""
    pool = Pool(ray, ray.start, 2)
    for actor, answer in zip(ray.actors, answers, strict=False):
        actor.answer(answer)
    pool.wait_for_the_first()
    return pool


def drawn(error: Exception | None = None) -> Drawn:
    picture = numpy.zeros((64, 64, 3), numpy.uint8)
    return Drawn(pictures=[] if error else [picture], error=error, seconds=1.0)


def fill(pool: Pool) -> int:
    given = 0
    while pool.has_room():
        given += 1
        pool.give(attempt(given))
    return given


def test_a_worker_has_one_attempt_in_hand_and_one_in_line(ray: FakeRay) -> None:
    pool = pool_of(ray, HELLO)
    assert fill(pool) == 2
    # The second worker begins as soon as it is ready, not before.
    ray.actors[1].answer(HELLO)
    assert pool.take() is None
    assert fill(pool) == 2
    assert [len(actor.calls) for actor in ray.actors] == [2, 2]
    ray.actors[1].answer(drawn())
    outcome = pool.take()
    assert outcome is not None
    assert outcome.describe(attempt().recipes[0], None)["provenance"] == {"threads": "2"}
    assert pool.has_room()


def test_a_dead_workers_attempts_come_back_and_another_is_started(ray: FakeRay) -> None:
    pool = pool_of(ray, HELLO, HELLO)
    pool.take()
    fill(pool)
    ray.actors[0].answer(None)
    errors = [outcome.error for outcome in (pool.take(), pool.take()) if outcome]
    assert [type(error) for error in errors] == [WorkerDied, WorkerDied]
    assert [error.drawing for error in errors if isinstance(error, WorkerDied)] == [True, False]
    assert list(pool.notices()) == [
        "a worker died; what it had is drawn by others, and another is started"
    ]
    assert len(ray.actors) == 3
    ray.actors[2].answer(HELLO)
    assert pool.take() is None
    assert pool.has_room()


def test_workers_that_die_again_and_again_are_given_up(ray: FakeRay) -> None:
    pool = Pool(ray, ray.start, 1)
    ray.actors[0].answer(HELLO)
    pool.wait_for_the_first()
    for deaths in (1, 2, 3):
        pool.give(attempt())
        ray.actors[-1].answer(None)
        outcome = pool.take()
        assert outcome is not None
        assert isinstance(outcome.error, WorkerDied)
        if deaths < 3:
            ray.actors[-1].answer(HELLO)
            assert pool.take() is None
    assert len(ray.actors) == 3
    assert not pool.has_room()
    with pytest.raises(KleinError, match="all workers died"):
        pool.take()


def test_one_that_cannot_load_is_told_of_and_the_others_go_on(ray: FakeRay) -> None:
    pool = pool_of(ray, OutOfMemoryError("no room", "use less"), HELLO)
    assert list(pool.notices()) == ["a worker could not load the model: no room"]
    assert pool.size == 1
    assert fill(pool) == 2


def test_when_none_can_load_it_is_the_runs_error(ray: FakeRay) -> None:
    error = OutOfMemoryError("no room", "use less")
    with pytest.raises(OutOfMemoryError, match="no room"):
        pool_of(ray, error, error)


def test_when_the_last_one_cannot_load_again_the_run_ends_as_of_a_death(ray: FakeRay) -> None:
    """Pictures are made by then: they are told of, and the run can be taken up."""
    pool = Pool(ray, ray.start, 1)
    ray.actors[0].answer(HELLO)
    pool.wait_for_the_first()
    pool.give(attempt())
    ray.actors[0].answer(None)
    assert pool.take() is not None
    ray.actors[-1].answer(OutOfMemoryError("no room", "use less"))
    assert pool.take() is None
    with pytest.raises(KleinError, match="all workers died, the last one so: no room"):
        pool.take()


@pytest.mark.skipif(sys.platform == "win32", reason="sockets have paths elsewhere")
@pytest.mark.parametrize("length", [8, 40, 90])
def test_rays_sockets_have_paths_that_are_short_enough(
    length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/" + "t" * (length - 1))
    with _own_folder() as folder:
        name = f"session_2026-11-25_12-31-40_269073_{2**22}/sockets/plasma_store"
        assert len(f"{folder}/{name}") <= 103


def test_the_folder_of_a_ray_that_runs_elsewhere_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of this number may be another one on the machine that shares the place."""
    monkeypatch.setattr("klein_cli.run.executors.ray._SHORT", 4096)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = tmp_path / f"klein-ray-{_whereabouts()}-{dead.pid}-x"
    elsewhere = tmp_path / f"klein-ray-0000-{dead.pid}-x"
    for folder in (left, elsewhere):
        folder.mkdir()
    with _own_folder():
        assert not left.exists()
        assert elsewhere.exists()


def test_workers_that_compute_otherwise_are_told_of_once(ray: FakeRay) -> None:
    pool = pool_of(ray, HELLO, hello(8))
    pool.take()
    assert "differ" in "".join(pool.notices())


# The whole way, with Ray itself.


def test_without_ray_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(klein_cli.run.executors.ray, "find_spec", lambda name: None)
    for options in (["--workers", "2"], ["--ray", "auto"]):
        assert main(["generate", "a cat", "-n", "2", "-m", "tiny", "-o", "x/", *options]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {' '.join(options)} needs Ray")
        assert "klein-cli[ray]" in said.splitlines()[1]
    assert not Path("x").exists()


@pytest.mark.parametrize("model", ["dist", "tiny"])
def test_workers_are_told_of_a_folder_by_its_full_path(
    model: str, small_snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may stand elsewhere, where a name without a slash would be a hub's or nothing."""
    orders: list[Order] = []

    def stop(order: Order, *_: object, **__: object) -> None:
        orders.append(order)
        raise KleinError("enough", "look at the order")

    monkeypatch.setattr(klein_cli.run.executors.ray, "hire", stop)
    monkeypatch.setattr(klein_cli.run.executors.ray, "find_spec", lambda name: object())
    monkeypatch.chdir(tmp_path)
    Path("dist").symlink_to(small_snapshot)
    size = ["--size", "128x128", "-n", "2", "-o", "out/"]
    assert main(["generate", "a cat", "-m", model, "--workers", "2", "--device", "cpu", *size]) == 1
    wanted = {"dist": str(small_snapshot.resolve()), "tiny": "tiny"}
    assert [order.model for order in orders] == [wanted[model]]


def test_a_gpu_is_no_place_for_several_workers(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["-m", "tiny", "--workers", "2", "--device", "cuda:1"]
    assert main(["generate", "a cat", "-n", "2", *options]) == 2
    assert "--device cuda:1 is one GPU" in capsys.readouterr().err


def command(folder: Path, pictures: int, *more: str) -> list[str]:
    prompts = folder.parent / "prompts.txt"
    prompts.write_text("\n".join(f"a red circle, number {n}" for n in range(pictures)))
    options = ["-m", "tiny", "--size", "128x128", "--steps", "2", "--device", "cpu", "-s", "5"]
    source = ["--prompts-file", str(prompts), "-o", f"{folder}/"]
    return ["generate", *source, *options, *more]


class Running:
    """`klein` with two workers, as a process that can be watched and wounded.

    What it says goes to files: `out` and `err`.
    """

    def __init__(self, arguments: Sequence[str], folder: Path) -> None:
        self.folder, self.where = folder, folder.parent
        self.mark = f"KLEIN_TEST={folder}"
        name, _, value = self.mark.partition("=")
        with open(self.where / "out", "w") as out, open(self.where / "err", "w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-c", LAUNCH, *arguments, "--workers", "2"],
                stdout=out,
                stderr=err,
                env=os.environ | {name: value},
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

    def offspring(self) -> Iterator[tuple[int, str]]:
        """(pid, title) of every living process that this one started, however remotely."""
        for place in Path("/proc").glob("[0-9]*"):
            try:
                environment = (place / "environ").read_bytes()
                title = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            except OSError:
                continue
            if os.fsencode(self.mark) in environment and int(place.name) != self.process.pid:
                yield int(place.name), title

    def workers(self) -> list[int]:
        return [pid for pid, title in self.offspring() if title.startswith("ray::Worker.draw")]

    def ended(self) -> int:
        code = self.process.wait(timeout=300)
        left = {title for _, title in self.offspring()}
        assert not left, "Ray left processes behind"
        assert not list(Path("/tmp").glob(f"klein-ray-*-{self.process.pid}-*"))
        return code


with_ray = pytest.mark.skipif(
    klein_cli.run.executors.ray.find_spec("ray") is None or not Path("/proc/self").exists(),
    reason="needs Ray, and /proc to see its processes",
)


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


@with_ray
def test_two_workers_one_of_which_is_killed_make_the_same_files(tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    running = Running(command(together, 10, "--json"), together)
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
    assert sorted(made) == list(range(1, 11)), "a picture was made twice, or is not on record"


@pytest.mark.slow
@with_ray
def test_workers_that_are_killed_all_the_time_make_the_same_files(tmp_path: Path) -> None:
    """Twenty kills over one run, which is taken up when too many workers have died."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    count, kills, random = 60, 0, Random(7)
    while kills < 20:
        running = Running(command(together, count, "--resume"), together)
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
    running = Running(command(together, count, "--resume"), together)
    assert running.ended() == 0
    assert main(command(alone, count, "-q")) == 0
    assert pictures(together) == pictures(alone)


@pytest.mark.slow
@with_ray
def test_a_driver_that_is_killed_is_taken_up(tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    running = Running(command(together, 10), together)
    assert running.wait_until(lambda: running.pictures() >= 3)
    running.process.kill()
    running.process.wait()
    # What Ray had started ends by itself, though not at once.
    assert wait_until(lambda: not list(running.offspring()), 300)
    again = Running(command(together, 10, "--resume"), together)
    assert again.ended() == 0
    assert main(command(alone, 10, "-q")) == 0
    assert pictures(together) == pictures(alone)


def wait_until(true: Callable[[], bool], seconds: float) -> bool:
    ends = time.monotonic() + seconds
    while not true() and time.monotonic() < ends:
        time.sleep(0.2)
    return true()


@pytest.mark.slow
@with_ray
def test_an_interrupt_ends_the_workers(tmp_path: Path) -> None:
    together = tmp_path / "together"
    running = Running(command(together, 40), together)
    assert running.wait_until(lambda: running.pictures() >= 2)
    os.killpg(running.process.pid, signal.SIGINT)  # as a terminal does: to all of them
    assert running.ended() == 130
    told = running.said("err")
    assert re.fullmatch(
        r"interrupted: \d+ of 40 pictures made; the same command with --resume makes the rest\n",
        told,
    )


@pytest.mark.slow
@with_ray
def test_a_ray_that_runs_already_is_used_and_left_running(tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    ray = Path(sys.executable).with_name("ray")
    head = ["start", "--head", "--port", "0", "--num-cpus", "2", "--include-dashboard", "false"]
    quiet = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    subprocess.run([ray, *head], check=True, env=quiet, capture_output=True)
    try:
        launch = [sys.executable, "-c", LAUNCH, *command(together, 4), "--ray", "auto"]
        done = subprocess.run([*launch, "--workers", "2"], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        look = "import ray; ray.init('auto', logging_level='ERROR'); print(len(ray.nodes()))"
        status = subprocess.run([sys.executable, "-c", look], capture_output=True, env=quiet)
        assert status.stdout == b"1\n"
    finally:
        subprocess.run([ray, "stop", "--force"], check=True, capture_output=True)
    assert main(command(alone, 4, "-q")) == 0
    assert pictures(together) == pictures(alone)


@pytest.mark.gpu
@with_ray
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


@with_ray
def test_more_workers_than_gpus_are_refused_before_ray_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    order = Order(model="tiny", settings=Settings(), threads=2)
    wanted = "--workers 2 want a GPU each, and there is 1"
    with pytest.raises(UsageError, match=wanted), hire(order, 2, most=2, address=None):
        pass


@with_ray
def test_a_ray_that_is_not_there_is_a_users_error(tmp_path: Path) -> None:
    launch = [sys.executable, "-c", LAUNCH, *command(tmp_path / "d", 2), "--ray", "127.0.0.1:9"]
    done = subprocess.run(launch, capture_output=True, text=True)
    assert done.returncode == 1
    what, todo = done.stderr.splitlines()
    assert what.startswith("error: Ray does not start")
    assert todo.startswith("hint: ")
    assert not (tmp_path / "d").exists()
