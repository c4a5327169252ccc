"""Run a command line in two checkouts, and see what must be the same afterwards.

A scenario (`compared_scenarios.py`) is a list of steps in an empty folder: a `Klein` runs the
command line, anything else is called with the folder. Afterwards every file in it is looked at.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

PNG = b"\x89PNG\r\n\x1a\n"
PICTURES = (".png", ".jpg", ".webp")
EXIF_IFD, MAKER_NOTE, USER_COMMENT = 0x8769, 0x927C, 0x9286


class Ignored(NamedTuple):
    """A key whose value may differ, though it has to be there: `place` is a kind of text."""

    place: str
    key: str
    reason: str


IGNORED = (
    Ignored("event", "seconds", "a clock's"),
    Ignored("event", "klein", "the version"),
    Ignored("event", "message", "a sentence for humans"),
    Ignored("event", "hint", "a sentence for humans"),
    Ignored("event", "error", "a sentence for humans"),
    Ignored("manifest", "seconds", "a clock's"),
    Ignored("manifest", "klein", "the version"),
    Ignored("manifest", "sha256", "that of a file that holds the version; see `_is_hash_of`"),
    Ignored("record", "klein", "the version"),
    Ignored("failed", "error", "a sentence for humans"),
)
UNORDERED = (
    ("manifest", "files are written, and their lines with them, by several threads"),
    ("workers", "of several workers, any is done first"),
)
"""Lines of these are sorted before they are compared: (place, reason)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two checkouts, and the folder for all that it makes."""

    checkout: Path
    folder: Path
    device: str

    def environment(self) -> dict[str, str]:
        """This checkout is imported, no file of the user's is read, and nothing is downloaded. On a
        CPU both sides run at once, with a thread each.
        """
        path = os.pathsep.join(filter(None, [str(self.checkout), os.environ.get("PYTHONPATH")]))
        ours = {"PYTHONPATH": path, "XDG_CONFIG_HOME": os.devnull, "COLUMNS": "100"}
        ours |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(self.folder / "hub")}
        threads = {"OMP_NUM_THREADS": "1"} if self.device == "cpu" else {}
        return {**os.environ, **ours, **threads}

    def without_places(self, text: str, folder: Path) -> str:
        """The text with this side's own folders under names that both sides have."""
        return text.replace(str(folder), "<folder>").replace(str(self.checkout), "<checkout>")


@dataclass(frozen=True, slots=True)
class Klein:
    """A command line. `{device}` in it is the side's."""

    arguments: tuple[str, ...]
    stdin: str = ""


Step = Klein | Callable[[Path], None]
Scenario = tuple[Step, ...]
"""What to do in a folder that is empty at first."""


def observe(name: str, scenario: Scenario, side: Side) -> dict[str, Any]:
    """Run the scenario; everything that must be the same on both sides, by what it is."""
    folder = side.folder / name.replace(" ", "-")
    folder.mkdir(parents=True)
    seen: dict[str, Any] = {}
    for number, step in enumerate(scenario, start=1):
        if not isinstance(step, Klein):
            step(folder)
            continue
        arguments = [word.replace("{device}", side.device) for word in step.arguments]
        title = f"{number}: {' '.join(arguments)[:60]}"
        seen |= {
            f"{title}, {what}": fact for what, fact in _run(arguments, step.stdin, folder, side)
        }
    seen["files"] = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    for path in sorted(folder.rglob("*")):
        inside = str(path.relative_to(folder))
        seen |= {f"{inside}, {what}": fact for what, fact in _facts(path)}
    return seen


def _run(arguments: list[str], stdin: str, folder: Path, side: Side) -> Iterator[tuple[str, Any]]:
    """The exit code, and stdout where a program is meant to read it."""
    done = subprocess.run(
        [sys.executable, "-m", "klein_cli", *arguments],
        input=stdin.encode(),
        cwd=folder,
        env=side.environment(),
        capture_output=True,
        check=False,
    )
    with open(f"{folder}.stderr", "ab") as log:
        log.write(done.stderr)
    yield "exit code", done.returncode
    if done.stdout.startswith(PNG):
        yield from _picture(done.stdout)
    elif "--json" in arguments:
        text = side.without_places(done.stdout.decode(), folder)
        place = "workers" if "--workers" in arguments else "event"
        yield "events", _lines(text, place)
    elif arguments[0] in ("generate", "reproduce", "gallery") and "--dry-run" not in arguments:
        yield "paths", side.without_places(done.stdout.decode(), folder).splitlines()


def _facts(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix in PICTURES:
        yield from _picture(path.read_bytes())
    elif path.name in ("manifest.jsonl", "failed.jsonl"):
        text = path.read_text(encoding="utf-8")
        yield "lines", _lines(text, path.stem)
        yield "hashes", sorted(_is_hash_of(line, path.parent) for line in text.splitlines())


def _is_hash_of(line: str, folder: Path) -> str:
    """The file that a line of a manifest has the hash of, or that it has none, or of no file."""
    entry = _parsed(line)
    wanted = entry.get("sha256") if isinstance(entry, dict) else None
    if wanted is None:
        return "none"
    files = (path for path in sorted(folder.rglob("*")) if path.suffix in PICTURES)
    alike = (str(path.relative_to(folder)) for path in files if _hash(path.read_bytes()) == wanted)
    return next(alike, "no file")


def _picture(data: bytes) -> Iterator[tuple[str, Any]]:
    """Of a picture's file: its pixels, what it says of itself, and how it was compressed."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            yield "pixels", [image.size, image.mode, _hash(image.tobytes())]
            exif = image.getexif().get_ifd(EXIF_IFD)
            note = exif.get(MAKER_NOTE) or exif.get(USER_COMMENT, b"")
            texts = dict(getattr(image, "text", {}))
    except OSError:
        yield "wreck", base64.b64encode(data[:64]).decode()
        return
    record = (
        texts.pop("klein", "")
        or note.removeprefix(b"ASCII\0\0\0").removeprefix(b"klein\0").decode()
    )
    version = json.loads(record)["klein"] if record else ""
    if record:
        yield "record", _less_ignored(json.loads(record), "record")
        yield "form of the record", _hash(record.replace(f'"klein":"{version}"', "").encode())
    yield "texts", {key: text.replace(f"klein {version}", "klein") for key, text in texts.items()}
    if data.startswith(PNG):
        yield "chunks", [_hash(chunk) for chunk in _chunks(data) if chunk[:4] != b"tEXt"]


def _chunks(data: bytes) -> Iterator[bytes]:
    """Name and content of each chunk of a PNG."""
    at = len(PNG)
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8 + size]
        at += size + 12


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _lines(text: str, place: str) -> list[Any]:
    """JSON lines, less what is ignored; what is no JSON stays a text."""
    lines = [_less_ignored(_parsed(line), place) for line in text.splitlines()]
    if any(place == unordered for unordered, _ in UNORDERED):
        lines.sort(key=json.dumps)
    return lines


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return line


def _less_ignored(value: Any, place: str) -> Any:
    """The value with what IGNORED says blanked, at any depth; None, and what is missing, stay."""
    place = "event" if place == "workers" else place
    keys = {ignored.key for ignored in IGNORED if ignored.place == place}
    if isinstance(value, dict):
        return {
            key: "" if key in keys and inner is not None else _less_ignored(inner, place)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_less_ignored(inner, place) for inner in value]
    return value
