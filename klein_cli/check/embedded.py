"""What the embedded model does on this machine: the encoder's mask, an image and an edit.

Run by `check.probes`.
"""

from __future__ import annotations

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from klein_cli.check.finding import BAD, OK, Finding
from klein_cli.check.golden import EDITED, FARTHEST, RECIPE, edit, read_golden
from klein_cli.check.limits import LIMITS
from klein_cli.check.metrics import mean_abs_diff, psnr
from klein_cli.checkpoints.resolve import resolve
from klein_cli.device.device import device_for
from klein_cli.images.store import ImageStore
from klein_cli.optimize.part import Target
from klein_cli.pipeline import Pipeline, choose
from klein_cli.settings import Settings
from klein_cli.text.encoder import PromptTokens, TextEncoder
from klein_cli.text.tokenizer import PromptTokenizer

_SAME_ROW, _OTHER_ROW = 1e-5, 1e-4
_CHANGED_ID = 1000
_MOST_DECIBELS = 999.0


def mask() -> Finding:
    """Properties of the text encoder's padded rows that a wrong mask cannot have, on `tiny`.

    One prompt four times: as it is; with all pads changed; with the first pad changed; with its
    last token changed. Padding that leaks moves a row that should stay, padding that was zeroed or
    copied does not move where it should.
    """
    snapshot = resolve("tiny")
    prompt = PromptTokenizer.from_snapshot(snapshot.root).tokenize(RECIPE.prompt)
    length = prompt.length
    ids = torch.tensor(prompt.ids).repeat(4, 1)
    ids[1, length:] = _CHANGED_ID
    ids[2, length] = _CHANGED_ID
    ids[3, length - 1] = _CHANGED_ID
    encoder = TextEncoder.load(
        snapshot.part("text_encoder"),
        snapshot.preset.tapped_layers,
        Target(device=device_for("cpu"), dtype=torch.float32),
        attention="sdpa",
    )
    with torch.inference_mode():
        states = encoder.encode(PromptTokens(ids, (length,) * 4))
    plain, pads, first_pad, last_token = states
    others = [row for row in range(len(plain)) if row != length]
    stays = {
        "valid rows see pads": _moved(plain[:length], pads[:length]),
        "rows see the first pad": _moved(plain[others], first_pad[others]),
        "rows see what comes after them": _moved(plain[: length - 1], last_token[: length - 1]),
    }
    moves = {
        "the first pad's row does not depend on it": _moved(plain[length], first_pad[length]),
        "padded rows do not see the prompt": _moved(
            plain[length:], last_token[length:], least=True
        ),
        "padded rows are all alike": _moved(plain[length], plain[-1]),
    }
    wrong = [what for what, moved in stays.items() if not moved <= _SAME_ROW]
    wrong += [what for what, moved in moves.items() if not moved >= _OTHER_ROW]
    if wrong:
        said = f"the text encoder is wrong here: {'; '.join(wrong)}"
        hint = "do not trust images of this installation; report it with --json"
        return Finding("mask", BAD, said, hint, stays | moves)
    return Finding("mask", OK, "the text encoder treats padding as trained", data=stays | moves)


def image() -> Finding:
    """`tiny` draws on the CPU in float32, as it drew the golden image."""
    drawn = _drawn(device="cpu", dtype="float32")
    return _beside("picture", "draws", drawn, read_golden().pixels)


def edited() -> Finding:
    """`tiny` edits the golden image on the CPU in float32, as it did before."""
    drawn = _drawn(device="cpu", dtype="float32", edited=True)
    return _beside("edit", "edits", drawn, read_golden(EDITED).pixels)


def _beside(
    name: str, does: str, drawn: NDArray[numpy.uint8], wanted: NDArray[numpy.uint8]
) -> Finding:
    apart = int(numpy.abs(drawn.astype(int) - wanted).max())
    data = {"max_abs_diff": apart}
    if apart <= FARTHEST:
        return Finding(name, OK, f"tiny {does} its image, within {apart} of 255", data=data)
    said = f"tiny {does} another image here: {apart} of 255 off, and {FARTHEST} is the limit"
    hint = "klein verify -m tiny --dtype float32 tells where it begins"
    return Finding(name, BAD, said, hint, data)


def image_on_gpu() -> Finding:
    """The same as a user draws on a GPU, held to what `klein verify` lets pass in its dtype."""
    drawn = _drawn(device="cuda", dtype="bfloat16")
    return _near("picture on the GPU", "draws", drawn, read_golden().pixels)


def edited_on_gpu() -> Finding:
    """The edit, likewise."""
    drawn = _drawn(device="cuda", dtype="bfloat16", edited=True)
    return _near("edit on the GPU", "edits", drawn, read_golden(EDITED).pixels)


def _near(
    name: str, does: str, drawn: NDArray[numpy.uint8], wanted: NDArray[numpy.uint8]
) -> Finding:
    limits = LIMITS["bfloat16"]
    mean, noise = mean_abs_diff(drawn, wanted), psnr(drawn, wanted)
    data = {"mean_abs_diff": mean, "psnr": min(noise, _MOST_DECIBELS)}
    if mean <= limits.mean_abs_diff and noise >= limits.psnr:
        said = f"tiny {does} its image in bfloat16, {mean:.2f} of 255 off on average"
        return Finding(name, OK, said, data=data)
    said = f"tiny {does} another image on this GPU: {mean:.1f} of 255 off on average"
    return Finding(
        name, BAD, said, "klein verify -m tiny --device cuda tells where it begins", data
    )


def _drawn(*, device: str, dtype: str, edited: bool = False) -> NDArray[numpy.uint8]:
    pipeline = Pipeline.load(resolve("tiny"), choose(Settings(device=device, dtype=dtype)))
    images = ImageStore()
    (pixels,) = pipeline.render([edit(images) if edited else RECIPE], images=images)
    return pixels


def _moved(before: Tensor, after: Tensor, *, least: bool = False) -> float:
    """By how much the row moved that moved most, or `least`, relative to itself."""
    moved = (after - before).norm(dim=-1) / before.norm(dim=-1)
    return float(moved.min() if least else moved.max())
