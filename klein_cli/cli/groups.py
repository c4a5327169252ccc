"""Groups of options: dataclasses that a command takes whole, and Typer field by field."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from copy import copy
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_type_hints

import typer

from klein_cli.cli.config import was_typed

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Group = TypeVar("Group", bound="DataclassInstance")


def grouped(
    *,
    leave_out: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
    helps: Mapping[str, str] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let Typer see the fields of a command's dataclasses as options, in the order of both.

    Fields that are left out are not options of this command and keep their own default; `defaults`
    and `helps` take precedence over those of the fields.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command)
        groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}

        @wraps(command)
        def run(**values: Any) -> None:
            for name, kind in groups.items():
                options = {field.name for field in fields(kind)} & values.keys()
                values[name] = kind(**{option: values.pop(option) for option in options})
            command(**values)

        parameters = list(_parameters(command, leave_out, defaults or {}, helps or {}))
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return run

    return decorate


def only_typed(context: typer.Context, group: Group) -> Group:
    """The group with the values from the command line alone; defaults in place of all others."""
    names = (field.name for field in fields(group) if was_typed(context, field.name))
    return type(group)(**{name: getattr(group, name) for name in names})


def _parameters(
    command: Callable[..., None],
    leave_out: Collection[str],
    defaults: Mapping[str, Any],
    helps: Mapping[str, str],
) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        kind = hints[name]
        if is_dataclass(kind):
            inner = get_type_hints(kind, include_extras=True)
            options = [(f.name, inner[f.name], f.default) for f in fields(kind)]
        else:
            options = [(name, kind, parameter.default)]
        for option, hint, default in options:
            if option in helps:
                kind, said = get_args(hint)
                said = copy(said)
                said.help = helps[option]
                hint = Annotated[kind, said]
            if option not in leave_out:
                yield inspect.Parameter(
                    option,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=defaults.get(option, default),
                    annotation=hint,
                )
