"""Write docs/cli.md: every command, argument and option, in the words of --help.

    python scripts/write_cli_docs.py            # write it
    python scripts/write_cli_docs.py --check    # exit code 1 if it is not as the app is

It asks the app itself, so that a new command or option needs nothing here. A test holds the page to
the app.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from klein_cli.cli.app import app

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
_TOP = """# Commands and options

Written by `scripts/write_cli_docs.py` from the app itself: do not edit it, change the help texts.
How to use them is in the [README](../README.md).
"""


def page() -> str:
    """The whole page as Markdown."""
    root = get_command(app)
    commands = list(_commands(root, ("klein",)))
    shared = _shared([command for _, command in commands])
    parts = [_TOP, *(_listed(path, command) for path, command in commands), ""]
    for path, command in commands:
        parts += [*_section(path, command, leave_out=shared), ""]
    if shared:
        parts += ["## Every command", "", *_tables(commands[0][1], only=shared), ""]
    parts += ["## `klein` alone", "", *_tables(root)]
    return "\n".join(parts).rstrip() + "\n"


def _commands(place: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All commands under a group, in the order of --help, with the words that call them."""
    for name, command in place.commands.items():
        if command.hidden:
            continue
        if hasattr(command, "commands"):
            yield from _commands(command, (*path, name))
        else:
            yield (*path, name), command


def _shared(commands: list[Any]) -> set[str]:
    """The options that all commands have alike: they are told once."""
    tables = [
        {(p.name, p.help) for p in command.params if not _is_argument(p)} for command in commands
    ]
    return {name for name, _ in set.intersection(*tables)} if len(tables) > 1 else set()


def _listed(path: tuple[str, ...], command: Any) -> str:
    words = " ".join(path)
    anchor = re.sub(r"[^a-z0-9 -]", "", words).replace(" ", "-")
    return f"- [`{words}`](#{anchor}): {_plain(_paragraphs(command.help)[0])}"


def _section(path: tuple[str, ...], command: Any, *, leave_out: set[str]) -> Iterator[str]:
    words = " ".join(path)
    yield f"## `{words}`"
    yield ""
    usage = " ".join([words, "[OPTIONS]", *map(_usage, filter(_is_argument, command.params))])
    yield f"    {usage}"
    yield ""
    for paragraph in _paragraphs(command.help):
        yield _plain(paragraph)
        yield ""
    yield from _tables(command, leave_out=leave_out)


def _usage(argument: Any) -> str:
    name = (argument.metavar or argument.name.upper()) + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _tables(
    command: Any, *, leave_out: set[str] = frozenset(), only: set[str] | None = None
) -> Iterator[str]:
    """A table a panel of the help, in its order."""
    panels: dict[str, list[Any]] = {}
    for param in command.get_params(command.context_class(command)):
        wanted = param.name not in leave_out if only is None else param.name in only
        if wanted and not param.hidden and "--help" not in param.opts:
            panels.setdefault(param.rich_help_panel or "Options", []).append(param)
    for number, (panel, params) in enumerate(panels.items()):
        if number:
            yield ""
        yield f"| {panel} | |"
        yield "| --- | --- |"
        yield from (f"| {_named(param)} | {_told(param)} |" for param in params)


def _named(param: Any) -> str:
    metavar = (param.metavar or "").strip()
    if _is_argument(param):
        return f"`{metavar or param.name.upper()}`"
    names = sorted((*param.opts, *param.secondary_opts), key=len)
    if not metavar and not param.is_flag:
        metavar = "VALUE"
    return ", ".join(f"`{name}`" for name in names) + (f" `{_cell(metavar)}`" if metavar else "")


def _told(param: Any) -> str:
    text = _cell(_plain(param.help or ""))
    default = param.default
    if param.show_default and isinstance(default, (str, int, float, Path)) and default is not False:
        text += f" Default: `{default}`."
    return text


def _is_argument(param: Any) -> bool:
    return bool(param.param_type_name == "argument")


def _paragraphs(text: str | None) -> list[str]:
    return [" ".join(part.split()) for part in inspect.cleandoc(text or "").split("\n\n")]


def _plain(text: str) -> str:
    """Without the backslashes that keep brackets from being Rich's markup."""
    return text.replace("\\[", "[").replace("  ", " ")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> int:
    parser = argparse.ArgumentParser(description=inspect.cleandoc(__doc__).splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if stale")
    if parser.parse_args().check:
        stale = not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page()
        print(f"{PAGE.name} is {'not ' * stale}current")
        return int(stale)
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
