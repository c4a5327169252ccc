"""Adapters from a hub on this machine, by the hub's real client: chosen, and downloaded once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import REPO, FakeHub, environment, klein, serving

from tests.fixtures.adapters import write_for_tiny

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("empty_folder")]
COMMAND = ("generate", "a circle", "-m", "tiny", "-s", "1", "--size", "128x128", "--dry-run")


@pytest.fixture
def adapter(tmp_path: Path) -> bytes:
    return write_for_tiny(tmp_path / "made.safetensors").read_bytes()


@pytest.fixture
def hub(adapter: bytes) -> Iterator[FakeHub]:
    files = {
        "style.safetensors": adapter,
        "README.md": b"# style",
        "more/light.safetensors": adapter,
    }
    with serving(files) as hub:
        yield hub


@pytest.fixture
def env(hub: FakeHub, tmp_path: Path) -> dict[str, str]:
    return environment(hub.address, tmp_path / "home")


def test_the_one_adapter_of_a_repository_is_fetched_once(hub: FakeHub, env: dict[str, str]) -> None:
    for _ in range(2):
        done = klein(*COMMAND, "--lora", f"{REPO}=0.5", env=env)
        assert done.returncode == 0, done.stderr
        assert "style.safetensors: LoRA of rank 2" in done.stderr
    fetched = [asked.file for asked in hub.bodies_asked() if asked.path.startswith("cdn/")]
    assert fetched == ["style.safetensors"]
    hub.status = {REPO: [500] * 9}
    assert klein(*COMMAND, "--lora", REPO, env=env).returncode == 0, "the hub was asked again"


def test_a_file_by_its_path(env: dict[str, str]) -> None:
    done = klein(*COMMAND, "--lora", f"{REPO}/more/light.safetensors", env=env)
    assert done.returncode == 0, done.stderr
    assert "light.safetensors: LoRA of rank 2" in done.stderr


def test_what_a_repository_does_not_hold(hub: FakeHub, env: dict[str, str]) -> None:
    done = klein(*COMMAND, "--lora", f"{REPO}/dark.safetensors", env=env)
    assert done.returncode == 2
    assert f"{REPO} has no file dark.safetensors" in done.stderr
    hub.files["other.safetensors"] = b"x"
    done = klein(*COMMAND, "--lora", REPO, env=env)
    assert done.returncode == 2
    assert f"{REPO} holds 2 files: other.safetensors, style.safetensors" in done.stderr
    assert f"name one: {REPO}/other.safetensors" in done.stderr


def test_an_adapter_that_is_not_what_the_hub_says_is_refused(
    hub: FakeHub, env: dict[str, str]
) -> None:
    hub.served = {"style.safetensors": b"another file of the same length"}
    done = klein(*COMMAND, "--lora", REPO, env=env)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
