"""The settings file: defaults for the options of every command.

    # ~/.config/klein/config.toml, or the platform's own place for it
    output = "images/"        # a long option, for every command that has it
    [generate]
    model = "klein-base-4b"     # or for one command, where it takes precedence over those above

A value comes from the command line, else from the file, else from the model's preset. Every key of
the file must be an option of some command. The values for the command that runs become Click's own
defaults, which it converts and checks like what is typed.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Container, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from klein_cli.cli.usage import COMPLAINTS, explain
from klein_cli.errors import UsageError
from klein_cli.paths import check_path
from klein_cli.tables import shortened

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
_FILES = {"FILE", "DIR", "FOLDER", "IMAGE", "IMG"}
_NO_FILES = {"NAME", "REPO"}
"""In a parameter's metavar: its values are files, or may be something else."""
_KINDS = {
    bool: ("true or false", "true"),
    int: ("a whole number", "4"),
    float: ("a number", "4.0"),
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
            for param in filter(_takes_files, self.params):
                _check_said(_as_typed(param), values.get(param.name))
            # Options are in the order if they were given; arguments always are.
            options = {param.name for param in order if param.param_type_name == "option"}
            texts = {name for name, value in values.items() if value and isinstance(value, str)}
            if not any(param.is_eager for param in order):
                _take_defaults(ctx, {name: values[name] for name in options | texts})
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an error about an option that the file set names the file too."""
        _check_present_folder()
        for param in self.params:
            kinds = (str, Path) if _takes_files(param) else Path
            _check_paths(_as_typed(param), ctx.params.get(param.name), kinds)
        try:
            return super().invoke(ctx)
        except UsageError as error:
            named = set(re.findall(r"--[a-z][a-z-]*", error.message))
            if not any(named & set(p.opts) and _is_filed(ctx, p.name) for p in self.params):
                raise
            raise UsageError(f"{error.message} (set in {ctx.meta[_FILE]})", error.hint) from None


def _check_present_folder() -> None:
    """Raise UsageError where it is gone: libraries fail of that in ways of their own."""
    try:
        os.getcwd()
    except OSError as error:
        gone = isinstance(error, FileNotFoundError)
        what = "is gone" if gone else f"cannot be read: {error.strerror}"
        raise UsageError(f"the folder you are in {what}", "cd to one that exists") from None


def _takes_files(param: Any) -> bool:
    """Whether a value of the parameter can only be a file or a folder."""
    kinds = set(re.split(r"\W+", param.metavar or ""))
    return bool(kinds & _FILES) and not kinds & _NO_FILES


def _as_typed(param: Any) -> str:
    return max(param.opts, key=len) if param.param_type_name == "option" else "the path"


def _check_said(name: str, value: Any) -> None:
    """Raise UsageError for "", as of a shell's variable that is not set: to a Path it is the
    present folder.
    """
    if "" in (value if isinstance(value, list | tuple) else [value]):
        raise UsageError(f"{name} is empty", "name a file or a folder")


def _check_paths(name: str, value: Any, kinds: Any) -> None:
    """Raise UsageError for an address among values of these kinds, which are paths."""
    for path in value if isinstance(value, list) else [value]:
        if isinstance(path, kinds):
            check_path(name, path)


def _take_defaults(ctx: Any, given: Mapping[str, Any]) -> None:
    found = _read(given.get("config"), ignored=bool(given.get("no_config")))
    if found is not None:
        ctx.meta[_FILE], table = found
        _check(ctx, table, ctx.find_root().command)
        ctx.default_map = _without_alternatives(_values(table, ctx), given)


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
            key if value is True else f"{key} {shortened(str(value))}"
            for key, param in _options(context.command).items()
            if param.name not in but
            and is_there(context, param.name)
            and (value := context.params.get(param.name)) is not None
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


def _read(asked: Any, *, ignored: bool) -> tuple[Path, dict[str, Any]] | None:
    """The settings file and what it says, if there is one. Raises UsageError."""
    import tomllib

    if asked is not None and ignored:
        raise UsageError("--config and --no-config exclude each other", "leave one of them out")
    if asked is not None:
        check_path("--config", asked)
    file = default_file() if asked is None else Path(asked)
    if ignored or not os.path.isfile(file):  # nor one that may not be looked at
        if asked is not None:
            raise UsageError(f"there is no settings file {asked}", "check --config")
        return None
    try:
        return file, tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(
            f"cannot read {file}: {error.strerror or error}", "--no-config does without it"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{file} is not TOML: {error}",
            'write a setting a line, as in steps = 4 or size = "1x1"',
        ) from None


def _check(ctx: Any, table: Mapping[str, Any], place: Any, *above: str) -> None:
    """Raise UsageError for a key that is neither an option nor a command of `place`, or its value.

    `place` is a command, or a group, whose options are those of all commands in it.
    """
    inside = getattr(place, "commands", {})
    # The command that runs is looked at first: the others are imported where it lacks an option.
    own = {} if above else _options(ctx.command)
    for key, value in table.items():
        where = ".".join((*above, key))
        if isinstance(value, dict) and key in inside:
            _check(ctx, value, inside[key], *above, key)
        elif param := own.get(_dashed(key)) or _options(place).get(_dashed(key)):
            if said := _complaint(ctx, key, value, param):
                shown = shortened(json.dumps(value, default=str, ensure_ascii=False))
                file = ctx.meta[_FILE]
                raise UsageError(f"{file} sets {where} = {shown}: {said.message}", said.hint)
        else:
            near = get_close_matches(_dashed(key), [*_options(place), *inside], n=1)
            lists = " ".join(("klein", *above)) if above else "klein generate"
            hint = f"did you mean {near[0]}?" if near else f"{lists} --help lists what can be set"
            if key in inside:
                hint = f"{key} is a command: begin its settings with a line [{where}]"
            raise UsageError(f"{ctx.meta[_FILE]} sets {where}, which klein does not know", hint)


def _complaint(ctx: Any, key: str, value: Any, param: Any) -> UsageError | None:
    """What is wrong with a value from the file, by Click, which would take "4" and true for 4."""
    name, several = max(param.opts, key=len), bool(param.multiple)
    if isinstance(value, dict) or isinstance(value, list) != several:
        takes = 'a list: ["..."]' if several else "one value"
        return UsageError(f"{name} takes {takes}", f"{ctx.command_path} --help explains it")
    try:
        got = param.process_value(ctx, value)
    except COMPLAINTS as complaint:
        return explain(complaint)
    pairs = zip(value, got, strict=True) if several else [(value, got)]
    if all(_is_kind(*pair, param) for pair in pairs):
        return None
    words, example = _KINDS.get(type(got), ("text in quotes", '"..."'))
    return UsageError(f"{name} takes {words}", f"write {key} = {example}")


def _is_kind(filed: Any, got: Any, param: Any) -> bool:
    if isinstance(filed, str):  # a path or another class may come of it, but no number
        return type(got) not in _KINDS
    if type(filed) is int and not isinstance(got, bool):
        return isinstance(got, (int, float)) or "N" in (param.metavar or "").split("|")
    return type(filed) is type(got) and math.isfinite(got)


def _options(place: Any) -> dict[str, Any]:
    """What may be set for a command, or for any of a group: long options less dashes -> params."""
    if inside := getattr(place, "commands", None):
        found = [_options(inside[name]) for name in inside]
        return {key: param for options in reversed(found) for key, param in options.items()}
    return {
        opt[2:]: param
        for param in place.params
        if param.param_type_name == "option" and param.name not in _OWN
        for opt in param.opts
        if opt.startswith("--")
    }


def _values(table: Mapping[str, Any], ctx: Any) -> dict[str, Any]:
    """The defaults for the command of `ctx`, by parameter; deeper tables take precedence."""
    options = _options(ctx.command)
    path: list[str] = []
    while ctx.parent is not None:
        path.insert(0, ctx.info_name)
        ctx = ctx.parent
    tables = [table]
    for name in path:
        tables.append(tables[-1].get(name, {}))
    values: dict[str, Any] = {}
    for each in tables:
        own = {options[_dashed(k)].name: v for k, v in each.items() if _dashed(k) in options}
        values = _without_alternatives(values, own) | own
    return values


def _without_alternatives(lower: Mapping[str, Any], higher: Mapping[str, Any]) -> dict[str, Any]:
    """`lower` less what says in another way what `higher` says."""
    replaced: set[str] = set()
    for ways in _ALTERNATIVES:
        said = [way for way in ways if way & higher.keys()]
        if said:
            replaced |= set().union(*(way for way in ways if way not in said))
    return {name: value for name, value in lower.items() if name not in replaced}


def _dashed(key: str) -> str:
    return key.replace("_", "-")
