"""Make tests/fixtures/records.json: what a run writes about pictures that are drawn from words.

    python scripts/make_kept_records.py CHECKOUT FILE

The klein of CHECKOUT draws the rows that stand below. The file has, for each run, its model, rows
and options, and for each picture the hashes in the manifest and the texts inside the PNG. The
committed file is of commit 41edafe and stays as it is: old folders are resumed by these hashes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

BASE = "small-base"
RUNS: tuple[dict[str, Any], ...] = (
    {
        "model": "tiny",
        "options": ["-s", "5", "--size", "128x128", "--steps", "1", "--wildcards"],
        "rows": [
            {"prompt": "a red circle on a white background"},
            {"prompt": "ein grünes Dreieck, 緑の三角形 ", "seed": 2**40, "output": "b/é.png"},
            {"prompt": "a {red|green|blue} star", "n": 2, "width": 144, "height": 160},
            {"prompt": "a square", "steps": 2, "guidance": 3.5, "negative_prompt": "blur"},
        ],
    },
    {
        "model": BASE,
        "options": ["-s", "7", "--size", "64x48", "--steps", "2", "--dtype", "bfloat16"],
        "rows": [
            {"prompt": "a lighthouse in a storm"},
            {"prompt": "a lighthouse", "negative_prompt": 'fog, "rain"', "guidance": 2.25},
            {"prompt": "a lighthouse\nby day", "negative_prompt": "", "guidance": 1, "steps": 3},
        ],
    },
)


def draw(command: list[str], run: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The run with its pictures: {"made": {file: its row, recipe, record, parameters}}."""
    rows = "".join(json.dumps(row) + "\n" for row in run["rows"])
    (folder / "prompts.jsonl").write_text(rows, encoding="utf-8")
    arguments = ["-m", run["model"], "--prompts-file", "prompts.jsonl", "-o", "d/", "-q"]
    subprocess.run(
        [*command, *arguments, "--device", "cpu", *run["options"]], cwd=folder, check=True
    )
    return {**run, "made": made(folder / "d")}


def made(folder: Path) -> dict[str, dict[str, Any]]:
    """What a folder says of its pictures, by file."""
    lines = (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    rows = {entry["file"]: entry["row"] for entry in entries if entry["kind"] == "planned"}
    recipes = {entry["file"]: entry["recipe"] for entry in entries if entry["kind"] == "picture"}
    return {
        file: {"row": row, "recipe": recipes[file], **said(folder / file)}
        for file, row in rows.items()
    }


def said(path: Path) -> dict[str, Any]:
    """The record inside a PNG, and the text beside it for other tools."""
    with Image.open(path) as image:
        texts: dict[str, str] = image.text  # type: ignore[attr-defined]
        return {"record": json.loads(texts["klein"]), "parameters": texts["parameters"]}


def main() -> None:
    """Read the command line, draw, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    checkout = options.checkout.absolute()
    os.environ["PYTHONPATH"] = str(checkout)
    klein = [sys.executable, "-m", "klein_cli", "generate"]
    with tempfile.TemporaryDirectory() as place:
        folders = [Path(place, run["model"] + "-run") for run in RUNS]
        for folder in folders:
            folder.mkdir()
        snapshot = folders[1] / BASE
        script = checkout / "scripts" / "make_snapshot.py"
        subprocess.run([sys.executable, script, snapshot, "--base"], check=True)
        drawn = []
        for run, folder in zip(RUNS, folders, strict=True):
            local = run["model"] if run["model"] != BASE else f"./{BASE}"
            drawn.append(draw(klein, {**run, "model": local}, folder) | {"model": run["model"]})
    text = json.dumps(drawn, indent=1, ensure_ascii=False) + "\n"
    options.file.write_text(text, encoding="utf-8")
    print(f"{options.file}: {sum(len(run['made']) for run in drawn)} pictures")


if __name__ == "__main__":
    main()
