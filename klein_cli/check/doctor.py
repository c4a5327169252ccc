"""`klein doctor`: everything about this machine and installation that makes or spoils an image.

Imports nothing that may be broken: torch is tried in a process of its own (`check.probes`), and
whatever else fails to be looked at is a finding as well.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from klein_cli import __version__
from klein_cli.check.finding import BAD, DISTRIBUTION, NOTE, OK, SKIPPED, Finding, guarded
from klein_cli.check.gpu import check_gpu, check_torch, driver
from klein_cli.check.installed_models import look_at_embedded, look_at_models
from klein_cli.check.probing import Probes
from klein_cli.checkpoints.folder import free_space, problems
from klein_cli.checkpoints.hub.cache import bytes_of, cache_folder, cached, check_cache
from klein_cli.checkpoints.resolve import EMBEDDED_MODEL
from klein_cli.errors import KleinError
from klein_cli.presets import DEFAULT_MODEL, GIGABYTE, presets

_LITTLE = GIGABYTE
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


def examine(model: str | None, *, deep: bool, on_event: Callable[[str], None]) -> Iterator[Finding]:
    """Look at everything, in the order in which a person should read of it.

    Of models only at `model`, or at all that are here; with `deep` at every byte of them. Nothing
    that is broken raises: it is a finding.
    """
    on_event("starting torch")
    with Probes() as probes:
        yield guarded("klein", _klein)
        yield guarded("packages", _packages)
        found = driver()
        facts = probes.facts()
        weights = presets()[DEFAULT_MODEL].memory_gb or 0.0
        yield guarded("GPU", partial(check_gpu, found, facts, weights))
        yield guarded("torch", partial(check_torch, found, facts))
        yield guarded("models' disk", _models_disk)
        yield guarded("pictures' disk", _pictures_disk)
        yield from look_at_models(model, deep=deep, on_event=on_event)
        yield guarded(EMBEDDED_MODEL, look_at_embedded)
        if "error" in facts:
            yield Finding("pictures", SKIPPED, "not tried: torch does not start")
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
    return Finding("klein", OK, said, data=data)


def _packages() -> Finding:
    """The packages that klein needs, and those of the extras that are here, in tried versions."""
    versions: dict[str, str] = {}
    wrong, install, missing = [], [], False
    for needed, always in _requirements():
        try:
            version = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            if not always:
                continue
            missing = True
            wrong.append(f"{needed.name} is not installed")
        else:
            versions[needed.name.lower().replace("_", "-")] = version
            if needed.specifier.contains(version, prereleases=True):
                continue
            wrong.append(f"{needed.name} is {version}, not {needed.specifier}")
        install.append(f"'{needed.name}{needed.specifier}'")
    data = {"versions": versions}
    if wrong:
        state, hint = BAD if missing else NOTE, f"pip install {' '.join(install)}"
        return Finding("packages", state, "; ".join(wrong), hint, data)
    shown = ("diffusers", "transformers", "tokenizers", "safetensors", "huggingface-hub")
    said = ", ".join(f"{name} {versions[name]}" for name in shown if name in versions)
    return Finding("packages", OK, said, data=data)


def _requirements() -> Iterator[tuple[Requirement, bool]]:
    """What this installation asks for, and whether it must be here; an extra's need not."""
    extras = {*(metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or ()), ""}
    for needed in map(Requirement, metadata.requires(DISTRIBUTION) or ()):
        fits = [extra for extra in extras - _NOT_THE_USERS if _applies(needed, extra)]
        if fits:
            yield needed, "" in fits


def _applies(needed: Requirement, extra: str) -> bool:
    return needed.marker is None or needed.marker.evaluate({"extra": extra})


def _models_disk() -> Finding:
    folder = cache_folder()
    check_cache()
    free = free_space(folder)
    said = f"{free / GIGABYTE:.0f} GB free at {folder}"
    data = {"folder": str(folder), "free": free}
    preset = presets()[DEFAULT_MODEL]
    root = cached(preset.repo)
    needed = (preset.download_gb or 0) * GIGABYTE - bytes_of(preset.repo)
    if (root is None or problems(root)) and free < needed:
        said += f", and {DEFAULT_MODEL} needs {needed / GIGABYTE:.0f} GB more"
        hint = "make room, or set HF_HOME to a folder on another disk"
        return Finding("models' disk", NOTE, said, hint, data)
    return Finding("models' disk", OK, said, data=data)


def _pictures_disk() -> Finding:
    from klein_cli.output.png import check_writable

    folder = Path.cwd()
    free = free_space(folder)
    data = {"folder": str(folder), "free": free}
    try:
        check_writable(folder)
    except KleinError as error:
        hint = "go to another folder, or give -o"
        return Finding("pictures' disk", NOTE, error.message, hint, data)
    said = f"{free / GIGABYTE:.0f} GB free here, {folder}"
    state, hint = (OK, "") if free >= _LITTLE else (NOTE, "make room, or give -o on another disk")
    return Finding("pictures' disk", state, said, hint, data)
