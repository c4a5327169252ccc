"""docs/cli.md is what the app says today."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import pytest
import typer
import write_cli_docs
from typer.main import get_command

from klein_cli.cli.app import app


def test_the_page_is_current() -> None:
    assert write_cli_docs.PAGE.read_text(encoding="utf-8") == write_cli_docs.page(), (
        "run scripts/write_cli_docs.py"
    )


def test_it_names_every_command_and_option() -> None:
    page = write_cli_docs.page()
    sections = dict(re.findall(r"^## `klein (\w+)`\n(.*?)(?=^## )", page, re.MULTILINE | re.DOTALL))
    everywhere = page.partition("\n## Every command\n")[2]
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        for param in command.params:
            for opt in param.opts if param.param_type_name == "option" and not param.hidden else ():
                assert f"`{opt}`" in sections.get(name, page) + everywhere, (name, opt)


def test_groups_lists_and_odd_texts_find_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    other, inner = typer.Typer(), typer.Typer()

    @inner.command()
    def pull(
        names: list[str],
        folder: Annotated[Path, typer.Option(help="One | two,\nthree.")] = Path("here"),
        workers: Annotated[int, typer.Option("--workers", "-w")] = 1,
        check: Annotated[bool, typer.Option("--check/--no-check")] = True,
    ) -> None:
        """Fetch \\[all] of it.

        And
        more.
        """

    @other.command()
    def alone() -> None:
        """Do nothing."""

    @other.callback()
    def root() -> None: ...

    other.add_typer(inner, name="models")
    monkeypatch.setattr(write_cli_docs, "app", other)
    page = write_cli_docs.page()
    assert "- [`klein models pull`](#klein-models-pull): Fetch [all] of it.\n" in page
    assert "    klein models pull [OPTIONS] NAMES...\n\nFetch [all] of it.\n\nAnd more.\n" in page
    assert "| `--folder` `VALUE` | One \\| two, three. Default: `here`. |" in page
    assert "| `-w`, `--workers` `VALUE` |  Default: `1`. |" in page
    assert "| `--check`, `--no-check` |" in page


def test_check_tells_a_stale_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["write_cli_docs.py", "--check"])
    monkeypatch.setattr(write_cli_docs, "PAGE", tmp_path / "cli.md")
    assert write_cli_docs.main() == 1
    monkeypatch.setattr("sys.argv", ["write_cli_docs.py"])
    assert write_cli_docs.main() == 0
    monkeypatch.setattr("sys.argv", ["write_cli_docs.py", "--check"])
    assert write_cli_docs.main() == 0
    assert "cli.md is current" in capsys.readouterr().out
