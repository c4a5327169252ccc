"""Typer's own complaints about a command line -> our UsageError: one line and one hint."""

from __future__ import annotations

import importlib
import re
from difflib import get_close_matches
from typing import Any

import typer

from klein_cli.cli.other_programs import hint_for
from klein_cli.errors import UsageError

# Newer Typers carry a Click of their own: take the exceptions from the one that this Typer raises.
_click: Any = importlib.import_module(typer.BadParameter.__module__)
COMPLAINTS: type[Exception] = _click.ClickException


def explain(complaint: Any) -> UsageError:
    """The complaint in our words, with the nearest right name for one that does not exist."""
    context = getattr(complaint, "ctx", None)
    command = context.command_path if context else "klein generate"
    if isinstance(complaint, _click.NoSuchOption):
        return _no_such_option(complaint, command)
    if isinstance(complaint, _click.MissingParameter) and complaint.param is not None:
        return _missing(complaint.param, command)
    if isinstance(complaint, _click.BadParameter) and complaint.param is not None:
        return _bad_value(max(complaint.param.opts, key=len), complaint.message, command)
    message = complaint.format_message()
    unknown = re.match(r"No such command (['\"])(.*?)\1\.", message, re.DOTALL)
    if unknown:
        return _no_such_command(unknown[2], context)
    if "unexpected extra argument" in message and _takes(context, "edited"):
        hint = f'one image, then the words in quotes: {command} photo.jpg "make it red"'
        return UsageError(_lower(message), f"{hint}; for many images, name their folder")
    if "unexpected extra argument" in message and _takes(context, "prompt"):
        return UsageError(_lower(message), f'put the prompt in quotes: {command} "a red circle"')
    return UsageError(_lower(message), f"{command} --help lists what it takes")


def _missing(param: Any, command: str) -> UsageError:
    what = (param.metavar or param.name).strip("[]. ").upper()
    return UsageError(f"{command} needs {what}", f"{command} --help explains it")


def _takes(context: Any, argument: str) -> bool:
    params = context.command.params if context else []
    return any(param.param_type_name == "argument" and param.name == argument for param in params)


def _bad_value(option: str, message: str, command: str) -> UsageError:
    hint = f"{command} --help explains it"
    unreadable = re.match(r"Path '(.*)' is not (readable|writable)", message, re.DOTALL)
    if unreadable:
        return UsageError(
            f"cannot use {unreadable[1]}: it is not {unreadable[2]}", "look at its permissions"
        )
    for word, kind in (
        ("integer", "a whole number"),
        ("float", "a number"),
        ("number", "a number"),
    ):
        if word in message:
            return UsageError(f"{option} takes {kind}", hint)
    return UsageError(f"{option}: {_lower(message)}", hint)


def _no_such_option(complaint: Any, command: str) -> UsageError:
    wrong = complaint.option_name
    params = complaint.ctx.command.params if complaint.ctx else []
    names = [name for param in params for name in param.opts if name.startswith("--")]
    todo = hint_for(wrong, names)
    if todo is not None:
        return UsageError(f"there is no option {wrong}", todo)
    near = get_close_matches(wrong, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"{command} --help lists the options"
    return UsageError(f"there is no option {wrong}", hint)


def _no_such_command(wrong: str, context: Any) -> UsageError:
    names = list(context.command.commands) if context else []
    near = get_close_matches(wrong, names, n=1)
    path = context.command_path if context else "klein"
    if near:
        return UsageError(f"there is no command {wrong!r}", f"did you mean {path} {near[0]}?")
    if path != "klein":
        return UsageError(f"there is no command {wrong!r}", f"{path} --help lists them")
    return UsageError(f"there is no command {wrong!r}", f'to draw it: klein generate "{wrong}"')


def _lower(message: str) -> str:
    message = message.strip().removesuffix(".")
    return message[:1].lower() + message[1:]
