"""What the server writes of itself: a line an event, as JSON or in words, and no prompt in any."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, TextIO


class Log:
    """Lines to a stream, standard error by default; `as_json` for programs, `quiet` for none.

    Nothing that a client wrote goes into it but a request id, which is cut and checked.
    """

    def __init__(
        self, *, as_json: bool = False, quiet: bool = False, stream: TextIO | None = None
    ) -> None:
        self._as_json = as_json
        self._quiet = quiet
        self._stream = stream

    def event(self, kind: str, **fields: Any) -> None:
        """Write one line; a stream that is gone is nobody's fault."""
        if self._quiet:
            return
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        if self._as_json:
            line = json.dumps({"time": now, "event": kind, **fields}, default=str)
        else:
            said = " ".join(f"{name}={value}" for name, value in fields.items())
            line = f"{now} {kind} {said}".rstrip().replace("\n", " ")
        stream = self._stream or sys.stderr
        try:
            stream.write(line + "\n")
            stream.flush()
        except (OSError, ValueError):
            self._quiet = True
