"""The standard streams as a process finds them: closed, full, or in an encoding of long ago."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from klein_cli.errors import KleinError

_HANDLER = "klein"
P = ParamSpec("P")
T = TypeVar("T")


def exit_code(work: Callable[[], int]) -> int:
    """Do `work`, whose exit code this is; a KleinError is two lines on stderr, and its own code."""
    fix_streams()
    try:
        code = work()
        sys.stdout.flush()
        return code
    except KleinError as error:
        from klein_cli.cli.terminal.text import to_stderr

        to_stderr(f"error: {error.message}\nhint: {error.hint}")
        return error.exit_code


def fix_streams() -> None:
    """Make every stream usable, and an error on standard output a KleinError.

    One that was closed (`>&-`) becomes the null device. On standard output, a path that is not
    UTF-8 is printed as the bytes it is, and what the encoding lacks as an escape.
    """
    # In this order: each takes the lowest free descriptor, which is its own.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (for the process's life)
    codecs.register_error(_HANDLER, _escaped)
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper):
        out.reconfigure(errors=_HANDLER)
        if out is sys.__stdout__ and not hasattr(out.write, "__wrapped__"):
            for method in ("write", "flush"):
                setattr(out, method, _reported(getattr(out, method)))


def _reported(method: Callable[P, T]) -> Callable[P, T]:
    """A method of standard output that raises KleinError when the output cannot be written."""

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except OSError as error:
            # Click asks with empty text what kind of stream this is, and ignores the answer.
            if error.errno == errno.EPIPE or args == ("",):
                raise
            # Buffered text goes nowhere, or the interpreter would fail on it again as it ends.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.close(nowhere)
            raise KleinError(
                f"cannot write to standard output: {error.strerror}", "send it elsewhere"
            ) from None

    return call


def _escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    with contextlib.suppress(UnicodeError):
        return codecs.lookup_error("surrogateescape")(error)
    return codecs.lookup_error("backslashreplace")(error)
