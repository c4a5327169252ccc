"""The beginning of `klein`, and of `python -m klein_cli`."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def run() -> NoReturn:
    """The process `klein`, whole."""
    code = main()
    if "torch" in sys.modules:
        _end(code)
    sys.exit(code)


def main() -> int:
    """Run the command line; `klein --version` answers before anything is imported for it.

    An interrupt while klein itself is imported ends it quietly, too.
    """
    try:
        if sys.argv[1:] == ["--version"]:
            return _version()
        from klein_cli.cli.quick import quick

        code = quick(sys.argv[1:])
        if code is not None:
            return code
        from klein_cli.cli.app import main as command_line
        from klein_cli.run.interrupts import end_as_by_ctrl_c

        end_as_by_ctrl_c()
        return command_line()
    except KeyboardInterrupt as interrupt:
        from klein_cli.run.interrupts import exit_code_of

        return exit_code_of(interrupt)


def _version() -> int:
    from klein_cli import __version__
    from klein_cli.cli.terminal.stdio import exit_code

    def version() -> int:
        print(f"klein {__version__}")  # noqa: T201
        return 0

    return exit_code(version)


def _end(code: int) -> None:
    """End the process as Python would, less the half second in which it takes torch to pieces.

    Leaves that to Python where a thread is still at work.
    """
    import atexit
    import contextlib
    import threading

    if any(not thread.daemon for thread in threading.enumerate()[1:]):
        return
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
