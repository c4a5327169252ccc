"""Packages that klein does most of its work without. Imports none of them, and no torch."""

from __future__ import annotations

from importlib.util import find_spec

from klein_cli.errors import UsageError


def check_official(what: str) -> None:
    """Raise UsageError, naming `what` was asked for, unless the official pipeline is installed."""
    missing = [name for name in ("diffusers", "transformers") if find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UsageError(
            f"{what} needs {' and '.join(missing)}, which {verb} not installed",
            "pip install 'klein-cli[official]'",
        )
