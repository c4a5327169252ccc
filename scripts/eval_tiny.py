"""Judge what the `tiny` model draws and edits by the pixels alone.

    python scripts/eval_tiny.py                      # held-out prompts, one and two objects
    python scripts/eval_tiny.py --edits 100          # and held-out edits, 100 of each kind
    python scripts/eval_tiny.py --model FOLDER --seeds 4 --pairs 200 --save pictures/

Prompts come from compositions that training never saw, in plain and chatty wordings, drawn
and edited by klein's own pipeline at 256x256 in 4 steps, in batches of differing lengths. A picture
passes when its background, and every object's colour, shape, size and place are right, and nothing
else is in it. Edits lead from or to such compositions; half of the pictures before are the model's
own, half are drawn by the script. An edit passes when the change is there and everything else is as
it was, within 2 pixels (see `tiny_edit_judge`). Prints tables and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
import tiny_world as world
from tiny_edit_cases import Case, edit_cases
from tiny_edit_judge import judge_edit
from tiny_edits import KINDS
from tiny_judge import judge
from tiny_painter import Painter
from tiny_words import canonical, describe

from klein_cli.settings import Settings

DRAWN_SEED, EDITED_SEED = 1000, 0


def held_out_prompts(pairs: int, seed: int) -> list[tuple[str, world.Composition]]:
    """Every held-out composition of one object, then `pairs` of two, each with a wording."""
    rng = random.Random(seed)
    ones = world.singles(held_out=True)
    twos = [world.draw_composition(rng, pairs=1.0, held_out=True) for _ in range(pairs)]
    return [
        (canonical(one) if rng.random() < 0.5 else describe(one, rng), one)
        for one in (*ones, *twos)
    ]


def _painter(args: argparse.Namespace) -> Painter:
    width, height = (int(n) for n in args.size.split("x"))
    settings = Settings(device=args.device, dtype=args.dtype)
    return Painter.open(args.model, settings, (width, height), args.steps, args.batch)


def main() -> None:
    """Render, judge and print."""
    args = _parser().parse_args()
    prompts = [pair for pair in held_out_prompts(args.pairs, seed=11) for _ in range(args.seeds)]
    random.Random(5).shuffle(prompts)
    painter = _painter(args)
    pictures = painter.paint([text for text, _ in prompts], DRAWN_SEED)
    result = {"size": args.size, "steps": args.steps, "seeds": args.seeds}
    result |= report(prompts, pictures, args)
    if args.edits:
        result |= judge_edits(painter, args)
    print(json.dumps(result))


def _parser() -> argparse.ArgumentParser:
    style = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parser.add_argument("--model", default="tiny", help="a name or folder, as for klein generate")
    parser.add_argument("--seeds", type=int, default=4, help="pictures per prompt")
    parser.add_argument("--pairs", type=int, default=100, help="how many two-object prompts")
    parser.add_argument("--edits", type=int, default=0, help="how many edits of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of edits")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", default="256x256")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--save", type=Path, help="keep the pictures that fail in this folder")
    return parser


def report(
    prompts: list[tuple[str, world.Composition]],
    pictures: list[np.ndarray],
    args: argparse.Namespace,
) -> dict[str, float]:
    """Print what failed and the table; the shares that are right come back."""
    counts: dict[int, list[int]] = {1: [0, 0], 2: [0, 0]}
    for number, ((text, composition), picture) in enumerate(zip(prompts, pictures, strict=True)):
        wrong = judge(picture, composition)
        tally = counts[len(composition.things)]
        tally[0] += not wrong
        tally[1] += 1
        if wrong:
            print(f"{number:04d} {text!r}: {'; '.join(wrong)}")
            _save(args.save, f"{number:04d}.png", picture)
    for count, (right, total) in counts.items():
        share = right / max(1, total)
        print(f"{count} object{'s' if count > 1 else ' '}: {right} of {total} right, {share:.1%}")
    return {f"{n}_object": round(right / max(1, of), 4) for n, (right, of) in counts.items()}


def judge_edits(painter: Painter, args: argparse.Namespace) -> dict[str, float]:
    """Carry out and judge edits of each kind; the shares that are right, by kind and picture."""
    shares: dict[str, float] = {}
    for kind in args.kinds:
        for own in (True, False):
            cases = edit_cases(kind, args.edits // 2, painter, own=own)
            name = f"{kind}, {'own' if own else 'drawn'}"
            shares[name] = _judge_cases(name, cases, painter, args)
    return shares


def _judge_cases(name: str, cases: list[Case], painter: Painter, args: argparse.Namespace) -> float:
    texts = [case.text for case in cases]
    pictures = painter.paint(texts, EDITED_SEED, [case.before for case in cases])
    right = 0
    for number, (case, after) in enumerate(zip(cases, pictures, strict=True)):
        wrong = judge_edit(case.before, after, case.edit, case.new_extent)
        right += not wrong
        if wrong:
            label = f"{name.replace(', ', '-')}-{number:03d}"
            print(f"{label} {case.text!r}: {'; '.join(wrong)}")
            _save(args.save, f"{label}.png", np.concatenate((case.before, after), 1))
    share = right / max(1, len(cases))
    print(f"{name}: {right} of {len(cases)} right, {share:.1%}", flush=True)
    return round(share, 4)


def _save(folder: Path | None, name: str, picture: np.ndarray) -> None:
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / name)


if __name__ == "__main__":
    main()
