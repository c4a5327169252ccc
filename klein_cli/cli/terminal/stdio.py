"""The standard streams as a process finds them: closed, full, or in an encoding of long ago."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator

from klein_cli.errors import KleinError

_HANDLER = "klein"


class _Stdout(io.TextIOWrapper):
    """Standard output whose end is a user's error, and no traceback."""

    def write(self, text: str) -> int:
        if text == "":  # Click's way of asking what kind of a stream this is
            return 0
        with self._told():
            return super().write(text)

    def flush(self) -> None:
        with self._told():
            super().flush()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno == errno.EPIPE:  # whoever read it has gone, which is no error of theirs
                raise
            # What is held back goes nowhere, or the interpreter would stumble over it at its end.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            raise KleinError(
                f"cannot write to standard output: {error.strerror}", "send it elsewhere"
            ) from None


def mend_streams() -> None:
    """Let every stream be there, take every word, and say it in klein's way if it cannot.

    One that was closed (`>&-`) becomes a place where nothing is. On standard output, a path that
    is no UTF-8 is printed as the bytes it is, and what the encoding lacks as an escape.
    """
    # In this order: each takes the lowest descriptor that is free, which is its own.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (for the process's life)
    codecs.register_error(_HANDLER, _escaped)
    out = sys.stdout
    if isinstance(out, _Stdout) or not isinstance(out, io.TextIOWrapper):
        return
    if out is not sys.__stdout__:
        out.reconfigure(errors=_HANDLER)
        return
    encoding, lines, through = out.encoding, out.line_buffering, out.write_through
    sys.stdout = sys.__stdout__ = _Stdout(  # type: ignore[misc]
        out.detach(),
        encoding=encoding,
        errors=_HANDLER,
        line_buffering=lines,
        write_through=through,
    )


def _escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    with contextlib.suppress(UnicodeError):
        return codecs.lookup_error("surrogateescape")(error)
    return codecs.lookup_error("backslashreplace")(error)
