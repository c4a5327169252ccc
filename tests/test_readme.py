"""The README tells the truth: its commands parse, its options and links exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from klein_cli.cli.app import app, main
from klein_cli.presets import presets
from klein_cli.recipe import ATTENTIONS, ENGINES

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    REPOSITORY / "CHANGELOG.md",
    REPOSITORY / "klein_cli" / "tiny" / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]


def shell_lines(text: str) -> list[str]:
    """Every line of the ```sh blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


SET_UP, TEST, *EXAMPLES = shell_lines(README)
COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]


def test_it_starts_with_two_commands_that_do_their_own_set_up() -> None:
    for line, folder in ((SET_UP, ".venv"), (TEST, ".venv-test")):
        assert line.startswith(f"python3 -m venv {folder} && {folder}/bin/pip install ")
    assert "klein generate" in SET_UP
    assert TEST.endswith(".venv-test/bin/python -m pytest")


def test_the_picture_is_what_the_first_command_draws_by_name() -> None:
    from PIL import Image

    shown, *_ = re.findall(r"\((docs/images/.*?)\)", README)
    with Image.open(REPOSITORY / shown) as image:
        recipe = image.text["parameters"]
    assert recipe.startswith(shlex.split(SET_UP)[shlex.split(SET_UP).index("generate") + 1])
    assert "Seed: 1, Size: 256x256, Model: tiny" in recipe


@pytest.mark.parametrize("line", EXAMPLES)
def test_examples_are_accepted(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("foxes").mkdir()
    Path("prompts.txt").write_text("a cat\na dog\n")
    (row,) = re.findall(r"^```json\n(.*?)\n```$", README, re.MULTILINE | re.DOTALL)
    Path("rows.jsonl").write_text(row)
    klein, name, *arguments = shlex.split(line.partition(" > ")[0], comments=True)
    assert klein == "klein"
    COMMANDS[name].make_context(name, list(arguments))
    if name == "generate":
        assert main([name, *arguments, "--dry-run"]) == 0, capfd.readouterr().err


def test_every_option_is_named_and_every_name_is_an_option() -> None:
    parameters = COMMANDS["generate"].params
    real = {name for param in parameters if not param.hidden for name in param.opts}
    real = {name for name in real if name.startswith("-")}
    section = README.partition("\n## Options\n")[2].partition("\n## ")[0]
    named = {name for cell in re.findall(r"`(-[^`]*)`", section) for name in cell.split("/")}
    assert named == real


def test_every_command_has_an_example() -> None:
    assert {line.split()[1] for line in EXAMPLES} == set(COMMANDS)


def test_models_engines_and_attentions_are_named() -> None:
    for name in (*presets(), *ENGINES, *ATTENTIONS):
        assert name == "auto" or f"`{name}`" in README, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere_and_no_page_names_another_project(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (page.parent / target).exists(), target
    assert not re.search(r"pip install klein(?!-)", text)
