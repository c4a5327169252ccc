"""The settings file: defaults under the command line, and no key that means nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.main import get_command

import klein_cli.cli.app
from klein_cli.cli.app import main
from klein_cli.cli.config import configured, default_file

pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The settings file that is read when none is named."""
    file = tmp_path / "home" / "klein" / "config.toml"
    file.parent.mkdir(parents=True)
    monkeypatch.setattr("klein_cli.cli.config.typer.get_app_dir", lambda _: str(file.parent))
    return file


@pytest.fixture
def planned(capfd: pytest.CaptureFixture[str]) -> Any:
    """What `klein generate` would draw -> (its facts, stderr)."""

    def run(*arguments: str) -> tuple[dict[str, Any], str]:
        line = ["generate", "a cat", "-s", "1", "--dry-run", "--json", *arguments]
        assert main(line) == 0, capfd.readouterr().err
        said = capfd.readouterr()
        events = [json.loads(line) for line in said.out.splitlines()]
        return [event for event in events if event["event"] == "planned"][-1], said.err

    return run


def settings(text: str) -> str:
    Path("my.toml").write_text(text)
    return "my.toml"


def test_the_file_gives_defaults_and_the_command_line_goes_first(planned: Any, home: Path) -> None:
    home.write_text('model = "tiny"\nsteps = 3\noutput = "d/"\n')
    facts, _ = planned()
    assert (facts["steps"], facts["path"], facts["width"]) == (3, "d/0001-a-cat-1.png", 256)
    facts, _ = planned("--steps", "2")
    assert facts["steps"] == 2
    facts, _ = planned("--no-config", "-m", "tiny")
    assert (facts["steps"], facts["path"]) == (4, "a-cat-1.png")
    other = settings('model = "tiny"\nsteps = 7\n')
    facts, _ = planned("--config", other)
    assert (facts["steps"], facts["path"]) == (7, "a-cat-1.png")


def test_a_commands_own_table_goes_before_the_top(planned: Any) -> None:
    file = settings(
        'model = "tiny"\nsteps = 3\nnum_images = 2\n'
        "[generate]\nsteps = 5\n[verify]\nsteps = 9\n[reproduce]\n"
    )
    facts, _ = planned("--config", file)
    assert (facts["steps"], facts["index"]) == (5, 2)


@pytest.mark.parametrize(
    ("text", "arguments", "size"),
    [
        ('size = "128x128"', ["-W", "256"], (256, 256)),
        ("width = 128\nheight = 144", ["--size", "256x128"], (256, 128)),
        ("width = 128\nheight = 144", ["-W", "160"], (160, 144)),
        ("height = 144", ["--aspect", "1:1"], (256, 256)),
        ('size = "128x128"\n[generate]\nwidth = 160', [], (160, 256)),
        ('width = 128\n[generate]\nsize = "160x160"', [], (160, 160)),
    ],
)
def test_another_way_to_say_it_replaces_the_lower_one(
    planned: Any, text: str, arguments: list[str], size: tuple[int, int]
) -> None:
    """A size in the file and -W on the command line used to be one size too many."""
    facts, _ = planned("-m", "tiny", "--config", settings(text), *arguments)
    assert (facts["width"], facts["height"]) == size


@pytest.mark.parametrize(
    ("text", "arguments", "seeds"),
    [
        ("num-images = 4", ["--seeds", "1-2"], {1, 2}),
        ("seed = 4", ["--seeds", "1-2"], {1, 2}),
        ('seeds = "1-2"', ["-s", "3"], {3}),
        ("seed = 4\nnum-images = 2", [], {4, 5}),
    ],
)
def test_seeds_replace_a_seed_and_a_number_and_the_other_way_round(
    text: str, arguments: list[str], seeds: set[int], capfd: pytest.CaptureFixture[str]
) -> None:
    line = ["generate", "a cat", "-m", "tiny", "--dry-run", "--json", "--config", settings(text)]
    assert main([*line, *arguments]) == 0
    events = map(json.loads, capfd.readouterr().out.splitlines())
    assert {event["seed"] for event in events if event["event"] == "planned"} == seeds


def test_a_prompt_that_is_typed_replaces_the_files(planned: Any) -> None:
    file = settings('prompts-file = "nowhere.txt"\nmodel = "tiny"')
    assert planned("--config", file)[0]["prompt"] == "a cat"


def test_every_kind_of_option_can_be_set(capfd: pytest.CaptureFixture[str]) -> None:
    file = settings(
        'prompt = "a dog"\nseed = 9\nguidance = 2\ncfg-scale = 3.5\nbatch-size = 2\n'
        'overwrite = true\nquiet = true\njson = true\nmodel = "tiny"\ndry-run = true\n'
    )
    assert main(["generate", "--config", file]) == 0
    *_, picture, _ = map(json.loads, capfd.readouterr().out.splitlines())
    assert (picture["prompt"], picture["seed"]) == ("a dog", 9)


def test_verbose_says_where_each_value_came_from(planned: Any, home: Path) -> None:
    home.write_text('model = "tiny"\noutput = "d/"\nverbose = true\n')
    _, err = planned("-W", "128", "--overwrite")
    assert err.splitlines()[:3] == [
        "from the command line: seed 1, width 128, overwrite, dry-run, json",
        f"from {home}: output d/, model tiny, verbose",
        "from the preset tiny: height 256, steps 4, guidance 1",
    ]


@pytest.mark.parametrize(
    ("text", "error", "hint"),
    [
        ("stpes = 4", "my.toml sets stpes, which klein does not know", "did you mean steps?"),
        ("zzz = 4", "my.toml sets zzz, which klein", "klein generate --help lists"),
        ("[generate]\nwidht = 1", "sets generate.widht,", "did you mean width?"),
        ("[genrate]\nseed = 1", "sets genrate,", "did you mean generate?"),
        ('[verify]\noutput = "x"', "sets verify.output,", "klein verify --help lists"),
        ("generate = 1", "sets generate,", "begin its settings with a line [generate]"),
        ("help = true", "sets help,", "klein generate --help"),
        ("config = 'x'", "sets config,", "klein generate --help"),
        ('steps = "4"', 'sets steps = "4": --steps takes a whole number', "write steps = 4"),
        ("steps = 4.5", "sets steps = 4.5: --steps takes a whole number", "--help explains"),
        ("steps = true", "sets steps = true: --steps takes a whole number", "write steps = 4"),
        ("[generate]\nseed = [1]", "sets generate.seed = [1]: --seed takes one value", "--help"),
        ("guidance = nan", "sets guidance = NaN: --guidance takes a number", "guidance = 4.0"),
        ('quiet = "yes"', "--quiet takes true or false", "write quiet = true"),
        ("quiet = 1", "sets quiet = 1: --quiet takes true or false", "write quiet = true"),
        ("model = 4", "sets model = 4: --model takes text in quotes", 'write model = "..."'),
        ("output = 1979-05-27", 'output = "1979-05-27": --output takes text', "write output ="),
        ('dtype = "bf16"', "--dtype bf16 is not valid (set in my.toml)", "use auto, bfloat16"),
        ("steps =", "my.toml is not TOML: Invalid value (at end of document)", "steps = 4"),
        ("a = " + "[" * 5000, "my.toml is not TOML", "a setting a line"),
    ],
)
def test_what_means_nothing_is_one_line_and_one_hint(
    text: str, error: str, hint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "a", "-m", "tiny", "--config", settings(text)]) == 2
    first, second = capfd.readouterr().err.splitlines()
    assert error in first
    assert hint in second


def test_files_that_cannot_be_read(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a", "--config", "nowhere.toml"]) == 2
    assert "there is no settings file nowhere.toml" in capfd.readouterr().err
    assert main(["generate", "a", "--config", settings(""), "--no-config"]) == 2
    assert "exclude each other" in capfd.readouterr().err
    home.write_bytes(b"\xff\xfe")
    assert main(["generate", "a"]) == 2
    assert "is not TOML" in capfd.readouterr().err


def test_help_and_version_work_under_a_broken_file(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    home.write_text("what is this")
    for arguments in (["--help"], ["--version"], ["generate", "--help"], ["info", "-h"]):
        assert main(arguments) == 0
        assert "--config" in capfd.readouterr().out or arguments[0].startswith("--")
    assert main(["generate", "a", "--no-config", "-m", "tiny", "--dry-run"]) == 0


def test_every_command_can_be_given_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    commands = get_command(klein_cli.cli.app.app).commands  # type: ignore[attr-defined]
    paths = [(name, *below) for name, command in commands.items() for below in leaves_of(command)]
    for path in paths:
        assert main([*path, "--config", "nowhere.toml"]) == 2
        assert "there is no settings file nowhere.toml" in capsys.readouterr().err, path


def leaves_of(command: Any) -> Iterator[tuple[str, ...]]:
    """The words behind a command's own name that call something: none, or those of its commands."""
    if not hasattr(command, "commands"):
        yield ()
    for name, inner in getattr(command, "commands", {}).items():
        yield from ((name, *below) for below in leaves_of(inner))


def test_groups_and_lists_have_settings_too() -> None:
    """None of klein's commands may have them today, and the file must be ready when one does."""
    seen: list[Any] = []
    inner = typer.Typer()

    @inner.command()
    def pull(
        names: Annotated[list[str] | None, typer.Option("--name")] = None,
        folder: Annotated[Path | None, typer.Option("--folder")] = None,
        workers: Annotated[str, typer.Option("--workers", metavar="N|auto")] = "auto",
    ) -> None:
        seen.append((names, folder, workers))

    @inner.command()
    def rm(force: Annotated[bool, typer.Option("--force")] = False) -> None:
        seen.append(force)

    outer = typer.Typer()
    outer.add_typer(inner, name="models")

    @outer.callback()
    def root() -> None: ...

    configured(outer)
    file = settings(
        'folder = "top"\n[models]\nname = ["a", "b"]\nforce = true\nworkers = 3\n'
        '[models.pull]\nfolder = "deep"\n'
    )
    outer(["models", "pull", "--config", file], standalone_mode=False)
    outer(["models", "rm", "--config", file], standalone_mode=False)
    assert seen == [(["a", "b"], Path("deep"), "3"), True]


def test_the_default_place_is_the_platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CONFIG_HOME", "/somewhere")
        assert default_file() == Path("/somewhere/klein/config.toml")
    assert default_file().name == "config.toml"


@pytest.mark.process
def test_the_file_is_read_by_the_command_itself(tmp_path: Path) -> None:
    file = tmp_path / "klein" / "config.toml"
    file.parent.mkdir()
    file.write_text('modle = "tiny"')
    code = "import sys; from klein_cli.cli.app import main; code = main(sys.argv[1:]);"
    code += "print('torch' in sys.modules); sys.exit(code)"
    done = subprocess.run(
        [sys.executable, "-c", code, "generate", "a cat"],
        capture_output=True,
        text=True,
        check=False,
        env={"XDG_CONFIG_HOME": str(tmp_path), "APPDATA": str(tmp_path), "HOME": str(tmp_path)},
    )
    if sys.platform == "linux":
        assert done.returncode == 2
        assert done.stderr.splitlines()[1] == "hint: did you mean model?"
        assert done.stdout == "False\n"
