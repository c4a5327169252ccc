"""Options of other programs: each leads to klein's own, or to what klein does instead."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Klein = Callable[..., tuple[int, str, str]]

LEADS = {
    "--batch-count": "--num-images",
    "--count": "--num-images",
    "--n_iter": "--num-images",
    "--num-images-per-prompt": "--num-images",
    "--num-inference-steps": "--steps",
    "--ddim_steps": "--steps",
    "--ar": "--aspect",
    "--aspect-ratio": "--aspect",
    "--cfg": "--guidance",
    "--negative": "--negative-prompt",
    "--resolution": "--size",
    "--w": "--width",
    "--outdir": "--output",
    "--ckpt": "--model",
    "--from-file": "--prompts-file",
    "--precision": "--dtype",
    "--init-image": "--image",
    "--inpaint": "--mask",
    "--outpaint": "--expand",
    "--gpu": "--device",
    "--force": "--overwrite",
    "--dynamic-prompts": "--wildcards",
    "--num-gpus": "--workers",
    "--preview": "--show",
    "--widht": "--width",
    "--sampler": "there is one sampler",
    "--scheduler": "there is one sampler",
    "--format": "the ending of -o is the format",
    "--strength": "klein edit IMAGE PROMPT",
    "--upscale": "klein enlarges nothing",
    "--lowvram": "the memory is used as there is",
    "--clip-skip": "klein takes prompts as they stand",
}


@pytest.mark.parametrize("wrong", LEADS)
def test_it_leads_to_what_is_meant(wrong: str, klein: Klein) -> None:
    """The nearest name by letters was another one: --count led to --quiet."""
    code, _, err = klein("generate", "x", "-m", "tiny", "--dry-run", wrong, "1")
    assert code == 2
    what, todo = err.splitlines()
    assert what == f"error: there is no option {wrong}"
    assert LEADS[wrong] in todo


def test_a_command_is_not_led_to_an_option_that_it_lacks(klein: Klein) -> None:
    code, _, err = klein("info", "x.png", "--count", "2")
    assert code == 2
    assert "--num-images" not in err
