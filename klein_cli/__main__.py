"""`python -m klein_cli`: the same as `klein`."""

import sys

from klein_cli.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
