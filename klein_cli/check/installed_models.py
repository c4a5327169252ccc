"""The models on this disk: there, whole, and right to the last bit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from klein_cli.check.finding import BAD, DISTRIBUTION, NOTE, OK, Finding, failed, guarded
from klein_cli.check.golden import read_golden, weights_digest
from klein_cli.checkpoints.folder import digest, problems, size_on_disk
from klein_cli.checkpoints.hub.cache import bytes_of, cached, repositories
from klein_cli.checkpoints.hub.repository import is_digest, is_git_digest
from klein_cli.checkpoints.resolve import EMBEDDED_MODEL, hub_repository, preset_for, resolve
from klein_cli.errors import ModelError
from klein_cli.presets import DEFAULT_MODEL, GIGABYTE, presets


def look_at_models(
    model: str | None, *, deep: bool, on_event: Callable[[str], None]
) -> Iterator[Finding]:
    """The `model` asked for, or each that has anything on this disk; `deep` reads every byte."""
    try:
        names = [model] if model else list(_here())
    except Exception as error:
        yield failed("models", error)
        return
    if not names:
        said = f"none is here but {EMBEDDED_MODEL}"
        yield Finding("models", NOTE, said, f"klein models pull {DEFAULT_MODEL}")
    for name in names:
        on_event(f"looking at {name}")
        yield guarded(name, partial(_model, name, deep, on_event))


def _here() -> Iterator[str]:
    """Presets of which there is anything, and other models of this kind in the cache."""
    for name, preset in presets().items():
        if preset.repo and bytes_of(preset.repo):
            yield name
    for repo in repositories():
        try:
            preset = preset_for(repo)
        except ModelError:
            continue
        if preset.name not in presets():
            yield repo


def _model(name: str, deep: bool, on_event: Callable[[str], None]) -> Finding:
    """One model's files: there, whole, and with `deep` right to the last bit."""
    repo = hub_repository(name)
    again = f"klein models pull {name}" if repo else "get the model again from where it came"
    root = cached(repo) if repo else resolve(name).root
    if root is None:
        held = bytes_of(repo or "")
        said = f"a download broke off at {held / GIGABYTE:.1f} GB" if held else "not here"
        return Finding(name, BAD, said, again)
    wrong = problems(root)
    checked = 0
    if deep and not wrong:
        wrong, checked = _flipped(root, on_event)
    size = size_on_disk(root)
    data = {"faults": wrong, "bytes": size, "hashed": checked, "revision": repo and root.name}
    if wrong:
        more = f" and {len(wrong) - 1} more faults" if len(wrong) > 1 else ""
        return Finding(name, BAD, wrong[0] + more, again, data)
    said = f"whole, {size / GIGABYTE:.1f} GB"
    if deep:
        said += f", {checked} files hashed" if checked else "; no hashes are known of its files"
    return Finding(name, OK, said, data=data)


def _flipped(root: Path, on_event: Callable[[str], None]) -> tuple[list[str], int]:
    """Files whose contents are not what the cache named them by, and how many were compared."""
    wrong, checked = [], 0
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        # The first link names the hash; where repositories share files, it leads to another.
        name = Path(os.readlink(path)).name if path.is_symlink() else ""
        if not is_digest(name):
            continue
        on_event(f"hashing {path.relative_to(root)}")
        checked += 1
        if digest(path, git=is_git_digest(name)) != name:
            wrong.append(f"{path.relative_to(root)} is damaged: its hash is wrong")
    return wrong, checked


def look_at_embedded() -> Finding:
    """The model inside the package: its files, and that they are those which it came with."""
    root = resolve(EMBEDDED_MODEL).root
    wrong = problems(root)
    if not wrong and weights_digest(root) != read_golden().weights:
        wrong = ["its weights are not those that it came with"]
    if wrong:
        hint = f"install {DISTRIBUTION} again"
        return Finding(EMBEDDED_MODEL, BAD, "; ".join(wrong), hint, {"faults": wrong})
    return Finding(EMBEDDED_MODEL, OK, "whole, as it came with klein")
