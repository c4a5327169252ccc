"""A folder of models as ComfyUI lays it out: a bare name -> the file that it means.

The folder is ComfyUI's own, with models/ and perhaps extra_model_paths.yaml in it, or its models/.
Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klein_cli.errors import UsageError
from klein_cli.paths import askable, user_path

SUFFIXES = (".safetensors", ".sft", ".gguf")

_FOLDERS = {
    "transformer": ("diffusion_models", "unet", "checkpoints"),
    "text_encoder": ("text_encoders", "clip"),
    "vae": ("vae",),
    "lora": ("loras",),
}
_PATHS = "extra_model_paths.yaml"
_MOST_FILES = 100_000
_LONGEST_PATHS = 1 << 20


@dataclass(frozen=True, slots=True)
class ModelsDir:
    """See the module. Raises UsageError when `root` is no folder."""

    root: Path

    def __post_init__(self) -> None:
        if not askable(self.root).is_dir():
            raise UsageError(
                f"--models-dir {self.root} is not a folder", "give ComfyUI's folder, or its models/"
            )

    def find(self, name: str, kind: str) -> str:
        """The file that a name means, in one of the folders for its kind: a part, or "lora".

        The name may have folders before it and lack its ending. What is a path already, or is not
        found, is returned as it is. Raises UsageError when several files have it.
        """
        if not name.strip() or askable(user_path(name)).exists():
            return name
        found = {path.resolve(): path for path in self._files(kind) if _is_called(path, name)}
        if len(found) > 1:
            shown = ", ".join(str(path) for path in sorted(found.values())[:4])
            raise UsageError(f"{name} is the name of {len(found)} files", f"say which: {shown}")
        return str(next(iter(found.values()), name))

    def _files(self, kind: str) -> Iterator[Path]:
        left = _MOST_FILES
        for folder in dict.fromkeys(self._folders(kind)):
            for place, folders, files in os.walk(folder, followlinks=True):
                folders.sort()
                left -= len(files) + len(folders)
                if left < 0:
                    raise UsageError(
                        f"{self.root} holds more than {_MOST_FILES:,} files", "give a path instead"
                    )
                yield from (Path(place, file) for file in files if file.lower().endswith(SUFFIXES))

    def _folders(self, kind: str) -> Iterator[Path]:
        names = _FOLDERS[kind]
        for base in (self.root / "models", self.root):
            yield from (base / name for name in names)
        for file in (self.root / _PATHS, self.root.parent / _PATHS):
            if file.is_file():
                yield from _listed(file, names)


def _is_called(path: Path, name: str) -> bool:
    """Whether a path ends like the name, with or without its own ending."""
    wanted = Path(name).parts
    return wanted in (path.parts[-len(wanted) :], (path.with_suffix("")).parts[-len(wanted) :])


def _listed(file: Path, names: tuple[str, ...]) -> Iterator[Path]:
    """The folders of some kinds that extra_model_paths.yaml lists."""
    for section in _read(file).values():
        if not isinstance(section, dict):
            continue
        base = file.parent / _path(file, "base_path", section.get("base_path") or "")
        for name in names:
            lines = _text(file, name, section.get(name) or "").splitlines()
            yield from (base / _path(file, name, line) for line in lines if line.strip())


def _path(file: Path, key: str, value: Any) -> Path:
    return user_path(os.path.expandvars(_text(file, key, value).strip()))


def _text(file: Path, key: str, value: Any) -> str:
    """A value that names folders; a list would take its length in other lists to write out."""
    if not isinstance(value, str) or "\0" in value:
        raise UsageError(
            f"{key} in {file} is not text", f"write it as ComfyUI does: {key}: FOLDER, one a line"
        )
    return value


def _read(file: Path) -> Mapping[str, Any]:
    import yaml

    try:
        if file.stat().st_size > _LONGEST_PATHS:
            raise ValueError("it is too long")
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        why = str(error).splitlines()[0]
        raise UsageError(f"{file} cannot be read: {why}", "mend it, or move it away") from None
    return found if isinstance(found, dict) else {}
