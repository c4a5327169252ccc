"""The shortest way to an engine: what it takes, and that it imports nothing first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from klein_cli.cli import app, quick


def option_names() -> dict[str, tuple[str, bool]]:
    """Every option of `klein generate` -> its parameter, and whether it is a flag."""
    params = app._command("generate").params
    return {
        name: (param.name, bool(getattr(param, "is_flag", False)))
        for param in params
        if param.param_type_name == "option"
        for name in param.opts
    }


def test_its_options_are_those_of_the_command_line() -> None:
    """By their names, and with a value or without one: another meaning would be another image."""
    known = option_names()
    for name, parameter in quick.VALUES.items():
        assert known[name] == (parameter, False)
    for name, parameter in quick.FLAGS.items():
        assert known[name] == (parameter, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a fox"], {"prompt": "a fox"}),
        (["a fox", "-s", "7", "-y"], {"prompt": "a fox", "seed": "7", "overwrite": ""}),
        (["-m", "tiny", "a=b"], {"model": "tiny", "prompt": "a=b"}),
        (["--size=64x64", "a"], {"size": "64x64", "prompt": "a"}),
        (["a", "--output", "x.png", "-q"], {"prompt": "a", "output": "x.png", "quiet": ""}),
    ],
)
def test_plain_command_lines(words: list[str], said: dict[str, str]) -> None:
    assert quick.plain(["generate", *words]) == said


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["generate"],
        ["edit", "a", "b"],
        ["generate", "a", "b"],
        ["generate", "-"],
        ["generate", ""],
        ["generate", "a", "--help"],
        ["generate", "a", "-v"],
        ["generate", "a", "-s7"],
        ["generate", "a", "-s"],
        ["generate", "a", "-s", "1", "--seed", "2"],
        ["generate", "a", "--lora", "b"],
        ["generate", "a", "-i", "b"],
        ["generate", "a", "--dtype", "float32"],
        ["generate", "a", "-n", "2"],
        ["generate", "a", "--", "b"],
        ["generate", "a\0b"],
        ["generate", "a", "--quiet=yes"],
        ["--version"],
    ],
)
def test_all_else_is_left_to_the_command_line_proper(words: list[str]) -> None:
    assert quick.plain(words) is None


def test_nobody_is_asked_where_there_is_no_engine_or_a_settings_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(quick, "_asked", lambda place, said: asked.append(place))
    monkeypatch.setenv("KLEIN_HOST", str(tmp_path / "s"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert quick.quick(["generate", "a"]) is None
    assert asked == []
    (tmp_path / "s").touch()
    quick.quick(["generate", "a"])
    assert asked == [str(tmp_path / "s")]
    (tmp_path / "there.png").touch()
    quick.quick(["generate", "a", "-o", "there.png"])
    quick.quick(["generate", "a", "-o", "a.jpg"])
    quick.quick(["generate", "a", "-o", "{seed}.png"])
    (tmp_path / "klein").mkdir()
    (tmp_path / "klein" / "config.toml").touch()
    quick.quick(["generate", "a"])
    assert len(asked) == 1


@pytest.mark.process
def test_it_imports_next_to_nothing_before_the_engine_is_asked() -> None:
    """Each of these takes longer than an engine that stays to answer."""
    code = (
        "import sys; from klein_cli.cli import quick;"
        "quick._place = lambda: 'nowhere'; quick._asked('nowhere', {'prompt': 'a'});"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"typer", "torch", "numpy", "PIL", "json", "dataclasses", "pathlib", "hashlib"}
    assert not heavy & set(done.stdout.split())
