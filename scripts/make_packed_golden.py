"""Write tests/checkpoints/packed.safetensors: weights packed and unpacked by ComfyUI's own kernels.

    pip install comfy-kitchen && python scripts/make_packed_golden.py

The tests hold klein's unpacking to it to the last bit, without the library.
"""

from __future__ import annotations

from pathlib import Path

import torch
from comfy_kitchen.backends.eager import quantization as comfy
from safetensors.torch import save_file

GOLDEN = Path(__file__).parents[1] / "tests" / "checkpoints" / "packed.safetensors"
SCALE = 2.0**-9
"""A power of two, so that what comes out has few enough digits for bfloat16."""


def main() -> None:
    """Quantise two matrices, each row of its own size, and keep what the library makes of them."""
    generator = torch.Generator().manual_seed(5)
    held = {}
    weight = torch.randn(144, 80, generator=generator) * torch.linspace(0.2, 3, 144)[:, None]
    values, scales = comfy.quantize_nvfp4(weight, torch.tensor(SCALE), pad_16x=False)
    wide = comfy.dequantize_nvfp4(values, torch.tensor(SCALE), scales, torch.float32)[:144, :80]
    assert torch.equal(wide, wide.bfloat16().float())
    held |= {"nvfp4.weight": values, "nvfp4.weight_scale": scales.view(torch.uint8)}
    held |= {"nvfp4.weight_scale_2": torch.tensor(SCALE), "nvfp4.wanted": wide.bfloat16()}
    for group in (16, 64):
        weight = torch.randn(6, 128, generator=generator) * torch.linspace(0.2, 3, 6)[:, None]
        values, scales = comfy.quantize_int8_convrot_weight(weight, group)
        wide = comfy.dequantize_int8_convrot_weight(values, scales, group)
        held |= {f"int8_{group}.weight": values, f"int8_{group}.weight_scale": scales}
        held[f"int8_{group}.wanted"] = wide.float()
    save_file({name: tensor.contiguous().clone() for name, tensor in held.items()}, GOLDEN)


if __name__ == "__main__":
    main()
