"""The plain script of a diffusers user, as a process of its own: from nothing to a PNG.

Run by path, with its options as one JSON argument; its output is one line of JSON, seconds by
phase. It imports nothing of klein.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def main(options: dict[str, Any]) -> dict[str, float]:
    """Draw one image; seconds by phase, in their order."""
    marks = [time.perf_counter()]
    import torch

    marks.append(time.perf_counter())
    from diffusers import Flux2KleinKVPipeline, Flux2KleinPipeline
    from PIL import Image

    marks.append(time.perf_counter())
    dtype = getattr(torch, options["dtype"])
    kind = Flux2KleinKVPipeline if options["kv_cache"] else Flux2KleinPipeline
    guided = {} if options["kv_cache"] else {"guidance_scale": options["guidance"]}
    pipe = kind.from_pretrained(options["root"], dtype=dtype).to(options["device"])
    marks.append(time.perf_counter())
    image = pipe(
        prompt=options["prompt"],
        image=[Image.open(path) for path in options["images"]] or None,
        width=options["width"],
        height=options["height"],
        num_inference_steps=options["steps"],
        **guided,
        generator=torch.Generator(options["device"]).manual_seed(options["seed"]),
    ).images[0]
    marks.append(time.perf_counter())
    image.save(options["output"])
    marks.append(time.perf_counter())
    phases = ("import torch", "import diffusers", "load", "picture", "PNG")
    ends = zip(marks[1:], marks, strict=False)
    return dict(zip(phases, (after - before for after, before in ends), strict=True))


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))  # noqa: T201 (a process: this is its output)
