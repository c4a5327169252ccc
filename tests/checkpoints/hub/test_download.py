"""Downloads against a hub on this machine, with the hub's real client, in processes of their own.

Each command line is what a user would type; faults are real: connections that break, a disk that
is full, files that are not what they should be.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
from fake_hub import (
    COMMIT,
    REPO,
    FakeHub,
    digest,
    environment,
    files_in,
    git_digest,
    klein,
    serving,
)
from huggingface_hub.hf_api import RepoSibling

from klein_cli.checkpoints.hub.repository import listing
from klein_cli.errors import ModelError

pytestmark = pytest.mark.process

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
CONFIG = "vae/config.json"


@pytest.fixture
def hub(small_snapshot: Path) -> Iterator[FakeHub]:
    with serving(files_in(small_snapshot)) as hub:
        yield hub


@pytest.fixture
def env(hub: FakeHub, tmp_path: Path) -> dict[str, str]:
    return environment(hub.address, tmp_path)


def blob(hub: FakeHub, home: Path, path: str) -> Path:
    name = digest(path, hub.files[path])
    return home / "hub" / f"models--{REPO.replace('/', '--')}" / "blobs" / name


def pulled(env: dict[str, str], *more: str) -> Path:
    done = klein("models", "pull", REPO, *more, env=env)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def refused(env: dict[str, str]) -> tuple[str, str]:
    """The two lines of a pull that fails."""
    done = klein("models", "pull", REPO, "-q", env=env)
    assert done.returncode == 3, done.stderr
    *_, error, hint = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    assert "Traceback" not in done.stderr
    return error, hint


def bodies(hub: FakeHub, path: str) -> list[str | None]:
    """The ranges that were asked for of a file."""
    asked = hub.bodies_asked()
    return [one.range for one in asked if one.file == path and one.path.startswith("cdn/")]


def test_a_pull_brings_every_file_as_it_is(hub: FakeHub, env: dict[str, str]) -> None:
    root = pulled(env)
    assert root.name == COMMIT
    assert files_in(root) == hub.files
    assert not list(root.parents[1].rglob("*.incomplete"))
    assert klein("models", "path", REPO, env=env).stdout.strip() == str(root)


@pytest.mark.parametrize("reset", [False, True], ids=["closed early", "reset"])
def test_a_connection_that_breaks_half_way_goes_on_there(
    hub: FakeHub, env: dict[str, str], reset: bool
) -> None:
    size = len(hub.files[TRANSFORMER])
    hub.cut, hub.reset = {TRANSFORMER: [size // 2]}, reset
    root = pulled(env)
    assert (root / TRANSFORMER).read_bytes() == hub.files[TRANSFORMER]
    first, *others = bodies(hub, TRANSFORMER)
    assert first is None
    assert others == [f"bytes={size // 2}-"]


def test_another_process_goes_on_where_one_was_killed(
    hub: FakeHub, env: dict[str, str], tmp_path: Path
) -> None:
    """The client deletes what it has, or cannot find it again: 7 of 8 GB would come twice."""
    size = len(hub.files[TRANSFORMER])
    hub.stall = {TRANSFORMER: size // 2}
    part = blob(hub, tmp_path, TRANSFORMER).with_name(
        blob(hub, tmp_path, TRANSFORMER).name + ".incomplete"
    )
    command = [sys.executable, "-m", "klein_cli", "models", "pull", REPO, "-q"]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE) as running:
        deadline = time.monotonic() + 30
        while not part.exists() or part.stat().st_size < size // 2:
            assert time.monotonic() < deadline, "nothing came"
            time.sleep(0.02)
        running.send_signal(signal.SIGKILL)
    hub.stall = {}
    hub.asked.clear()
    done = klein("models", "list", "--json", env=env)
    listed = [json.loads(line) for line in done.stdout.splitlines()]
    assert REPO not in {entry["name"] for entry in listed if entry["state"] == "whole"}
    root = pulled(env)
    assert bodies(hub, TRANSFORMER) == [f"bytes={size // 2}-"]
    assert files_in(root) == hub.files


def test_an_interrupt_stops_soon_and_keeps_what_came(
    hub: FakeHub, env: dict[str, str], tmp_path: Path
) -> None:
    size = len(hub.files[TRANSFORMER])
    hub.stall = {TRANSFORMER: size // 2}
    part = blob(hub, tmp_path, TRANSFORMER)
    part = part.with_name(f"{part.name}.incomplete")
    command = [sys.executable, "-m", "klein_cli", "models", "pull", REPO]
    env = env | {"HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as running:
        while not part.exists() or part.stat().st_size < size // 2:
            time.sleep(0.02)
        began = time.monotonic()
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=20)
        assert running.returncode == 130
        assert time.monotonic() - began < 5
    assert "Traceback" not in said
    assert "what was downloaded is kept" in said
    assert part.stat().st_size >= size // 2


def test_a_hub_that_knows_no_ranges_is_asked_for_all_of_it(
    hub: FakeHub, env: dict[str, str]
) -> None:
    hub.ranges, hub.cut = False, {TRANSFORMER: [1000]}
    root = pulled(env)
    assert files_in(root) == hub.files


def test_a_busy_hub_is_asked_again(hub: FakeHub, env: dict[str, str]) -> None:
    hub.status = {TRANSFORMER: [503], CONFIG: [429]}
    assert files_in(pulled(env)) == hub.files


def test_a_file_with_a_wrong_hash_never_enters_the_cache(
    hub: FakeHub, env: dict[str, str], tmp_path: Path
) -> None:
    right = hub.files[TRANSFORMER]
    hub.served = {TRANSFORMER: right[:-1] + bytes([right[-1] ^ 1])}
    error, hint = refused(env)
    assert TRANSFORMER in error
    assert "its hash is not the one on the hub" in error
    assert "try again" in hint
    assert not blob(hub, tmp_path, TRANSFORMER).exists()
    hub.served = {}
    assert files_in(pulled(env)) == hub.files


def test_a_wrong_beginning_is_thrown_away_and_all_of_it_fetched(
    hub: FakeHub, env: dict[str, str], tmp_path: Path
) -> None:
    part = blob(hub, tmp_path, TRANSFORMER)
    part.parent.mkdir(parents=True)
    part.with_name(f"{part.name}.incomplete").write_bytes(b"\xff" * 1000)
    assert files_in(pulled(env)) == hub.files
    assert bodies(hub, TRANSFORMER) == ["bytes=1000-", None]


@pytest.mark.parametrize("path", [TRANSFORMER, CONFIG])
def test_a_pull_finds_a_flipped_bit_and_fixes_it(
    hub: FakeHub, env: dict[str, str], path: str
) -> None:
    """The size is right, so that nothing but the hash tells."""
    root = pulled(env)
    data = bytearray(hub.files[path])
    data[len(data) // 2] ^= 1
    (root / path).resolve().write_bytes(data)
    hub.asked.clear()
    done = klein("models", "pull", REPO, env=env)
    assert f"{path} is damaged: downloading it again" in done.stderr
    assert files_in(root) == hub.files
    assert {asked.file for asked in hub.bodies_asked()} == {path}


@pytest.mark.parametrize("left", [0, 100])
@pytest.mark.parametrize("path", [TRANSFORMER, CONFIG])
def test_a_pull_fixes_a_file_that_was_cut_short(
    hub: FakeHub, env: dict[str, str], path: str, left: int
) -> None:
    """What is there was taken for whole: a pull said that it downloads, and changed nothing."""
    root = pulled(env)
    (root / path).resolve().write_bytes(hub.files[path][:left])
    hub.asked.clear()
    done = klein("models", "pull", REPO, "--json", env=env)
    assert files_in(root) == hub.files
    assert {asked.file for asked in hub.bodies_asked()} == {path}
    events = [json.loads(line) for line in done.stdout.splitlines()]
    moved = [event["bytes"] for event in events if event["event"] == "progress"]
    assert moved[-1] == len(hub.files[path])


@pytest.mark.parametrize("fault", ["cut", "flipped"])
def test_a_pull_fixes_the_snapshots_own_copy_where_there_are_no_links(
    hub: FakeHub, env: dict[str, str], fault: str
) -> None:
    """The blob beside it is right, and is not what is read."""
    env = env | {"HF_HUB_DISABLE_SYMLINKS": "1"}
    root = pulled(env)
    damaged = hub.files[CONFIG][:-3] if fault == "cut" else hub.files[CONFIG].swapcase()
    (root / CONFIG).unlink()
    (root / CONFIG).write_bytes(damaged)
    hub.asked.clear()
    pulled(env)
    assert files_in(root) == hub.files
    assert hub.bodies_asked() == []


def test_a_newer_commit_is_pulled_and_shares_what_did_not_change(
    hub: FakeHub, env: dict[str, str]
) -> None:
    old = pulled(env)
    hub.commit = "f" * 40
    hub.files = hub.files | {CONFIG: hub.files[CONFIG] + b"\n"}
    hub.asked.clear()
    new = pulled(env)
    assert new.name == hub.commit
    assert old.is_dir()
    assert files_in(new) == hub.files
    assert {asked.file for asked in hub.bodies_asked()} == {CONFIG}


@pytest.mark.parametrize("path", [TRANSFORMER, CONFIG])
def test_a_branch_that_moves_on_meanwhile_is_taken_as_it_was_listed(
    hub: FakeHub, env: dict[str, str], path: str
) -> None:
    """The client took the newer files itself, and nobody looked at their hashes."""
    pulled(env)
    data = hub.files[path]
    listed = hub.files | {path: data[:-1] + b" "}
    hub.commit, hub.files = "e" * 40, listed
    hub.next = ("f" * 40, listed | {path: data[:-1] + b"\t"})
    root = pulled(env)
    assert hub.commit == "f" * 40
    assert root.name == "e" * 40
    assert files_in(root) == listed
    assert not any("f" * 40 in asked.path for asked in hub.bodies_asked())
    hub.asked.clear()
    assert klein("models", "path", REPO, env=env).stdout.strip() == str(root)
    assert hub.asked == []


def test_the_client_finds_what_was_pulled_without_a_network(
    hub: FakeHub, env: dict[str, str]
) -> None:
    """Other programs ask it for the branch, whose commit it knows by a file of its own."""
    root = pulled(env)
    hub.commit = "f" * 40
    newer = pulled(env)
    script = f"import huggingface_hub as h; print(h.snapshot_download({REPO!r}))"
    offline = env | {"HF_HUB_OFFLINE": "1"}
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=offline
    )
    assert Path(found.stdout.strip()) == newer != root
    assert [path.name for path in (root.parents[1] / "refs").iterdir()] == ["main"]
    assert not list(root.parents[1].glob("*.tmp"))


def test_an_update_that_breaks_leaves_the_old_model_in_use(
    hub: FakeHub, env: dict[str, str]
) -> None:
    old = pulled(env)
    right = hub.files[TRANSFORMER]
    hub.commit, hub.files = "f" * 40, hub.files | {TRANSFORMER: right + b"\0"}
    hub.served = {TRANSFORMER: right + b"\1"}
    refused(env)
    assert klein("models", "path", REPO, env=env).stdout.strip() == str(old)


def test_a_token_goes_to_the_hub_and_not_to_its_storage(hub: FakeHub, env: dict[str, str]) -> None:
    hub.token = "hf_secret"
    pulled(env | {"HF_TOKEN": hub.token})
    at_storage = [asked.token for asked in hub.asked if asked.path.startswith("cdn/")]
    assert at_storage
    assert set(at_storage) == {None}


def test_without_the_token_the_page_to_visit_is_named(hub: FakeHub, env: dict[str, str]) -> None:
    hub.token = "hf_secret"
    error, hint = refused(env)
    assert "requires you to accept its terms" in error
    assert f"https://huggingface.co/{REPO}" in hint
    assert "HF_TOKEN" in hint


@pytest.mark.parametrize(
    ("status", "words"), [(500, "the hub is failing (500)"), (403, "refused by the hub (403)")]
)
def test_a_hub_that_refuses_is_quoted(
    hub: FakeHub, env: dict[str, str], status: int, words: str
) -> None:
    hub.status = {REPO: [status] * 20}
    error, hint = refused(env)
    assert words in error
    assert f"https://huggingface.co/{REPO}" in hint


def test_a_repository_of_another_kind_is_refused_before_its_weights_come(
    hub: FakeHub, env: dict[str, str]
) -> None:
    hub.files["model_index.json"] = b'{"_class_name": "StableDiffusionPipeline"}'
    error, _ = refused(env)
    assert "StableDiffusionPipeline" in error
    assert bodies(hub, TRANSFORMER) == []
    del hub.files["model_index.json"]
    error, _ = refused(env | {"HF_HOME": env["HF_HOME"] + "/other"})
    assert "has no model_index.json" in error


def test_a_disk_with_too_little_room_is_known_before_anything_comes(
    hub: FakeHub, env: dict[str, str]
) -> None:
    hub.files["text_encoder/model-00001-of-00001.safetensors"] = b"x"
    hub.sizes = {"text_encoder/model-00001-of-00001.safetensors": 10**18}
    error, hint = refused(env)
    assert "needs 1000000000.0 GB more" in error
    assert "GB free" in error
    assert "HF_HOME" in hint
    assert bodies(hub, TRANSFORMER) == []


def test_a_file_that_is_shorter_than_promised_is_not_waited_for(
    hub: FakeHub, env: dict[str, str]
) -> None:
    """Each try brings some bytes, and yet there is no end to it."""
    hub.sizes = {TRANSFORMER: len(hub.files[TRANSFORMER]) + 1000}
    error, _ = refused(env)
    assert "shorter than the hub says" in error


def test_a_disk_that_fills_up_on_the_way_is_named_and_keeps_what_came(
    hub: FakeHub, env: dict[str, str], tmp_path: Path
) -> None:
    """The limit on the size of a file stands for the disk: the system's own error, at a write."""
    import resource

    def little_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = klein("models", "pull", REPO, "-q", env=env, preexec_fn=little_room)
    assert done.returncode == 3
    assert "could not be stored" in done.stderr
    assert "Traceback" not in done.stderr
    # The first file to reach the limit stops the others.
    parts = list(blob(hub, tmp_path, TRANSFORMER).parent.glob("*.incomplete"))
    assert max(part.stat().st_size for part in parts) == 100_000
    assert files_in(pulled(env)) == hub.files


def test_a_cache_that_cannot_be_written_is_named(hub: FakeHub, env: dict[str, str]) -> None:
    home = Path(env["HF_HOME"]) / "file"
    home.write_bytes(b"")
    error, hint = refused(env | {"HF_HOME": str(home)})
    assert "cannot be read: Not a directory" in error
    assert "HF_HOME" in hint


def test_two_pulls_at_once_bring_each_file_once(hub: FakeHub, env: dict[str, str]) -> None:
    hub.slow = 0.3
    command = [sys.executable, "-m", "klein_cli", "models", "pull", REPO, "-q"]
    both = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0] == said[1]
    assert bodies(hub, TRANSFORMER) == [None]


def test_a_hostile_listing_writes_nothing_outside(hub: FakeHub, env: dict[str, str]) -> None:
    """Digests become names of files: one that is no digest is refused."""
    hub.digests = {TRANSFORMER: "../../../../evil"}
    error, _ = refused(env)
    assert "gives no valid hash" in error


def test_a_hostile_listing_removes_nothing_outside(
    hub: FakeHub, env: dict[str, str], tmp_path: Path
) -> None:
    """It leads to a file that lies there, and says a size and a hash: that looks like damage."""
    root = pulled(env)
    precious = tmp_path / "precious.json"
    precious.write_bytes(b"mine")
    hub.commit, hub.files = "f" * 40, hub.files | {"vae/../../../../../precious.json": b"evil"}
    (root.with_name(hub.commit) / "vae").mkdir(parents=True)
    error, hint = refused(env)
    assert "vae/../../../../../precious.json" in error
    assert "HF_ENDPOINT" in hint
    assert precious.read_bytes() == b"mine"


@pytest.mark.parametrize(
    "path",
    [
        *("", "/a.json", "../a.json", "vae/..", "./a.json", "vae/./a.json", "vae//a.json", "vae/"),
        *("vae\\a.json", "\\a.json", "C:/a.json", "C:a.json"),
    ],
)
def test_a_path_that_is_none_inside_the_snapshot_is_refused(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On any system: whoever shares the cache may see it by another."""
    oid = git_digest(b"")
    files = [RepoSibling(rfilename=one, size=0, blob_id=oid) for one in ("vae/a..json", path)]
    described = Mock(sha=COMMIT, siblings=files)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: described)
    with pytest.raises(ModelError, match="an unsafe path") as caught:
        listing(REPO, ["*.json"])
    assert repr(path) in caught.value.message


def test_a_run_fetches_its_model_first(hub: FakeHub, env: dict[str, str], tmp_path: Path) -> None:
    size = ["--size", "32x32", "--steps", "1", "--device", "cpu", "-s", "1"]
    out = str(tmp_path / "a.png")
    done = klein("generate", "a cat", "-m", REPO, *size, "-o", out, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}\n"
    assert "downloading" in done.stderr
    hub.asked.clear()
    done = klein("generate", "a cat", "-m", REPO, *size, "-o", out, "-y", "--dry-run", env=env)
    assert "tokens" in done.stdout
    assert hub.asked == []


def test_json_tells_a_program_how_far_it_is(hub: FakeHub, env: dict[str, str]) -> None:
    done = klein("models", "pull", REPO, "--json", env=env)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    phases = [event for event in events if event["event"] == "phase"]
    assert phases[-1]["what"] == "downloading"
    moved = [event["bytes"] for event in events if event["event"] == "progress"]
    assert moved == sorted(moved)
    assert moved[-1] == phases[-1]["bytes"]
    assert events[-1]["event"] == "pulled"
    assert files_in(Path(events[-1]["path"])) == hub.files
