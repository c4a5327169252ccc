"""The journal of a run: what failed can be tried again by itself, and strays are swept."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from given_images import input_images, mask, photo

from klein_cli.checkpoints.lora.store import AdapterStore
from klein_cli.output.metadata import Origin
from klein_cli.output.naming import destination
from klein_cli.presets import presets
from klein_cli.prompts.files import read_rows
from klein_cli.prompts.rows import Defaults, Inputs, Row, recipe_of
from klein_cli.recipe import Adapter, Model
from klein_cli.run.adapters import InputAdapters
from klein_cli.run.jobs import Job
from klein_cli.run.plan import Output, Plan, plan
from klein_cli.run.resume.journal import RunJournal
from klein_cli.run.resume.manifest import opened
from klein_cli.settings import Settings
from tests.fixtures.adapters import write_for_tiny

TINY, BASE = presets()["tiny"], presets()["klein-base-4b"]


pytestmark = pytest.mark.usefixtures("empty_folder")


def planned(*rows: Row, model: str = "tiny", n: int = 1) -> Plan:
    return plan(
        rows,
        source="p.jsonl",
        defaults=Defaults(preset=presets()[model], width=256, height=256, steps=4, n=n),
        seed=10,
        output=Output(where=destination("d/"), overwrite=False, today=date(2026, 3, 9)),
        images=input_images(),
    )


@pytest.fixture
def journal() -> Iterator[RunJournal]:
    with opened(Path("d")) as manifest:
        journal = RunJournal(manifest, manifest.history(), resumed=False, preset=TINY)
        journal.open(planned(Row(prompt="a")), model="tiny", seed=10)
        yield journal


def jobs(*rows: Row) -> list[Job]:
    return list(planned(*rows).jobs)


def read_back() -> list[Row]:
    rows = list(read_rows("d/failed.jsonl", io.BytesIO()))
    assert all(isinstance(row, Row) for row in rows)
    return rows  # type: ignore[return-value]


def test_a_failed_row_reads_back_as_the_picture_that_is_missing(journal: RunJournal) -> None:
    rows = (Row(prompt=" a café \u2028 猫", seed=5, width=128), Row(prompt="b", output="e/x.jpg"))
    lost = jobs(*rows)
    for job in lost:
        journal.failed(job, "it did not fit")
    again = planned(*read_back()).jobs
    assert [(job.recipe, job.path) for job in again] == [(job.recipe, job.path) for job in lost]


def test_guidance_is_kept_where_it_counts() -> None:
    rows = [Row(prompt="a", width=512, height=512, guidance=1.0, negative_prompt="rain")]
    (job,) = planned(*rows, model="klein-base-4b").jobs
    with opened(Path("d")) as manifest:
        RunJournal(manifest, manifest.history(), resumed=False, preset=BASE).failed(job, "oops")
    (row,) = read_back()
    assert (row.guidance, row.negative_prompt) == (1.0, "rain")


def test_a_name_that_is_not_utf8_reads_back_too(journal: RunJournal) -> None:
    (lost,) = jobs(Row(prompt="a", output="caf\udce9.png"))
    journal.failed(lost, "cannot write caf\udce9.png")
    (again,) = planned(*read_back()).jobs
    assert again.path == lost.path


def test_at_the_end_only_what_is_still_missing_stays_each_once(journal: RunJournal) -> None:
    one, two, three = jobs(Row(prompt="a"), Row(prompt="b"), Row(prompt="c"))
    for job in (one, two, two, three):
        journal.failed(job, "oops")
    Path("d/0001-a-10.png").touch()
    Path("d/failed.jsonl").write_bytes(Path("d/failed.jsonl").read_bytes() + b'{"prompt": "to')
    journal.close()
    # What lies at the first one's name is somebody else's: in this run it failed.
    assert [row.prompt for row in read_back()] == ["a", "b", "c"]
    later = RunJournal(journal._manifest, journal._manifest.history(), resumed=True, preset=TINY)
    later.close()
    assert [row.prompt for row in read_back()] == ["b", "c"]
    Path("d/0002-b-11.png").touch()
    Path("d/0003-c-12.png").touch()
    later.close()
    assert not Path("d/failed.jsonl").exists()
    later.close()


def test_what_is_none_of_ours_in_failed_jsonl_stays(journal: RunJournal) -> None:
    """Rows that somebody wrote there, and notes; with or without an end of the last line."""
    theirs = b'{"prompt":"precious","seed":1}\n[1]\nmy notes'
    Path("d/failed.jsonl").write_bytes(theirs)
    journal.close()
    assert Path("d/failed.jsonl").read_bytes() == theirs
    (job,) = jobs(Row(prompt="a"))
    journal.failed(job, "oops")
    Path("d/0001-a-10.png").touch()
    later = RunJournal(journal._manifest, journal._manifest.history(), resumed=True, preset=TINY)
    later.close()
    assert Path("d/failed.jsonl").read_bytes() == theirs + b"\n"


def test_a_failed_row_is_one_picture_whatever_the_options_say(journal: RunJournal) -> None:
    (lost,) = list(jobs(Row(prompt="a", n=2)))[:1]
    journal.failed(lost, "oops")
    (again,) = planned(*read_back(), n=2).jobs
    assert (again.path, again.recipe) == (lost.path, lost.recipe)


def test_what_a_killed_run_left_half_written_is_swept(journal: RunJournal) -> None:
    """And nothing of a klein that is writing a single image there, without a manifest."""
    Path("d/e/f").mkdir(parents=True)
    for name in ("d/.klein-run-01.tmp", "d/e/.klein-run-23.tmp", "d/e/f/.klein-run-45.tmp"):
        Path(name).touch()
    Path("d/.klein-89ab.tmp").touch()
    journal.open(planned(Row(prompt="b", output="e/f/x.png")), model="tiny", seed=10)
    assert sorted(path.name for path in Path("d").rglob("*.tmp")) == [".klein-89ab.tmp"]


@pytest.mark.process
def test_the_temporary_file_of_a_run_that_is_killed_is_swept(journal: RunJournal) -> None:
    script = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from klein_cli.output.png import save\n"
        "os.link = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "save(b'picture', Path('d/x.png'), overwrite=False, swept=True)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script])
    assert killed.returncode == -signal.SIGKILL
    assert len(list(Path("d").glob(".klein-*"))) == 1
    journal.open(planned(Row(prompt="b")), model="tiny", seed=10)
    assert list(Path("d").glob(".klein-*")) == []


def test_other_settings_than_before_are_told_and_written_down(journal: RunJournal) -> None:
    settings = Settings(device="cpu", dtype="float32", attention="sdpa")
    cpu = Origin(model=Model(name="tiny", weights="1234"), settings=settings, provenance={})
    gpu = replace(cpu, settings=settings.with_(device="cuda", dtype="bfloat16"))
    assert journal.computed_with(cpu, no_metadata=False) is None
    again = Path("d/manifest.jsonl").read_text()
    assert '"dtype":"float32"' in again
    resumed = RunJournal(journal._manifest, journal._manifest.history(), resumed=True, preset=TINY)
    assert resumed.computed_with(cpu, no_metadata=False) is None
    assert Path("d/manifest.jsonl").read_text() == again
    assert resumed.computed_with(gpu, no_metadata=False) == (
        "the images so far were made with device cpu, not cuda, dtype float32, not bfloat16"
    )
    assert (
        resumed.computed_with(replace(cpu, provenance={"threads": "2"}), no_metadata=False) is None
    )
    again_two = RunJournal(
        journal._manifest, journal._manifest.history(), resumed=True, preset=TINY
    )
    assert again_two.computed_with(
        replace(cpu, provenance={"threads": "3"}), no_metadata=False
    ) == ("the images so far were made with threads 2, not 3")
    assert resumed.computed_with(
        replace(cpu, model=Model(name="tiny", weights="abcd")), no_metadata=False
    ) == ("the images so far were made with weights 1234, not abcd")


def test_a_failed_edit_can_be_given_again_from_where_its_row_lies() -> None:
    """Its images are found from d/, and a size beside a mask would be refused."""
    photo("in/a.png")
    mask("in/m.png", (0, 0, 9, 9))
    images = input_images(Path("in"))
    defaults = Defaults(preset=TINY, steps=4)
    row = Row(prompt="red", image=("a.png",), mask="m.png", expand=(0, 0, 8, 0))
    with opened(Path("d")) as manifest:
        journal = RunJournal(
            manifest, manifest.history(), resumed=False, preset=TINY, images=images.store
        )
        inputs = images.of(row, defaults)
        recipe = recipe_of(row, defaults, 7, inputs)
        journal.failed(Job(index=1, recipe=recipe, path=Path("d/x.png"), exact=False), "oops")
    (again,) = read_back()
    assert (again.image, again.mask, again.expand) == (
        ("../in/a.png",),
        "../in/m.png",
        (0, 0, 8, 0),
    )
    from_there = input_images(Path("d"))
    assert recipe_of(again, defaults, 7, from_there.of(again, defaults)) == recipe


def test_a_failed_row_keeps_its_adapters_from_where_it_lies() -> None:
    """Those of the options too, which are not added twice when they are given again."""
    for seed, name in enumerate(("a.safetensors", "b.safetensors")):
        write_for_tiny(Path(name), seed)
    typed = Defaults(preset=TINY, width=256, height=256, steps=4, lora=("a.safetensors=0.5",))

    def adapters_of(row: Row, folder: Path) -> tuple[AdapterStore, tuple[Adapter, ...]]:
        given = InputAdapters(AdapterStore(), folder=folder, downloading=nullcontext)
        return given.store, given.of(row, typed)

    row = Row(prompt="a", lora=("../b.safetensors=-1",))
    Path("in").mkdir()
    store, adapters = adapters_of(row, Path("in"))
    assert [(each.name, each.weight) for each in adapters] == [
        ("a.safetensors", 0.5),
        ("b.safetensors", -1.0),
    ]
    with opened(Path("d")) as manifest:
        journal = RunJournal(
            manifest, manifest.history(), resumed=False, preset=TINY, adapters=store
        )
        recipe = recipe_of(row, typed, 7, Inputs(adapters=adapters))
        made = planned(row)
        job = replace(next(iter(made.jobs)), recipe=recipe)
        journal.open(made, model="tiny", seed=10)
        journal.failed(job, "it did not fit")
    (again,) = read_back()
    assert again.lora == ("../a.safetensors=0.5", "../b.safetensors=-1.0")
    assert adapters_of(again, Path("d"))[1] == adapters
