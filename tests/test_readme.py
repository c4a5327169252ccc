"""The README tells the truth: its commands run as printed, its options, tables and links exist."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from draw_edits import STRIP, commands, prompt_of
from PIL import Image
from typer.main import get_command

from klein_cli.checkpoints.fingerprint import fingerprint
from klein_cli.checkpoints.resolve import resolve
from klein_cli.cli.app import app, main
from klein_cli.errors import KleinError
from klein_cli.output.reading import read_record
from klein_cli.presets import DEFAULT_MODEL, presets
from klein_cli.settings import CHOICES

pytestmark = pytest.mark.lengthy

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    REPOSITORY / "CHANGELOG.md",
    REPOSITORY / "klein_cli" / "tiny" / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
PICTURES = REPOSITORY / "docs" / "pictures.jsonl"


def blocks(kind: str) -> list[str]:
    """The README's code blocks of a kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


SET_UP, TEST, *EXAMPLES = [line for block in blocks("sh") for line in block.splitlines()]
ELSEWHERE = (
    *(["models", "pull"], ["models", "rm"], ["doctor"], ["bench"]),
    *(["serve"], ["ps"], ["stop"]),
)
"""Examples that need a network, this machine in order, or minutes, or that do not end: run by tests
of their own."""
COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]


def words(line: str) -> list[str]:
    """A command line as the shell splits it, without its comment and where it sends its output."""
    return shlex.split(line.partition(" > ")[0], comments=True)


def test_it_starts_with_two_commands_that_do_their_own_set_up() -> None:
    for line, folder in ((SET_UP, ".venv"), (TEST, ".venv-test")):
        assert line.startswith(f"python3 -m venv {folder} && {folder}/bin/pip install ")
    assert "klein generate" in SET_UP
    assert TEST.endswith(".venv-test/bin/python -m pytest -n auto")


def test_the_pictures_are_what_their_commands_draw() -> None:
    """By this model too: new weights want new images."""
    rows = [json.loads(line) for line in PICTURES.read_text(encoding="utf-8").splitlines()]
    shown = re.findall(r"\((docs/images/.*?)\)", README)
    assert shown[: len(rows)] == [f"docs/images/{row['output']}" for row in rows]
    (again,) = [line for line in EXAMPLES if str(PICTURES.relative_to(REPOSITORY)) in line]
    for row, path in zip(rows, shown, strict=False):
        record = read_record(REPOSITORY / path)
        assert (record.recipe.prompt, record.recipe.seed) == (row["prompt"], row["seed"])
        assert (record.recipe.model, record.recipe.width) == ("tiny", presets()["tiny"].width)
        assert f"| {row['prompt']} |" in README
        assert record.weights == fingerprint(resolve("tiny")), (
            f"tiny has other weights now: run {again}"
        )
    command = shlex.split(SET_UP)
    assert command[command.index("generate") + 1] == rows[0]["prompt"]
    assert command[command.index("--seed") + 1] == str(rows[0]["seed"])


def test_the_strip_shows_what_its_commands_make() -> None:
    """With this model: new weights want a new strip."""
    with Image.open(STRIP) as strip:
        said = strip.info
    assert json.loads(said["prompts"]) == [prompt_of(arguments) for arguments in commands(README)]
    assert said["weights"] == fingerprint(resolve("tiny")), "run scripts/draw_edits.py"


@pytest.fixture
def a_users_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_snapshot: Path,
    small_base_snapshot: Path,
) -> None:
    """Where the examples run: small models lie in the hub's cache under the names of large ones.

    A settings file has them draw small images on the CPU, in one step; `tiny` is drawn in full.
    """
    import huggingface_hub.constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name, snapshot in (("klein-4b", small_snapshot), ("klein-base-4b", small_base_snapshot)):
        repo = tmp_path / "hub" / ("models--" + presets()[name].repo.replace("/", "--"))
        (repo / "snapshots").mkdir(parents=True)
        (repo / "snapshots" / ("ab" * 20)).symlink_to(snapshot)
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text("ab" * 20)
    Path("small.toml").write_text('[generate]\ndevice = "cpu"\nsize = "64x64"\nsteps = 1\n')
    Path("docs").mkdir()
    shutil.copy(PICTURES, "docs")
    Path("prompts.txt").write_text("a cat\na dog\n")
    (rows,) = blocks("json")
    Path("rows.jsonl").write_text(rows)


@pytest.mark.usefixtures("a_users_folder")
def test_every_example_runs_as_printed(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """One after the other, in the order of the page: some use what those before them made."""
    for line in EXAMPLES:
        klein, *arguments = words(line)
        assert klein == "klein"
        COMMANDS[arguments[0]].make_context(arguments[0], arguments[1:])
        if arguments[:2] in ELSEWHERE or arguments[:1] in ELSEWHERE:
            continue
        if "tiny" not in arguments and arguments[0] == "generate":
            arguments += ["--config", "small.toml"]
        if arguments[0] == "verify":
            arguments += ["--size", "128x128", "--steps", "1", "--device", "cpu"]
        code = main(arguments)
        said = capfdbinary.readouterr()
        assert code == 0, f"{line}\n{said.err.decode()}"
        if " > " in line:
            Path(line.partition(" > ")[2]).write_bytes(said.out)
    assert read_record(Path("fox.png")).recipe.seed == 7
    assert len(list(Path("foxes").glob("*.png"))) == len(list(Path("more").glob("*.png"))) == 4
    assert len(list(Path("sweep").glob("*.png"))) == 20
    assert read_record(Path("again.png")) == read_record(Path("square.png"))
    assert sorted(path.name for path in Path("night").iterdir()) == [
        "0001-a-cat-1.png",
        "0002-a-dog-2.png",
        "manifest.jsonl",
    ]
    events = [json.loads(text) for text in Path("events.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "finished"
    assert read_record(Path("star.png")).recipe.prompt == "a star"


@pytest.mark.parametrize("text", blocks("toml"))
def test_the_settings_file_is_taken(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.toml").write_text(text)
    said = tomllib.loads(text)["generate"]
    assert main(["generate", "a", "--dry-run", "--config", "config.toml", "-s", "1", "-v"]) == 0
    out, err = capfd.readouterr()
    assert f"{said['steps']} steps" in out
    assert f"model {said['model']}" in err


def test_every_option_is_named_and_every_name_is_an_option() -> None:
    parameters = COMMANDS["generate"].params
    real = {name for param in parameters if not param.hidden for name in param.opts}
    real = {name for name in real if name.startswith("-")}
    section = README.partition("\n## Options\n")[2].partition("\n## ")[0]
    rows = "\n".join(line for line in section.splitlines() if line.startswith("|"))
    named = [name for cell in re.findall(r"`(-[^`]*)`", rows) for name in cell.split("/")]
    assert set(named) == real
    assert len(named) == len(set(named)), "an option is in two rows"


def test_every_command_has_an_example() -> None:
    assert {words(line)[1] for line in EXAMPLES} == set(COMMANDS)


def test_the_tables_are_whole() -> None:
    for name in (*presets(), *CHOICES["engine"].words, *CHOICES["attention"].words):
        assert name == "auto" or f"`{name}`" in README, name
    assert f"| `{DEFAULT_MODEL}` (default) |" in README
    for name, preset in presets().items():
        (row,) = re.findall(rf"^\| `{name}`.*$", README, re.MULTILINE)
        assert not preset.repo or f"https://huggingface.co/{preset.repo})" in row
        assert preset.licence.lower() in row.lower()
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    kinds = [KleinError, *KleinError.__subclasses__()]
    assert codes == {0, 130, *(kind.exit_code for kind in kinds)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere_and_no_page_names_another_project(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        file, _, heading = target.partition("#")
        if file.startswith("https://"):
            continue
        there = page.parent / file if file else page
        assert there.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in anchors, target
    assert not re.search(r"pip install klein(?!-)", text)
