"""The beginning of `klein`, and of `python -m klein_cli`."""

import sys

from klein_cli.run.interrupts import end_as_by_ctrl_c, exit_code_of


def main() -> int:
    """Run the command line; `klein --version` answers before anything is imported for it.

    An interrupt while klein itself is imported ends it quietly, too.
    """
    try:
        if sys.argv[1:] == ["--version"]:
            return _version()
        end_as_by_ctrl_c()
        from klein_cli.cli.app import main as run

        return run()
    except KeyboardInterrupt as interrupt:
        return exit_code_of(interrupt)


def _version() -> int:
    from klein_cli import __version__
    from klein_cli.cli.terminal.stdio import exit_code

    def version() -> int:
        print(f"klein {__version__}")  # noqa: T201
        return 0

    return exit_code(version)


if __name__ == "__main__":
    sys.exit(main())
