"""The end of the shortest way: what an engine has drawn -> a file."""

from __future__ import annotations

import json
from datetime import date
from functools import partial
from pathlib import Path
from socket import socket

from klein_cli.cli.terminal.stdio import exit_code
from klein_cli.cli.terminal.text import to_stderr
from klein_cli.errors import KleinError
from klein_cli.output.naming import Names, candidates, destination
from klein_cli.output.png import check_writable, save
from klein_cli.recipe import Recipe
from klein_cli.run.resident.connection import EngineError, read_head, rest

_RECIPE = "x-klein-recipe"


def answered(connection: socket, said: dict[str, str]) -> int | None:
    """Write the image that comes on a connection; the exit code, None if none comes."""
    try:
        status, headers = read_head(connection)
        data = rest(connection) if status == 200 else b""
        whole = len(data) == int(headers.get("content-length", "-1"))
        recipe = Recipe(**json.loads(headers[_RECIPE])) if whole else None
    except (OSError, EngineError, KeyError, TypeError, ValueError, KleinError):
        return None
    if recipe is None:
        return None
    return exit_code(partial(_written, data, recipe, said))


def _written(data: bytes, recipe: Recipe, said: dict[str, str]) -> int:
    if "seed" not in said and "quiet" not in said:
        to_stderr(f"seed: {recipe.seed}")
    overwrite = "overwrite" in said
    where = destination(said.get("output")).of(several=False)
    path = Names(where, overwrite=overwrite, today=date.today()).of(1, recipe)
    check_writable(path.parent)
    print(_saved(data, path, exact=where.exact, overwrite=overwrite))  # noqa: T201
    return 0


def _saved(data: bytes, path: Path, *, exact: bool, overwrite: bool) -> Path:
    """Where it is: at the path, or the next that is free. Raises KleinError."""
    try:
        for place in [path] if exact else candidates(path):
            try:
                save(data, place, overwrite=overwrite)
                return place
            except FileExistsError:
                continue
    except OSError as error:
        raise KleinError(
            f"cannot write {path}: {error.strerror or error}", "make room there, or give another -o"
        ) from None
    raise KleinError(f"cannot write {path}: it exists", "-y replaces it; or give another name")
