"""The settings file: defaults for the options of every command.

    # ~/.config/klein/config.toml, or the platform's own place for it
    output = "pictures/"        # a long option, for every command that has it
    [generate]
    model = "klein-base-4b"     # or for one command, where it goes before those above

A value comes from the command line, else from the file, else from the model's preset. The whole
file is checked whenever it is read: a key that no command has is an error, not a wish.
"""

from __future__ import annotations

import inspect
import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Container, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from klein_cli.errors import UsageError

_PANEL = "Settings file"
_OWN = ("config", "no_config")
_FILE = "klein_cli.cli.config.file"

# Ways to say one thing, of which a higher place's replaces a lower one's.
_ALTERNATIVES = (
    ({"prompt"}, {"prompt_option"}, {"prompts_file"}),
    ({"width", "height"}, {"size"}, {"aspect"}),
    ({"seed", "num_images"}, {"seeds"}),
    ({"guidance"}, {"guidance_scale"}),
    ({"quiet"}, {"verbose"}),
)
_KINDS = {
    bool: ("true or false", "true"),
    int: ("a whole number", "4"),
    float: ("a number", "4.0"),
    list: ("a list", '["..."]'),
    str: ("text in quotes", '"..."'),
}


def default_file() -> Path:
    """Where the settings file lies unless --config names another."""
    return Path(typer.get_app_dir("klein")) / "config.toml"


class ConfiguredCommand(TyperCommand):
    """A command that takes defaults from the settings file, with --config and --no-config."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params = [*self.params, *_own_options()]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line over the settings file. Raises UsageError for a wrong file."""
        if not ctx.resilient_parsing:
            values, _, order = self.make_parser(ctx).parse_args(args=list(args))
            # Options are in the order if they were given; arguments always are.
            options = {param.name for param in order if param.param_type_name == "option"}
            texts = {name for name, value in values.items() if value and isinstance(value, str)}
            if not any(param.is_eager for param in order):
                self._configure(ctx, {name: values[name] for name in options | texts})
        return super().parse_args(ctx, args)

    def _configure(self, ctx: Any, given: Mapping[str, Any]) -> None:
        file = _file(given.get("config"), ignored=bool(given.get("no_config")))
        if file is None:
            return
        table = _read(file)
        _check(file, table, ctx.find_root().command)
        ctx.default_map = _without_alternatives(_values(table, ctx), given)
        ctx.meta[_FILE] = file

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an error about an option that the file set names the file too."""
        try:
            return super().invoke(ctx)
        except UsageError as error:
            named = set(re.findall(r"--[a-z][a-z-]*", error.message))
            blamed = [p for p in self.params if named & set(p.opts) and _is_filed(ctx, p.name)]
            if not blamed:
                raise
            raise UsageError(f"{error.message} (set in {ctx.meta[_FILE]})", error.hint) from None


def configured(app: typer.Typer) -> None:
    """Let every command of `app`, and of the groups in it, read the settings file."""
    for command in app.registered_commands:
        command.cls = ConfiguredCommand
    for group in app.registered_groups:
        if group.typer_instance is not None:
            configured(group.typer_instance)


def was_typed(context: Any, name: str) -> bool:
    """Whether the parameter's value comes from the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def origins(context: typer.Context, *, not_filed: Container[str] = ()) -> Iterator[str]:
    """For --verbose: which values come from the command line, and which from the settings file.

    The command takes those `not_filed` from elsewhere, whatever the file says.
    """
    for place, is_there, but in (
        ("the command line", was_typed, ()),
        (str(context.meta.get(_FILE)), _is_filed, not_filed),
    ):
        said = [
            key if value is True else f"{key} {_short(str(value))}"
            for key, name in _keys(context.command).items()
            if name not in but
            and is_there(context, name)
            and (value := context.params.get(name)) is not None
        ]
        if said:
            yield f"from {place}: {', '.join(said)}"


def _is_filed(context: Any, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "DEFAULT_MAP"


@cache
def _own_options() -> tuple[Any, ...]:
    """--config and --no-config, made by the Typer that is installed."""
    app = typer.Typer(add_completion=False)

    @app.command()
    def command(
        config: Annotated[
            Path | None,
            typer.Option(
                "--config",
                metavar="FILE",
                expose_value=False,
                help="Take defaults for options from this file. If left out, from config.toml in "
                "the folder for klein's settings (~/.config/klein on Linux), where there is one.",
                rich_help_panel=_PANEL,
            ),
        ] = None,
        no_config: Annotated[
            bool,
            typer.Option(
                "--no-config",
                metavar=" ",
                expose_value=False,
                help="Take them from no file.",
                rich_help_panel=_PANEL,
            ),
        ] = False,
    ) -> None: ...

    return tuple(typer.main.get_command(app).params)


def _file(asked: Any, *, ignored: bool) -> Path | None:
    """The settings file to read, if there is one. Raises UsageError."""
    if asked is None:
        return default_file() if not ignored and default_file().is_file() else None
    if ignored:
        raise UsageError("--config and --no-config exclude each other", "leave one of them out")
    if not Path(asked).is_file():
        raise UsageError(f"there is no settings file {asked}", "check --config")
    return Path(asked)


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(
            f"cannot read {file}: {error.strerror or error}", "--no-config does without it"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{file} is not TOML: {error}",
            'write a setting a line, as in steps = 4 or size = "1x1"',
        ) from None


def _check(file: Path, table: Mapping[str, Any], place: Any, *above: str) -> None:
    """Raise UsageError for a key that is neither an option nor a command of `place`, or its value.

    `place` is a command, or a group, whose options are those of all commands in it.
    """
    inside = getattr(place, "commands", {})
    options = _options(place)
    for key, value in table.items():
        where = ".".join((*above, key))
        if isinstance(value, dict) and key in inside:
            _check(file, value, inside[key], *above, key)
        elif _dashed(key) in options:
            _check_value(file, where, value, *options[_dashed(key)])
        else:
            near = get_close_matches(_dashed(key), [*options, *inside], n=1)
            lists = " ".join(("klein", *above)) if above else "klein generate"
            hint = f"did you mean {near[0]}?" if near else f"{lists} --help lists what can be set"
            if key in inside:
                hint = f"{key} is a command: begin its settings with a line [{where}]"
            raise UsageError(f"{file} sets {where}, which klein does not know", hint)


def _check_value(file: Path, where: str, value: Any, kind: Any, numbers_too: bool) -> None:
    if _fits(value, kind) or (numbers_too and type(value) is int):
        return
    words, example = next((said for base, said in _KINDS.items() if _is(kind, base)), _KINDS[str])
    key = where.rpartition(".")[2]
    shown = _short(json.dumps(value, default=str, ensure_ascii=False))
    raise UsageError(f"{file}: {where} must be {words}, not {shown}", f"write {key} = {example}")


def _options(place: Any) -> dict[str, tuple[Any, bool]]:
    """What may be set for a command or a group: the type, and whether whole numbers do too."""
    inside = getattr(place, "commands", None)
    if inside is not None:
        found = [_options(command) for command in inside.values()]
        return {key: kind for options in reversed(found) for key, kind in options.items()}
    hints = typing.get_type_hints(inspect.unwrap(place.callback))
    numbers = {p.name: "N" in (p.metavar or "").split("|") for p in place.params}
    return {key: (hints[name], numbers[name]) for key, name in _keys(place).items()}


def _values(table: Mapping[str, Any], ctx: Any) -> dict[str, Any]:
    """The defaults for the command of `ctx`, by parameter: deeper tables go before higher ones."""
    path = []
    while ctx.parent is not None:
        path.append((ctx.info_name, ctx.command))
        ctx = ctx.parent
    keys = _keys(path[0][1])
    values: dict[str, Any] = {}
    for name in [None, *(name for name, _ in reversed(path))]:
        table = table if name is None else table.get(name, {})
        own = {keys[_dashed(key)]: value for key, value in table.items() if _dashed(key) in keys}
        values = _without_alternatives(values, own) | own
    return values


def _keys(command: Any) -> dict[str, str]:
    """Long options without their dashes -> parameters."""
    return {
        opt[2:]: param.name
        for param in command.params
        if param.param_type_name == "option" and param.name not in _OWN
        for opt in param.opts
        if opt.startswith("--")
    }


def _without_alternatives(lower: Mapping[str, Any], higher: Mapping[str, Any]) -> dict[str, Any]:
    """`lower` less what says in another way what `higher` says."""
    replaced: set[str] = set()
    for ways in _ALTERNATIVES:
        said = [way for way in ways if way & higher.keys()]
        if said:
            replaced |= set().union(*(way for way in ways if way not in said))
    return {name: value for name, value in lower.items() if name not in replaced}


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value from TOML is of an option's type; a whole number will do for a float."""
    if _is(kind, list):
        (inner,) = typing.get_args(_plain(kind))
        return isinstance(value, list) and all(_fits(each, inner) for each in value)
    if _is(kind, bool):
        return type(value) is bool
    if _is(kind, int):
        return type(value) is int
    if _is(kind, float):
        return type(value) is int or (type(value) is float and math.isfinite(value))
    return isinstance(value, str)


def _is(kind: Any, base: type) -> bool:
    return (typing.get_origin(_plain(kind)) or _plain(kind)) is base


def _plain(kind: Any) -> Any:
    """The type in `X | None`."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        (kind,) = (arg for arg in typing.get_args(kind) if arg is not type(None))
    return kind


def _dashed(key: str) -> str:
    return key.replace("_", "-")


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
