"""The shortest way from a shell to an image: a plain `klein generate`, drawn by a running engine.

Before the engine has been asked, next to nothing is imported: the words are sent as they were
typed, with the lines that say what this process would compute with, and the engine draws if it
would compute the same. What the file needs here is imported meanwhile. Anything unusual, from an
option that is not in `VALUES` to an answer that is no image, is left to the command line proper,
which begins from the start: nothing has been written by then.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket

VALUES = {
    "--model": "model",
    "-m": "model",
    "--seed": "seed",
    "-s": "seed",
    "--width": "width",
    "-W": "width",
    "--height": "height",
    "-H": "height",
    "--size": "size",
    "--steps": "steps",
    "--output": "output",
    "-o": "output",
}
FLAGS = {"--overwrite": "overwrite", "-y": "overwrite", "--quiet": "quiet", "-q": "quiet"}
"""The options of a plain command line, as `cli.options` has them: with a value, and without."""

ROUTE = "/klein/v1/quick"
_ENGINE = "engine.sock"
_SECONDS = 3600.0


def quick(arguments: list[str]) -> int | None:
    """The exit code, or None where the command line proper is to do it."""
    said = plain(arguments)
    place = None if said is None else _place()
    if said is None or place is None or _has_settings_file():
        return None
    output = said.get("output")
    if output is not None and (not output.endswith(".png") or _is_taken(output, said)):
        return None
    connection = _asked(place, said)
    if connection is None:
        return None
    with connection:
        from klein_cli.cli.quick_file import answered

        return answered(connection, said)


def plain(arguments: list[str]) -> dict[str, str] | None:
    """The options by name, "" for flags, and the `prompt`; None for what is not plain."""
    if arguments[:1] != ["generate"]:
        return None
    said: dict[str, str] = {}
    words = iter(arguments[1:])
    for word in words:
        option, has_value, value = word.partition("=")
        if word in FLAGS:
            name, value = FLAGS[word], ""
        elif word in VALUES:
            name, value = VALUES[word], next(words, "")
        elif has_value and option in VALUES and option.startswith("--"):
            name = VALUES[option]
        elif word and not word.startswith("-"):
            name, value = "prompt", word
        else:
            return None
        if name in said or (not value and name not in FLAGS.values()) or "\0" in value:
            return None
        said[name] = value
    return said if "prompt" in said else None


def request(said: dict[str, str], lines: dict[str, list[str]]) -> bytes:
    """What the engine is asked: what was said, and the lines of `machine_lines`."""
    words = "\0".join(f"{name}={value}" for name, value in said.items())
    facts = "\0".join("\n".join([name, *each]) for name, each in lines.items())
    return f"{words}\0\0{facts}".encode("utf-8", "surrogateescape")


def _place() -> str | None:
    """The engine's socket, as `run.resident.place` finds it, if there is one."""
    if sys.platform != "linux":
        return None
    named = os.environ.get("KLEIN_HOST")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    folder = f"{runtime}/klein" if runtime else f"/tmp/klein-{os.getuid()}"
    path = named or f"{folder}/{_ENGINE}"
    return path if os.path.exists(path) else None


def _has_settings_file() -> bool:
    """Whether there is one that might say more than was typed."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return os.path.lexists(f"{home}/klein/config.toml")


def _is_taken(output: str, said: dict[str, str]) -> bool:
    return "{" in output or (os.path.lexists(output) and "overwrite" not in said)


def _asked(place: str, said: dict[str, str]) -> socket | None:
    """A connection on which the image was asked for."""
    from socket import AF_UNIX, SO_PEERCRED, SOL_SOCKET, socket

    from klein_cli.run.resident.machine import machine_lines

    connection = socket(AF_UNIX)
    try:
        connection.settimeout(0.25)
        connection.connect(place)
        owner = connection.getsockopt(SOL_SOCKET, SO_PEERCRED, 12)[4:8]
        if int.from_bytes(owner, sys.byteorder) == os.getuid():
            said = {**said, "terminal": "yes"} if sys.stderr.isatty() else said
            body = request(said, machine_lines())
            head = (
                f"POST {ROUTE} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            connection.sendall(head.encode() + body)
            connection.settimeout(_SECONDS)
            return connection
    except (OSError, UnicodeError):
        pass
    connection.close()
    return None
