"""Train the embedded `tiny` model and write it in the diffusers layout.

    python scripts/train_tiny.py vae   --work WORK --seconds 85
    python scripts/train_tiny.py flow  --work WORK --seconds 1200
    python scripts/train_tiny.py write --work WORK --to FOLDER
    python scripts/train_tiny.py decoder --work WORK --from FOLDER --stars .6 --edges 8 --lr 1e-3

One GPU; minutes. `vae` learns the autoencoder, then fixes its batch-norm statistics. `flow` learns
the Qwen3 encoder and the DiT together (see `tiny_flow`), and resumes from WORK when run again;
with `--begin .65 --lr 1.2e-3 --stars .6 --edges 8` it only unrolls, as in the last sitting.
`--from FOLDER` starts it from a written model: its autoencoder, its tokenizer and, unless
`--fresh`, its weights. `decoder` sharpens the decoder of a written model in its place, and is light
enough for a CPU.

Where things lie is a function of the noise (see `tiny_world`), so that every (prompt, noise) pair
has one right picture and four steps can be sharp.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from tiny_data import Prompts, prompt_pools
from tiny_decoder import train_decoder
from tiny_flow import Flow, Plan
from tiny_models import ENCODER, ROPE_THETA, TRANSFORMER, VAE, WEIGHTS, Student, load_vae
from tiny_optim import Log
from tiny_vae import train_vae

from klein_cli.bench.random_files import write_json, write_model_index, write_scheduler_config


def write(work: Path, to: Path, vae: AutoencoderKLFlux2, dtype: torch.dtype) -> None:
    """Write the averaged weights as a diffusers-layout folder."""
    state = torch.load(work / "flow.pt", map_location="cpu", weights_only=False)["ema"]
    parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "dit": {}, "probe": {}}
    for name, tensor in state.items():
        part, _, key = name.partition(".")
        parts[part][key] = tensor
    encoder = {f"model.{key}": tensor for key, tensor in parts["encoder"].items()}
    # Stock pipelines build all 28 layers and the final norm; nothing reads what these compute.
    last = [key for key in encoder if key.startswith("model.layers.26.")]
    encoder |= {key.replace(".26.", ".27."): torch.zeros_like(encoder[key]) for key in last}
    encoder["model.norm.weight"] = torch.ones(ENCODER["hidden_size"])
    _write_weights(to / WEIGHTS["text_encoder"], encoder, dtype)
    _write_weights(to / WEIGHTS["transformer"], parts["dit"], dtype)
    _write_weights(to / WEIGHTS["vae"], vae.state_dict(), dtype)
    _write_configs(to, str(dtype).removeprefix("torch."))
    shutil.copytree(work / "tokenizer", to / "tokenizer", dirs_exist_ok=True)


def _write_weights(path: Path, state: dict[str, Tensor], dtype: torch.dtype) -> None:
    """One safetensors file; integers keep their type, statistics their float32."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exact = ("running_mean", "running_var")
    tensors = {
        name: (t if not t.is_floating_point() or name.endswith(exact) else t.to(dtype)).contiguous()
        for name, t in state.items()
    }
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)


def _write_configs(to: Path, dtype: str) -> None:
    write_model_index(to, distilled=True)
    write_scheduler_config(to)
    version = {"_diffusers_version": "0.42.1"}
    kinds = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
    blocks = {name: [kind] * len(VAE["block_out_channels"]) for name, kind in kinds.items()}
    transformer = {"_class_name": "Flux2Transformer2DModel", **version, **TRANSFORMER}
    write_json(to / "transformer" / "config.json", transformer)
    vae = {"_class_name": "AutoencoderKLFlux2", **version, **VAE, **blocks}
    write_json(to / "vae" / "config.json", vae)
    encoder = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "max_position_embeddings": 40960,
        "rope_theta": ROPE_THETA,
        "rope_scaling": None,
        "sliding_window": None,
        "use_sliding_window": False,
        "max_window_layers": 28,
        "tie_word_embeddings": True,
        "torch_dtype": dtype,
        "use_cache": True,
        **ENCODER,
    }
    write_json(to / "text_encoder" / "config.json", encoder)


def _vae_of(args: argparse.Namespace) -> AutoencoderKLFlux2:
    kept = args.work / "vae.pt"
    if not kept.exists():
        return load_vae(args.start)
    vae = AutoencoderKLFlux2(**VAE)
    vae.load_state_dict(torch.load(kept, map_location="cpu"))
    return vae


def _flow(args: argparse.Namespace, device: torch.device, pools: tuple[Prompts, Prompts]) -> None:
    plan = Plan(
        seconds=args.seconds,
        begin=args.begin,
        end=args.end,
        batch=args.batch or 256,
        learning_rate=args.lr,
        buffered=args.buffered,
        stars=args.stars,
        edges=args.edges,
        compiled=not args.eager,
        graphs=not (args.eager or args.no_graphs),
    )
    student = Student()
    if args.start and not args.fresh:
        student.load_snapshot(args.start)
    log = Log(args.work / "flow.log")
    Flow(args.work, plan, student.to(device), _vae_of(args), pools, log).run()


def _decoder(args: argparse.Namespace, prompts: Prompts) -> None:
    student = Student()
    student.load_snapshot(args.start)
    vae = train_decoder(
        student,
        load_vae(args.start),
        prompts,
        seconds=args.seconds,
        batch=args.batch or 8,
        count=args.buffered,
        learning_rate=args.lr,
        stars=args.stars,
        edges=args.edges,
        log=Log(args.work / "decoder.log"),
    )
    _write_weights(args.start / WEIGHTS["vae"], vae.state_dict(), getattr(torch, args.dtype))


def _parser() -> argparse.ArgumentParser:
    style = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parser.add_argument("stage", choices=("vae", "flow", "write", "decoder"))
    parser.add_argument(
        "--work", type=Path, required=True, help="where the stages keep their state"
    )
    parser.add_argument("--to", type=Path, help="write: the folder of the model")
    parser.add_argument("--from", type=Path, dest="start", help="a written model to start from")
    parser.add_argument("--fresh", action="store_true", help="flow: start the weights anew")
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument(
        "--begin", type=float, default=0.0, help="flow: where in the whole to begin"
    )
    parser.add_argument("--end", type=float, default=1.0, help="flow: and where to end")
    parser.add_argument("--batch", type=int, help="vae: 24, flow: 256, decoder: 8")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument(
        "--stars", type=float, default=0.0, help="flow, decoder: at least this share hold a star"
    )
    parser.add_argument(
        "--edges", type=float, default=0.0, help="flow, decoder: extra weight of pixels at edges"
    )
    parser.add_argument("--prompts", type=int, default=240_000, help="size of the prompt pool")
    parser.add_argument("--buffered", type=int, default=20_000, help="pairs of encoded pictures")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--eager", action="store_true", help="neither compile nor capture")
    parser.add_argument("--no-graphs", action="store_true", help="do not capture CUDA graphs")
    return parser


def main() -> None:
    """Parse the command line and run one stage."""
    args = _parser().parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.stage == "write":
        write(args.work, args.to, _vae_of(args), getattr(torch, args.dtype))
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for every shape
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream())  # CUDA graphs are captured on no other
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    tokenizer = args.start / "tokenizer" if args.start else None
    long = max(64, args.prompts // 15)
    pools = tuple(p.to(device) for p in prompt_pools(args.work, args.prompts, long, tokenizer))
    if args.stage == "vae":
        log = Log(args.work / "vae.log")
        vae = train_vae(pools[0], args.seconds, args.batch or 24, device, log)
        torch.save(vae.state_dict(), args.work / "vae.pt")
    elif args.stage == "decoder":
        _decoder(args, pools[0])
    else:
        _flow(args, device, pools)


if __name__ == "__main__":
    main()
