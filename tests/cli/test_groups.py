"""Groups of options: what Typer sees of a command's dataclasses, and what the command is given."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from klein_cli.cli.groups import grouped, only_typed


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    width: Annotated[int, typer.Option("--width", "-W")] = 8
    height: Annotated[int, typer.Option("--height")] = 4


@pytest.fixture
def given() -> list[Any]:
    return []


def app(given: list[Any], **how: Any) -> typer.Typer:
    made = typer.Typer()

    @made.command()
    @grouped(**how)
    def command(
        context: typer.Context,
        *,
        name: Annotated[str, typer.Argument()],
        size: Size,
        loud: Annotated[bool, typer.Option("--loud")] = False,
    ) -> None:
        """What it does."""
        given.extend([name, size, loud, only_typed(context, size)])

    return made


def run(made: typer.Typer, *arguments: str) -> str:
    result = CliRunner().invoke(made, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_group_is_options_to_the_user_and_one_value_to_the_command(given: list[Any]) -> None:
    run(app(given), "cat", "-W", "16", "--loud")
    assert given == ["cat", Size(width=16), True, Size(width=16)]


def test_what_is_left_out_is_no_option_and_keeps_its_default(given: list[Any]) -> None:
    made = app(given, leave_out=("height",))
    assert CliRunner().invoke(made, ["cat", "--height", "1"]).exit_code == 2
    run(made, "cat")
    assert given[1] == Size()


def test_a_command_has_defaults_of_its_own_which_were_not_typed(given: list[Any]) -> None:
    """Else an image that is drawn again would take them for the user's words."""
    run(app(given, defaults={"width": 99}), "cat", "--height", "2")
    assert given[1] == Size(width=99, height=2)
    assert given[3] == Size(height=2)


def test_options_stand_where_the_group_stands(given: list[Any]) -> None:
    (command,) = app(given).registered_commands
    assert command.callback is not None
    names = list(inspect.signature(command.callback).parameters)
    assert names == ["context", "name", "width", "height", "loud"]
    assert "What it does." in run(app(given), "--help")


def test_what_one_command_says_of_an_option_is_its_own(given: list[Any]) -> None:
    """The options of a group are shared: a help written into them would show everywhere."""
    assert "How wide." in run(app(given, helps={"width": "How wide."}), "--help")
    assert "How wide." not in run(app(given), "--help")
