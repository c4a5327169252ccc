"""`klein` as a process: what it prints where, its exit codes, and what it does not import."""

from __future__ import annotations

import subprocess
import sys

import pytest

from klein_cli import __version__
from klein_cli.cli import generation
from klein_cli.cli.app import main
from klein_cli.errors import ModelError

HEAVY = ("torch", "transformers", "diffusers", "numpy")

OPTIONS = """
PROMPT --prompt -p --prompts-file --output -o --model -m --seed -s --num-images -n --negative-prompt
--width -W --height -H --size --aspect --steps --guidance -g --guidance-scale --cfg-scale
--batch-size --device --dtype --engine --attention --rng --strict --overwrite -y --dry-run --json
--quiet -q --verbose -v
"""

# Runs each command line of its argument in one process, and says what it imported.
PROBE = f"""
import ast, sys
from klein_cli.cli.app import main
codes = [main(line) for line in ast.literal_eval(sys.argv[1])]
print("codes", codes, file=sys.stderr)
print("heavy", [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""


def probe(*lines: list[str]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, repr(list(lines))], capture_output=True, text=True, check=True
    )
    return done.stderr.splitlines()


@pytest.mark.process
def test_help_imports_nothing_heavy() -> None:
    said = probe(["--help"], ["generate", "--help"], ["--version"], [])
    assert said[-2:] == ["codes [0, 0, 0, 0]", "heavy []"]


@pytest.mark.process
def test_bad_input_is_refused_before_anything_heavy_is_imported() -> None:
    said = probe(
        ["generate"],
        ["generate", "a", "--model", "tinny"],
        ["generate", "a", "-m", "tiny", "-W", "100"],
        ["generate", "a", "-m", "tiny", "-W", "512"],
        ["generate", "a", "-m", "tiny", "-o", "a.gif"],
        ["generate", "--prompts-file", "nowhere.txt", "-m", "tiny"],
        ["generate", "a", "--widht", "256"],
    )
    assert said[-2:] == ["codes [2, 3, 2, 2, 2, 2, 2]", "heavy []"]
    assert len(said) == 2 * 7 + 2
    assert [line.split(":")[0] for line in said[:-2]] == ["error", "hint"] * 7


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"klein {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_klein_alone_shows_its_help(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert "FLUX.2 [klein]" in said.out
    assert "generate" in said.out
    assert said.err == ""


def test_help_names_every_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["generate", "--help"]) == 0
    out = capsys.readouterr().out
    for option in OPTIONS.split():
        assert f"{option} " in out or f"{option}." in out or f"{option}," in out, option


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["genrate"], "there is no command 'genrate'", "did you mean klein generate?"),
        (["a cat"], "there is no command 'a cat'", 'to draw it: klein generate "a cat"'),
        (["it's"], 'there is no command "it\'s"', 'to draw it: klein generate "it\'s"'),
        (["--vresion"], "there is no option --vresion", "did you mean --version?"),
        (["generate", "a", "--widht", "1"], "there is no option --widht", "did you mean --width?"),
        (["generate", "a", "--zzz"], "there is no option --zzz", "klein generate --help"),
        (["generate", "a", "-W"], "option '-W' requires an argument", "klein generate --help"),
        (["generate", "a", "-W", "x"], "--width takes a whole number", "klein generate --help"),
        (["generate", "a", "--steps", "1.5"], "--steps takes a whole number", "--help"),
        (["generate", "a", "-g", "x"], "--guidance takes a number", "klein generate --help"),
        (["generate", "a", "cat"], "unexpected extra argument", "put the prompt in quotes"),
        (["doctor", "x"], "unexpected extra argument", "klein doctor --help lists what it takes"),
        (["gallery", "a", "b"], "unexpected extra argument", "klein gallery --help"),
        (["info"], "klein info needs IMG", "klein info --help explains it"),
        (["gallery"], "klein gallery needs FOLDER", "klein gallery --help"),
        (["models", "pull"], "klein models pull needs NAME", "klein models pull --help"),
        (["generate", "a", "-g", "nan", "-m", "tiny"], "guidance nan is out of range", "0 to 100"),
        (["generate", "a", "-g", "inf", "-m", "tiny"], "guidance inf is out of range", "0 to 100"),
        (
            ["generate", "a", "--batch-size", "1000000"],
            "--batch-size 1000000 is not valid",
            "1 to 99",
        ),
        (["generate", "a", "-o", "{index!r}.png"], "-o has a !r in {index!r}", "the fields are"),
        (["models", "--jsno"], "there is no option --jsno", "did you mean --json?"),
        (["generate", "a", "-o", "-", "--json"], "both want standard output", "leave one"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_one_hint(
    arguments: list[str], error: str, hint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("error: ")
    assert error in lines[0]
    assert lines[1].startswith("hint: ")
    assert hint in lines[1]


def test_an_error_leaves_with_its_own_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> int:
        raise ModelError("the model is broken", "fix it")

    monkeypatch.setattr(generation, "_generate", broken)
    assert main(["generate", "a"]) == 3
    said = capsys.readouterr()
    assert said.err == "error: the model is broken\nhint: fix it\n"
    assert said.out == ""
    assert main(["generate", "a", "--json"]) == 3
    assert capsys.readouterr().out == (
        '{"event": "error", "message": "the model is broken", "hint": "fix it"}\n'
    )


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def buggy(*_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(generation, "_generate", buggy)
    with pytest.raises(ZeroDivisionError):
        main(["generate", "a"])


def test_an_interrupt_anywhere_leaves_with_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(generation, "_generate", interrupted)
    assert main(["generate", "a"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("code", [0, 1, 4, 130])
def test_the_runs_exit_code_is_the_processes(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "_generate", lambda *_: code)
    assert main(["generate", "a"]) == code


@pytest.mark.process
def test_running_the_package_is_running_klein() -> None:
    command = [sys.executable, "-m", "klein_cli", "generate", "a cat", "--size", "1x1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "not a multiple of 16" in result.stderr
