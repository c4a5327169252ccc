"""`klein models`: the list, where a model is, and removing it without touching anything else."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_hub import COMMIT, REPO, environment, files_in, fill_cache, klein, serving

from klein_cli.cli.app import main
from klein_cli.presets import presets

OFFICIAL = "black-forest-labs/FLUX.2-klein-4B"
OTHER = "somebody/diffusion"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face home, for this process and, by `env`, for others."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


@pytest.fixture
def env(home: Path) -> dict[str, str]:
    return environment("http://127.0.0.1:9", home)


@pytest.fixture
def files(small_snapshot: Path) -> dict[str, bytes]:
    return files_in(small_snapshot)


def listed(capfd: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    assert main(["models", "--json"]) == 0
    entries = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert {entry.pop("event") for entry in entries} == {"model"}
    return {entry["name"]: entry for entry in entries}


def test_every_preset_is_listed_with_what_is_known(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    entries = listed(capfd)
    assert list(entries) == list(presets())
    assert {entry["state"] for name, entry in entries.items() if name != "tiny"} == {"absent"}
    assert (entries["klein-4b"]["download_gb"], entries["klein-4b"]["free"]) == (16.0, True)
    # Nobody has looked: a figure here would be made up.
    assert (entries["klein-9b"]["memory_gb"], entries["klein-9b"]["free"]) == (None, False)
    assert main(["models"]) == 0
    table = capfd.readouterr().out
    row = next(line for line in table.splitlines() if line.startswith("klein-9b"))
    assert row.split()[:4] == ["klein-9b", "no", "unknown", "unknown"]
    assert "FLUX non-commercial" in row
    assert "tiny           yes" in table


def test_models_that_are_here_wholly_and_partly(
    home: Path, files: dict[str, bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    fill_cache(home, REPO, files)
    whole = fill_cache(home, OFFICIAL, files)
    fill_cache(home, OTHER, {"model_index.json": b'{"_class_name": "StableDiffusionPipeline"}'})
    # One repository that no parser can read was the end of the whole list.
    fill_cache(home, "somebody/deep", {"model_index.json": b"[" * 200_000})
    fill_cache(home, "somebody/deeper", {**files, "vae/config.json": b"[" * 200_000})
    base = presets()["klein-base-4b"].repo
    fill_cache(home, base, {"vae/config.json": files["vae/config.json"]})
    entries = listed(capfd)
    assert entries["klein-4b"]["state"] == entries[REPO]["state"] == "whole"
    assert entries["klein-4b"]["path"] == str(whole)
    assert entries["klein-base-4b"]["state"] == "partly"
    assert OTHER not in entries
    assert "somebody/deep" not in entries
    assert entries["somebody/deeper"]["state"] == "partly"
    next(iter(whole.glob("vae/*.safetensors"))).unlink()
    assert listed(capfd)["klein-4b"]["state"] == "partly"


@pytest.mark.process
def test_the_list_asks_no_hub_about_an_index_that_cannot_be_read(
    home: Path, files: dict[str, bytes], env: dict[str, str]
) -> None:
    """What mends it is a pull; a list is no reason to download."""
    (fill_cache(home, REPO, files) / "model_index.json").resolve().write_bytes(b"")
    with serving(files) as hub:
        done = klein("models", "--json", env=env | {"HF_ENDPOINT": hub.address})
    assert done.returncode == 0, done.stderr
    assert REPO not in {json.loads(line)["name"] for line in done.stdout.splitlines()}
    assert hub.asked == []


def test_the_path_of_a_model_that_is_here(
    home: Path, files: dict[str, bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    root = fill_cache(home, OFFICIAL, files)
    assert root.name == COMMIT
    assert main(["models", "path", "klein-4b"]) == 0
    assert capfd.readouterr().out == f"{root}\n"
    assert main(["models", "path", OFFICIAL.lower()]) == 0
    assert capfd.readouterr().out == f"{root}\n"


def test_the_path_of_a_model_that_is_not(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "path", "klein-4b"]) == 3
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err == (
        "error: klein-4b is not on this machine\nhint: to fetch it: klein models pull klein-4b\n"
    )
    fill_cache(home, OFFICIAL, {"model_index.json": b"{}"})
    assert main(["models", "path", "klein-4b"]) == 3
    assert "klein-4b is only partly on this machine" in capfd.readouterr().err


def test_the_path_of_a_folder_that_is_not_whole(
    small_snapshot: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "path", str(small_snapshot)]) == 0
    assert capfd.readouterr().out == f"{small_snapshot}\n"
    shutil.copytree(small_snapshot, tmp_path / "m")
    next((tmp_path / "m" / "vae").glob("*.safetensors")).unlink()
    assert main(["models", "path", str(tmp_path / "m")]) == 3
    said = capfd.readouterr()
    assert said.out == ""
    assert f"{tmp_path}/m is not whole: vae holds no weights" in said.err


def test_models_alone_is_the_list_with_all_its_options(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "list", "--json"]) == 0
    wanted = capfd.readouterr().out
    (tmp_path / "c.toml").write_text("[models.list]\njson = true\n")
    for options in (["--json"], ["--config", str(tmp_path / "c.toml")]):
        assert main(["models", *options]) == 0
        assert capfd.readouterr().out == wanted
    assert main(["models", "--help"]) == 0
    assert "pull" in capfd.readouterr().out


def test_rm_removes_a_model_and_nothing_else(
    home: Path, files: dict[str, bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    """A copy of a repository has the same commits, and is another repository all the same."""
    fill_cache(home, OFFICIAL, files)
    fill_cache(home, OFFICIAL, files, commit="f" * 40)
    other = files_in(fill_cache(home, OFFICIAL + "-like", files))
    for number in range(5):
        fill_cache(home, f"nobody/copy-{number}", {"a.json": b"{}"})
    (home / "token").write_text("hf_secret")
    assert main(["models", "rm", "klein-4b", "-y"]) == 0
    assert capfd.readouterr().err.startswith(f"removed {OFFICIAL}: ")
    kept = {path.name.split("--")[-1]: path for path in (home / "hub").glob("models--*")}
    assert sorted(kept) == ["FLUX.2-klein-4B-like", *(f"copy-{number}" for number in range(5))]
    assert files_in(kept["FLUX.2-klein-4B-like"] / "snapshots" / COMMIT) == other
    assert all((path / "snapshots" / COMMIT).is_dir() for path in kept.values())
    assert (home / "token").read_text() == "hf_secret"


def test_rm_removes_a_first_download_that_broke_off(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The hub's client does not see it as a repository, and would leave gigabytes behind."""
    part = home / "hub" / "models--nobody--model" / "blobs" / ("a" * 64 + ".incomplete")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 1000)
    assert main(["models", "rm", REPO, "-y"]) == 0
    assert not part.parents[1].exists()


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("tiny", 2, "tiny is part of klein"),
        (".", 2, ". is a folder of yours"),
        ("klein-4b", 3, "klein-4b is not on this machine"),
        ("klein4b", 3, "there is no model called"),
    ],
)
def test_rm_refuses_what_is_not_its_own(
    home: Path, name: str, code: int, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "rm", name, "-y"]) == code
    assert words in capfd.readouterr().err


@pytest.mark.process
def test_without_a_person_rm_wants_its_yes_beforehand(
    home: Path, env: dict[str, str], files: dict[str, bytes]
) -> None:
    root = fill_cache(home, REPO, files)
    done = klein("models", "rm", REPO, env=env, stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert done.stderr.endswith("hint: give -y\n")
    assert root.is_dir()


@pytest.mark.process
@pytest.mark.parametrize(("answer", "gone"), [("n", False), ("", False), ("y", True)])
def test_a_person_is_asked(
    home: Path, env: dict[str, str], files: dict[str, bytes], answer: str, gone: bool
) -> None:
    root = fill_cache(home, REPO, files)
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "klein_cli", "models", "rm", REPO]
    with subprocess.Popen(command, env=env, stdin=slave, stderr=subprocess.PIPE) as running:
        os.write(master, f"{answer}\n".encode())
        _, asked = running.communicate(timeout=60)
    os.close(master), os.close(slave)
    assert re.search(rb"Remove [\d.]+ MB of nobody/model", asked)
    assert root.is_dir() != gone
    assert running.returncode == (0 if gone else 130)


def test_pull_needs_nothing_for_what_is_here(
    home: Path, small_snapshot: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("tiny", str(small_snapshot)):
        assert main(["models", "pull", name]) == 0
        said = capfd.readouterr()
        assert f"{name} needs no download" in said.err
        assert (Path(said.out.strip()) / "model_index.json").is_file()


@pytest.mark.process
def test_a_licence_that_is_not_free_is_said_at_pull(env: dict[str, str]) -> None:
    done = klein("models", "pull", "klein-9b", env=env)
    assert done.returncode == 3
    first, *_ = done.stderr.splitlines()
    assert first == (
        "warning: klein-9b is not free: its licence is FLUX non-commercial, "
        "see https://huggingface.co/black-forest-labs/FLUX.2-klein-9B"
    )
    free = klein("models", "pull", "klein-4b", env=env)
    assert "licence" not in free.stderr


@pytest.mark.parametrize("command", ["pull", "path", "rm"])
def test_a_misspelt_model_gets_the_nearest(
    command: str, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", command, "klein-4"]) == 3
    error, hint = capfd.readouterr().err.splitlines()
    assert error == "error: there is no model called 'klein-4'"
    assert "did you mean klein-4b?" in hint


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["pul", "tiny"], "did you mean klein models pull?"),
        (["klein-4b"], "klein models --help lists them"),
    ],
)
def test_a_misspelt_command_gets_the_nearest(
    arguments: list[str], hint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", *arguments]) == 2
    assert capfd.readouterr().err.splitlines()[1] == f"hint: {hint}"


@pytest.mark.process
def test_the_list_needs_no_torch() -> None:
    script = (
        "import sys; from klein_cli.cli.app import main; code = main(['models']);"
        "sys.exit(code or bool({'torch', 'numpy', 'diffusers'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
