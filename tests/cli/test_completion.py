"""Shell completion: commands, options, presets and choices, at the speed of a key press."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from klein_cli.presets import presets

pytestmark = pytest.mark.process

COMPLETE = """
import sys
from klein_cli.cli.app import main
try:
    main([])
finally:
    heavy = {"torch", "numpy", "PIL", "transformers", "diffusers", "huggingface_hub"}
    print(sorted(heavy & set(sys.modules)), file=sys.stderr)
"""


def completed(*words: str) -> list[str]:
    """What bash is told when the last of the words is being typed."""
    environment = {
        "_KLEIN_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(("klein", *words)),
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run(
        [sys.executable, "-c", COMPLETE],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | environment,
    )
    assert done.stderr == "[]\n"
    return done.stdout.split()


def test_models_are_completed_by_name() -> None:
    assert completed("generate", "-m", "") == list(presets())
    assert completed("verify", "--model", "klein-b") == ["klein-base-4b", "klein-base-9b"]
    assert completed("generate", "-m", "./") == [], "the shell itself completes files"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("gen",), ["generate"]),
        (("generate", "--neg"), ["--negative-prompt"]),
        (("generate", "--dtype", "f"), ["float16", "float32"]),
        (("generate", "--quantize", ""), ["none", "fp8"]),
        (("generate", "--kernels", "t"), ["triton", "torch"]),
        (("reproduce", "a.png", "--engine", ""), ["native", "diffusers"]),
        (("generate", "--device", "c"), ["cuda", "cpu"]),
        (("generate", "--prompts-file", "p"), []),
        (("info", ""), []),
    ],
)
def test_commands_options_and_choices(words: tuple[str, ...], found: list[str]) -> None:
    assert completed(*words) == found


def test_a_broken_settings_file_does_not_disturb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "klein").mkdir()
    (tmp_path / "klein" / "config.toml").write_text("what is this")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert completed("generate", "-m", "ti") == ["tiny"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_with_the_script_that_klein_prints(tmp_path: Path) -> None:
    command = tmp_path / "klein"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m klein_cli "$@"\n')
    command.chmod(0o755)
    script = (
        'source <(klein --show-completion bash) && cd "$1" && touch rows.jsonl\n'
        "COMP_WORDS=(klein generate -m ti); COMP_CWORD=3; _klein_completion klein\n"
        'printf "%s\\n" "${COMPREPLY[@]}"; complete -p klein\n'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    assert done.stdout.splitlines() == ["tiny", "complete -o default -F _klein_completion klein"]
