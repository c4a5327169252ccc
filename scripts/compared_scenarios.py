"""Which command lines compare_checkouts.py has run by both checkouts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compared_commands import Klein, Scenario

KILLED = Path(__file__).parents[1] / "tests" / "fixtures" / "killed"
TINY = ("-m", "tiny", "--size", "128x128")
ROWS: tuple[dict[str, Any], ...] = (
    {"prompt": "a red circle on a white background"},
    {"prompt": "ein grünes Dreieck, 緑の三角形 ", "seed": 2**40, "output": "b/é.png"},
    {"prompt": "a blue star", "n": 2, "width": 144, "height": 160},
    {"prompt": "a square", "steps": 2, "guidance": 3.5, "negative_prompt": "blur"},
    {"prompt": "a red circle on a white background"},
)
GUIDED: tuple[dict[str, Any], ...] = (
    {"prompt": "a lighthouse in a storm"},
    {"prompt": "a lighthouse", "negative_prompt": "fog", "guidance": 2.25, "steps": 2},
    {"prompt": "a lighthouse", "guidance": 1},
)
BAD_LINES = (
    '{"prompt": "a cat"}',
    '{"prompt": "a cat", "size": 3}',
    '{"prompt": "a cat", "width": 100}',
    '{"prompt": "a cat", "output": "../cat.png"}',
    "not JSON",
)
CSV = 'prompt,seed,n\n"a {red|green|blue} star, on black",,3\na {big|small} circle,9,\n'
CONFIG = '[generate]\nmodel = "tiny"\nsize = "144x128"\nsteps = 1\n'
REFUSED: tuple[tuple[str, ...], ...] = (
    ("generate",),
    ("generate", "-s", "5", "a cat", "--no-such-option"),
    ("generate", "-s", "5", "a cat", "-p", "a dog"),
    ("generate", "--prompts-file", "missing.txt"),
    ("generate", "-s", "5", "a cat", "-m", "tiny", "--size", "100x128"),
    ("generate", "-s", "5", "a cat", "-m", "tiny", "--size", "64x64"),
    ("generate", "-s", "5", "a cat", "-m", "tiny", "--steps", "0"),
    ("generate", "-s", "5", "a cat", "-m", "tiny", "-n", "0"),
    ("generate", "a cat", "-m", "tiny", "-s", "-1"),
    ("generate", "a cat", "-m", "tiny", "--seeds", "9-1"),
    ("generate", "-s", "5", "a cat", "-m", "tiny", "-o", "cat.gif"),
    ("generate", "-s", "5", "a cat", "-m", "tiny", "-o", "{nothing}.png"),
    ("generate", "-s", "5", "a cat", "-m", "tiny", "--dtype", "int4"),
    ("generate", "-s", "5", "a cat", "-m", "tiny", "--attention", "none"),
    ("generate", "-s", "5", "a cat", "-m", "tiny", "--engine", "other"),
    ("generate", "-s", "5", "a cat", "-m", "tiny", "--device", "cpu", "--kernels", "triton"),
    ("generate", "-s", "5", "a cat", "-m", "tiny", "--device", "cpu", "--quantize", "fp8"),
    ("generate", "-s", "5", "a cat", "-m", "tiny", "--device", "cpu", "--rng", "cuda"),
    ("generate", "-s", "5", "a cat", "-m", "tiny", "--device", "cuda:77"),
    ("generate", "-s", "5", "a cat", "-m", "tiny", "--workers", "0"),
    ("generate", "-s", "5", "a cat", "-m", "tiny", "--seeds", "1-2"),
    ("generate", "-s", "5", "a cat", "-m", "tiny", "-o", "-"),
    ("generate", "-s", "5", "a cat", "-m", "tiny", "--gallery"),
    ("generate", "-s", "5", "a cat " * 600, "-m", "tiny", "--strict"),
    ("generate", "-s", "5", "a cat", "-m", "no-such-model"),
    ("generate", "-s", "5", "a cat", "-m", "./no/such/folder"),
    ("generate", "-s", "5", "a cat", "-m", "klein-base-4b"),
    ("reproduce", "missing.png"),
    ("info", "missing.png"),
    ("gallery", "missing"),
    ("no-such-command",),
)


def scenarios(models: dict[str, str]) -> dict[str, Scenario]:
    """All of them by name; `models` are the folders of the random "distilled" and "base"."""
    rows = ("--prompts-file", "rows.jsonl")
    base = ("-m", models["base"], "--size", "48x64", "--prompts-file", "guided.jsonl")
    return {
        "command words": (
            drawing("a red circle", *TINY),
            drawing("a red circle", *TINY, "-o", "circle.jpg", "--json"),
            drawing("a red circle", *TINY, "-o", "circle.jpg", "--json"),
            drawing("a green star", *TINY, "-o", "circle.jpg", "-y"),
            drawing("-", *TINY, "-o", "from/stdin.webp", stdin="a blue square\n"),
            drawing("a red circle", *TINY, "-o", "-"),
            drawing("a cat " * 600, "-m", models["distilled"], "--size", "80x48", "--json"),
        ),
        "command rows": (
            written("rows.jsonl", lines(ROWS)),
            drawing(*rows, *TINY, "-o", "d/", "--json", "--batch-size", "2"),
            drawing(*rows, *TINY, "-o", "d/", "--no-metadata"),
            klein("gallery", "d", "--json"),
            klein(
                "info", "--json", "d/0001-a-red-circle-on-a-white-background-5.png", "rows.jsonl"
            ),
        ),
        "command bad lines": (
            written("rows.jsonl", "\n".join(BAD_LINES)),
            drawing(*rows, *TINY, "-o", "d/", "--json"),
            written("empty.txt", "# nothing\n\n"),
            drawing("--prompts-file", "empty.txt", *TINY, "--json"),
        ),
        "command sweep": (
            klein("generate", "a cat", *TINY, "--seeds", "1-2,9", "-o", template()),
            drawing("a cat", *TINY, "-n", "2", "-o", "g/{slug}-{index}.webp", "--gallery"),
            drawing("a cat", *TINY, "-o", "-", "--resume"),
            klein("models", "path", "klein-4b"),
        ),
        "command wildcards": (
            written("rows.csv", CSV),
            drawing("--prompts-file", "rows.csv", *TINY, "--wildcards", "-o", "d/", "--gallery"),
        ),
        "command workers": (
            written("rows.jsonl", lines(ROWS)),
            drawing(*rows, *TINY, "-o", "d/", "--json", "--workers", "2"),
        ),
        "command guidance": (
            written("guided.jsonl", lines(GUIDED)),
            drawing(*base, "-o", "d/", "-g", "3", "--negative-prompt", "blur", "--json"),
            drawing(*base, "-o", "e/", "--engine", "diffusers", "--dtype", "bfloat16"),
            drawing(*base, "-o", "f/", "--attention", "eager", "--batch-size", "3"),
        ),
        "command resume": (
            written("rows.jsonl", lines(ROWS)),
            drawing(*rows, *TINY, "-o", "d/"),
            damaged,
            written("rows.jsonl", lines((*ROWS[::-1], {"prompt": "a hen"}))),
            klein("generate", *rows, *TINY, "-o", "d/", "--resume", "--dry-run", "--json"),
            drawing(*rows, *TINY, "-o", "d/", "--resume", "--json"),
            drawing(*rows, *TINY, "-o", "d/", "--resume", "--json"),
        ),
        "command killed folder": (
            killed_folder,
            *(
                drawing(*TINY, "-o", "run/", "--json", "--prompts-file", *more)
                for more in (
                    ("run/failed.jsonl", "--no-metadata"),
                    ("prompts.jsonl", "--resume"),
                    ("prompts.jsonl", "--resume", "-s", "100", "--no-metadata"),
                )
            ),
        ),
        "command reproduce": (
            drawing("a green star", *TINY, "-o", "a.png", "--attention", "eager"),
            drawing("a green star", *TINY, "-o", "a.jpg", "--dtype", "bfloat16"),
            klein("info", "--json", "a.png", "a.jpg"),
            klein("reproduce", "a.png", "-o", "b.png", "--json"),
            klein("reproduce", "a.png", "a.jpg", "-o", "more/", "-n", "2", "-s", "3", "--json"),
            klein("reproduce", "a.png", "--dry-run", "--json"),
        ),
        "command dry run": (
            written("rows.jsonl", lines(ROWS)),
            drawing(*rows, *TINY, "-o", "d/", "--dry-run", "--json"),
            drawing("a cat", "-m", "klein-4b", "--dry-run", "--json"),
        ),
        "command settings": (
            written("klein.toml", CONFIG),
            drawing("a cat", "--config", "klein.toml", "-o", "a.png"),
            klein("models", "list", "--json"),
            klein("models", "--json"),
            klein("--version"),
            klein("--help"),
            klein("generate", "--help"),
        ),
        "command verify": (
            klein("verify", "-m", "tiny", "--size", "128x128", "--steps", "2", "--json"),
        ),
        "command refusals": tuple(klein(*arguments, "--json") for arguments in REFUSED),
    }


def klein(*arguments: str, stdin: str = "") -> Klein:
    """A step that runs klein."""
    return Klein(arguments, stdin)


def drawing(*arguments: str, stdin: str = "") -> Klein:
    """A step that draws on the side's device with a seed, one step a picture, unless told else."""
    quick = ("-s", "5", "--steps", "1", "--device", "{device}")
    return Klein(("generate", *quick, *arguments), stdin)


def template() -> str:
    """A name with every field but the date."""
    return "t/{index:03d}-{slug}-{seed}-{width}x{height}-{model}.png"


def lines(rows: tuple[dict[str, Any], ...]) -> str:
    """Rows of a prompts file."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def written(name: str, text: str) -> Callable[[Path], None]:
    """A step that writes a file."""

    def write(folder: Path) -> None:
        (folder / name).write_text(text, encoding="utf-8")

    return write


def damaged(folder: Path) -> None:
    """What a crash may leave of a run: a picture is gone, one is torn, one is not on record."""
    first, second, *_ = sorted((folder / "d").glob("*.png"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:100])
    manifest = folder / "d" / "manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes()[:-40])


def killed_folder(folder: Path) -> None:
    """The folder that two killed runs left."""
    shutil.copytree(KILLED, folder, dirs_exist_ok=True)
