"""`klein doctor`: everything about this machine and installation that makes or spoils a picture.

Imports nothing that may be broken: torch is tried in a process of its own (`check.probes`), and
whatever else fails to be looked at is a finding as well.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

from klein_cli import __version__
from klein_cli.check.finding import BAD, DISTRIBUTION, NOTE, OK, SKIPPED, Finding, guarded
from klein_cli.check.gpu import driver, judge_gpu, judge_torch
from klein_cli.check.installed_models import look_at_embedded, look_at_models
from klein_cli.check.probing import Probes
from klein_cli.checkpoints.folder import faults
from klein_cli.checkpoints.hub.cache import bytes_of, cache_folder, cached
from klein_cli.checkpoints.resolve import EMBEDDED_MODEL
from klein_cli.errors import KleinError
from klein_cli.presets import DEFAULT_MODEL, presets

_GIGABYTE = 10**9
_LITTLE = 10**9
_NOT_THE_USERS = {"test", "dev"}
_SETTINGS = (
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_ENDPOINT",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
)
"""Variables that change what klein does here, and hold no secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to look at. `model`: only this one, else all that are here; `deep`: read every byte."""

    model: str | None = None
    deep: bool = False


def examine(wanted: Wanted, on_event: Callable[[str], None]) -> Iterator[Finding]:
    """Look at everything, in the order in which a person should read of it.

    Nothing that is broken raises: it is a finding.
    """
    on_event("starting torch")
    with Probes() as probes:
        yield guarded("klein", _klein)
        yield guarded("packages", _packages)
        found = driver()
        facts = probes.facts()
        weights = presets()[DEFAULT_MODEL].memory_gb or 0.0
        yield guarded("GPU", partial(judge_gpu, found, facts, weights))
        yield guarded("torch", partial(judge_torch, found, facts))
        yield guarded("models' disk", _models_disk)
        yield guarded("pictures' disk", _pictures_disk)
        yield from look_at_models(wanted.model, deep=wanted.deep, on_event=on_event)
        yield guarded(EMBEDDED_MODEL, look_at_embedded)
        if "error" in facts:
            yield Finding(name="pictures", state=SKIPPED, said="not tried: torch does not start")
        else:
            yield from probes.findings(on_event)


def _klein() -> Finding:
    set_here = {name: os.environ[name] for name in _SETTINGS if name in os.environ}
    if "HF_ENDPOINT" in set_here:
        # A mirror's address may hold a password.
        set_here["HF_ENDPOINT"] = re.sub(r"//[^/@]*@", "//", set_here["HF_ENDPOINT"])
    said = f"{__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}"
    if set_here:
        said += ", set: " + ", ".join(set_here)
    data = {"settings": set_here, "token": "HF_TOKEN" in os.environ, "cores": os.cpu_count()}
    return Finding(name="klein", state=OK, said=said, data=data)


def _packages() -> Finding:
    """The packages that klein needs, each in a version that it was tried with."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    versions: dict[str, str] = {}
    wrong, install = [], []
    extras = set(metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or ())
    for line in metadata.requires(DISTRIBUTION) or ():
        needed = Requirement(line)
        always = needed.marker is None or needed.marker.evaluate({"extra": ""})
        chosen = [{"extra": extra} for extra in extras - _NOT_THE_USERS]
        if not always and needed.marker and not any(map(needed.marker.evaluate, chosen)):
            continue
        try:
            version = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            if always:
                wrong.append(f"{needed.name} is not installed")
                install.append(f"'{needed.name}{needed.specifier}'")
            continue
        versions[canonicalize_name(needed.name)] = version
        if not needed.specifier.contains(version, prereleases=True):
            wrong.append(f"{needed.name} is {version}, not {needed.specifier}")
            install.append(f"'{needed.name}{needed.specifier}'")
    if wrong:
        missing = any("not installed" in what for what in wrong)
        return Finding(
            name="packages",
            state=BAD if missing else NOTE,
            said="; ".join(wrong),
            hint=f"pip install {' '.join(install)}",
            data={"versions": versions},
        )
    shown = ("diffusers", "transformers", "tokenizers", "safetensors", "huggingface-hub")
    said = ", ".join(f"{name} {versions[name]}" for name in shown if name in versions)
    return Finding(name="packages", state=OK, said=said, data={"versions": versions})


def _models_disk() -> Finding:
    folder = cache_folder()
    free = shutil.disk_usage(_existing(folder)).free
    said = f"{free / _GIGABYTE:.0f} GB free at {folder}"
    data = {"folder": str(folder), "free": free}
    preset = presets()[DEFAULT_MODEL]
    root = cached(preset.repo)
    needed = (preset.download_gb or 0) * _GIGABYTE - bytes_of(preset.repo)
    if (root is None or faults(root)) and free < needed:
        said += f", and {DEFAULT_MODEL} needs {needed / _GIGABYTE:.0f} GB more"
        hint = "make room, or set HF_HOME to a folder on another disk"
        return Finding(name="models' disk", state=NOTE, said=said, hint=hint, data=data)
    return Finding(name="models' disk", state=OK, said=said, data=data)


def _pictures_disk() -> Finding:
    from klein_cli.output.png import check_writable

    folder = Path.cwd()
    free = shutil.disk_usage(folder).free
    data = {"folder": str(folder), "free": free}
    try:
        check_writable(folder)
    except KleinError as error:
        hint = "go to another folder, or give -o"
        return Finding(name="pictures' disk", state=NOTE, said=error.message, hint=hint, data=data)
    said = f"{free / _GIGABYTE:.0f} GB free here, {folder}"
    state, hint = (OK, "") if free >= _LITTLE else (NOTE, "make room, or give -o on another disk")
    return Finding(name="pictures' disk", state=state, said=said, hint=hint, data=data)


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.parents) if place.exists())
