"""The beginning of `klein`, and of `python -m klein_cli`."""

import sys


def main() -> int:
    """Run the command line. An interrupt while klein itself is imported ends it quietly, too."""
    try:
        from klein_cli.cli.app import main as run

        return run()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
