"""Write tests/checkpoints/lora/golden: adapters as peft and LyCORIS save them, and what they merge.

    pip install peft lycoris-lora
    python scripts/make_adapter_golden.py

Each file holds the factors under the names that the library, or the trainer that uses it, writes,
and "merged": the weight that the library itself makes of them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "checkpoints" / "lora"))

from test_oracles import GOLDEN, MODULE, SIDE, Small, weight

RANK, ALPHA = 4, 6
PEFT: dict[str, tuple[str, dict[str, Any]]] = {
    "peft-lora": ("LoraConfig", {"lora_alpha": ALPHA}),
    "peft-rslora": ("LoraConfig", {"lora_alpha": ALPHA, "use_rslora": True}),
    "peft-dora": ("LoraConfig", {"lora_alpha": ALPHA, "use_dora": True}),
    "peft-loha": ("LoHaConfig", {"alpha": ALPHA}),
    "peft-lokr": ("LoKrConfig", {"alpha": ALPHA, "decompose_factor": 8, "r": 2}),
    "peft-lokr_full": ("LoKrConfig", {"alpha": ALPHA, "decompose_factor": 8, "r": 100}),
}
LYCORIS: dict[str, dict[str, Any]] = {
    "lycoris-lora": {"algo": "lora"},
    "lycoris-rslora": {"algo": "lora", "rs_lora": True},
    "lycoris-dora": {"algo": "lora", "weight_decompose": True, "wd_on_out": True},
    "lycoris-dora_by_column": {"algo": "lora", "weight_decompose": True, "wd_on_out": False},
    "lycoris-loha": {"algo": "loha"},
    "lycoris-lokr": {"algo": "lokr", "factor": 8, "dim": 3},
    "lycoris-lokr_both": {"algo": "lokr", "factor": 8, "decompose_both": True, "dim": 2},
    "lycoris-lokr_full": {"algo": "lokr", "factor": 8, "dim": 10000},
    "lycoris-lokr_dora": {"algo": "lokr", "factor": 8, "weight_decompose": True, "wd_on_out": True},
    "lycoris-full": {"algo": "full"},
}
KEPT = ("peft_type", "r", "lora_alpha", "alpha", "use_rslora", "use_dora")


def made(case: str) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The tensors of a case, and what is kept of its configuration."""
    torch.manual_seed(3)
    return _peft(*PEFT[case]) if case in PEFT else (_lycoris(**LYCORIS[case]), None)


def _filled(parameters: Any) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def _peft(kind: str, options: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    import peft

    config = getattr(peft, kind)(target_modules=[MODULE], **{"r": RANK, **options})
    model = peft.get_peft_model(Small(), config)
    _filled(p for n, p in model.named_parameters() if "lora_A" in n or "lora_B" in n or "lok" in n)
    _filled(p for n, p in model.named_parameters() if "hada" in n)
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1.1
    tensors = {n: t.clone() for n, t in peft.get_peft_model_state_dict(model).items()}
    table = {key: value for key, value in config.to_dict().items() if key in KEPT}
    table["peft_type"] = str(config.peft_type.value)
    merged = model.merge_and_unload().get_parameter(f"{MODULE}.weight")
    return {**tensors, "merged": merged.detach().clone()}, table


def _lycoris(*, algo: str, dim: int = RANK, **options: Any) -> dict[str, Tensor]:
    from lycoris.modules import FullModule, LoConModule, LohaModule, LokrModule

    kinds = {"lora": LoConModule, "loha": LohaModule, "lokr": LokrModule, "full": FullModule}
    layer = Small().get_submodule(MODULE)
    name = "lycoris_" + MODULE.replace(".", "_")
    module = kinds[algo](name, layer, 1.0, dim, float(ALPHA), **options)
    module.apply_to()
    _filled(p for n, p in module.named_parameters() if "scale" not in n and n != "weight")
    with torch.no_grad():
        if algo == "full":
            module.weight.copy_(weight() + 0.1 * torch.randn(weight().shape))
        if hasattr(module, "dora_scale"):
            module.dora_scale *= 1.1
        # What it trained: its own `get_merged_weight` has the scale of LoHa and LoKr twice.
        merged = layer(torch.eye(SIDE)).T
    table = module.custom_state_dict() or module.state_dict()
    held = {f"{name}.{key}": value.detach().clone() for key, value in table.items()}
    return {**held, "merged": merged.detach().clone()}


def main() -> None:
    """Write all cases."""
    GOLDEN.mkdir(exist_ok=True)
    for case in (*PEFT, *LYCORIS):
        tensors, config = made(case)
        save_file({n: t.contiguous() for n, t in tensors.items()}, GOLDEN / f"{case}.safetensors")
        if config is not None:
            (GOLDEN / f"{case}.json").write_text(json.dumps(config, sort_keys=True) + "\n")
        print(case, *tensors)


if __name__ == "__main__":
    main()
