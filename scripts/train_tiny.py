"""Train the embedded `tiny` model and write it in the diffusers layout.

    python scripts/train_tiny.py vae   --work WORK --seconds 85
    torchrun --nproc-per-node 4 scripts/train_tiny.py flow --work WORK --seconds 1000
    python scripts/train_tiny.py write --work WORK --to FOLDER
    python scripts/train_tiny.py decoder --work WORK --from FOLDER --stars .6 --edges 8 --lr 1e-3

Minutes on GPUs. `vae` learns the autoencoder, then fixes its batch-norm statistics. `flow` learns
the Qwen3 encoder and the DiT together, to draw and to edit (see `tiny_flow`), on one GPU or, by
torchrun, on several; its seconds count from the start of the process, and it resumes from WORK
when run again. Every minute it writes the model as it is to WORK/model.
`--from FOLDER` starts it from a written model: its autoencoder, its tokenizer and, unless
`--fresh`, its weights. `decoder` sharpens the decoder of a written model in its place, and is light
enough for a CPU.

Where things lie in a drawing is a function of the noise (see `tiny_world`), and what an edit leaves
open is one of the picture (see `tiny_edits`), so that there is one right picture and four steps can
be sharp.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2

sys.path.insert(0, str(Path(__file__).parent))
from tiny_batches import Batches, Mixture
from tiny_data import Prompts, prompt_pools
from tiny_decoder import train_decoder
from tiny_edit_data import EditPools, OwnPictures, draw_own, edit_pools
from tiny_flow import Flow, Plan
from tiny_models import VAE, WEIGHTS, Student, load_vae
from tiny_optim import Log
from tiny_team import Team
from tiny_vae import train_vae
from tiny_write import write_model, write_weights


def _vae_of(args: argparse.Namespace) -> AutoencoderKLFlux2:
    kept = args.work / "vae.pt"
    if not kept.exists():
        return load_vae(args.start)
    vae = AutoencoderKLFlux2(**VAE)
    vae.load_state_dict(torch.load(kept, map_location="cpu"))
    return vae


def _flow(args: argparse.Namespace, team: Team, started: float) -> None:
    plan = Plan(
        until=started + args.seconds,
        begin=args.begin,
        end=args.end,
        learning_rate=args.lr,
        edges=args.edges,
        compiled=not args.eager,
        graphs=not (args.eager or args.no_graphs),
        dtype=getattr(torch, args.dtype),
    )
    mixture = Mixture(
        edits=args.edits,
        stars=args.stars,
        batch=args.batch or 128,
        buffered=args.buffered or 8000,
    )
    prompts, edits = (tuple(p.to(team.device) for p in pools) for pools in _pools(args, team))
    torch.manual_seed(1)
    student = Student()
    if args.start and not args.fresh:
        student.load_snapshot(args.start)
    student.to(team.device)
    torch.manual_seed(1000 + team.rank)
    vae = _vae_of(args).to(team.device).eval().requires_grad_(False)
    statistics = copy.deepcopy(vae.bn)
    vae.bfloat16().bn = statistics
    own = _own_pictures(args, student, edits[0], 3 * mixture.buffered // 2)
    print(f"{team.rank}: own pictures after {time.monotonic() - started:.0f}s", flush=True)
    batches = Batches(vae, prompts, edits[0], own, mixture)
    print(f"{team.rank}: buffers after {time.monotonic() - started:.0f}s", flush=True)
    Flow(args.work, plan, student, vae, batches, mixture, team).run()
    team.leave()


def _own_pictures(
    args: argparse.Namespace, student: Student, pools: EditPools, count: int
) -> OwnPictures:
    """Pictures by the model that the work starts from, or by the one that is being trained."""
    kept = args.work / "model"
    if args.start or (kept / WEIGHTS["transformer"]).exists():
        student = Student().to(pools.everyday.ids.device)
        student.load_snapshot(args.start or kept)
    return draw_own(student.eval(), pools, count, min(count, 256))


def _pools(
    args: argparse.Namespace, team: Team
) -> tuple[tuple[Prompts, Prompts], tuple[EditPools]]:
    """The prompts and the instructions, made once, by the first process, and kept in WORK."""
    tokenizer = args.start / "tokenizer" if args.start else None
    long, kept = max(64, args.prompts // 15), args.work / "edits.pt"
    if team.leads:
        prompt_pools(args.work, args.prompts, long, tokenizer)
        if not kept.exists():
            pools = edit_pools(args.work / "tokenizer" / "tokenizer.json", args.prompts, long)
            torch.save(pools, kept)
    team.wait()
    prompts = prompt_pools(args.work, args.prompts, long, tokenizer)
    return prompts, (torch.load(kept, weights_only=False),)


def _decoder(args: argparse.Namespace, prompts: Prompts) -> None:
    student = Student()
    student.load_snapshot(args.start)
    vae = train_decoder(
        student,
        load_vae(args.start),
        prompts,
        seconds=args.seconds,
        batch=args.batch or 8,
        count=args.buffered or 20_000,
        learning_rate=args.lr,
        stars=args.stars,
        edges=args.edges,
        log=Log(args.work / "decoder.log"),
    )
    states = {name: tensor.cpu() for name, tensor in vae.state_dict().items()}
    write_weights(args.start / WEIGHTS["vae"], states, getattr(torch, args.dtype))


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
    parser.add_argument("--batch", type=int, help="vae: 24, flow: 128 a GPU, decoder: 8")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument(
        "--stars", type=float, default=0.0, help="flow, decoder: at least this share hold a star"
    )
    parser.add_argument(
        "--edges", type=float, default=0.0, help="flow, decoder: extra weight of pixels at edges"
    )
    parser.add_argument("--prompts", type=int, default=240_000, help="size of the prompt pool")
    parser.add_argument(
        "--buffered", type=int, help="pairs of encoded pictures; flow: 8000 a GPU, decoder: 20000"
    )
    parser.add_argument("--edits", type=float, default=0.62, help="flow: the share of edits")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--eager", action="store_true", help="neither compile nor capture")
    parser.add_argument("--no-graphs", action="store_true", help="do not capture CUDA graphs")
    return parser


def main() -> None:
    """Parse the command line and run one stage."""
    args, started = _parser().parse_args(), time.monotonic()
    args.work.mkdir(parents=True, exist_ok=True)
    dtype = getattr(torch, args.dtype)
    if args.stage == "write":
        averages = torch.load(args.work / "flow.pt", map_location="cpu", weights_only=False)["ema"]
        write_model(args.to, averages, _vae_of(args), args.work / "tokenizer", dtype)
        return
    team = Team()
    torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for every shape
    if team.device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream())  # CUDA graphs are captured on no other
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if args.stage == "flow":
        _flow(args, team, started)
        return
    tokenizer = args.start / "tokenizer" if args.start else None
    long = max(64, args.prompts // 15)
    prompts = prompt_pools(args.work, args.prompts, long, tokenizer)[0].to(team.device)
    if args.stage == "vae":
        log = Log(args.work / "vae.log")
        vae = train_vae(prompts, args.seconds, args.batch or 24, team.device, log)
        torch.save(vae.state_dict(), args.work / "vae.pt")
    else:
        _decoder(args, prompts)


if __name__ == "__main__":
    main()
