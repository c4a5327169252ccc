"""Time the native engine's parts on a GPU, at the true sizes of FLUX.2-klein-4B: no file is needed.

    python scripts/profile_engine.py --json profile.json

Weights are random and made on the GPU. Every part (text encoder, one step, four steps, decode) is
timed as plain torch and with Triton's kernels, each as it is and as a CUDA graph, and the steps
with fp8 too; beside each stands its relative error against float32. Then the kernels that take
longest.
Under 90 seconds on an H200, of which the first run spends some compiling kernels.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from klein_cli.bench.random_weights import SIZES, part_configs
from klein_cli.checkpoints.load import without_memory
from klein_cli.device.choose import choose, full_precision, left_out
from klein_cli.engines.engine import as_timestep
from klein_cli.models.attention import AttentionLengths, MaskAlone, SdpaAttention
from klein_cli.models.flux2 import Flux2Config, Flux2Transformer
from klein_cli.models.qwen3 import Qwen3Config, Qwen3Model
from klein_cli.models.vae import VaeConfig, VaeDecoder
from klein_cli.optimize.backend import PLAIN, Tools, at_work, tools
from klein_cli.optimize.graphs import Run, direct
from klein_cli.presets import TAPPED_LAYERS
from klein_cli.sampling.latents import position_ids
from klein_cli.sampling.schedule import sigmas
from klein_cli.settings import Settings

CUDA = torch.device("cuda")
BF16 = torch.bfloat16
POSITIONS = 512
PROMPT_TOKENS = 40
STEPS = 4
CONFIGS = part_configs(SIZES["4b"])
Found = dict[str, Any]


def settings(kernels: str, quantize: str = "none") -> Settings:
    return choose(Settings(device="cuda", kernels=kernels, quantize=quantize))


def built(kind: Any, *arguments: Any, dtype: torch.dtype = BF16) -> Any:
    """A model of random weights, the same for every dtype and ops: drawn in bfloat16."""
    with without_memory():
        model = kind(*arguments)
    model = model.to(BF16).to_empty(device=CUDA).requires_grad_(False).eval()
    generator = torch.Generator(CUDA).manual_seed(0)
    for name, p in model.named_parameters():
        scale = 1 / math.sqrt(p[0].numel()) if p.ndim > 1 else 0.1
        p.normal_(0.0, 1.0 if "embed_tokens" in name else scale, generator=generator)
        if p.ndim == 1 and name.endswith("weight"):
            p.add_(1.0)
    for name, buffer in model.named_buffers():
        buffer.fill_(1 if name.endswith("var") else 0)
    return model.to(dtype)


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """The median by the GPU's own clock, after two calls that do not count."""
    for _ in range(2):
        call()
    spent = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        spent.append(begin.elapsed_time(end))
    return statistics.median(spent)


def relative_error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


class Encoder:
    """One prompt of 40 tokens."""

    name = "text encoder"

    def __init__(self, kit: Tools, dtype: torch.dtype = BF16) -> None:
        config = Qwen3Config.from_json(CONFIGS["text_encoder"])
        given = config, TAPPED_LAYERS, SdpaAttention(), kit.qwen3
        self.model = built(Qwen3Model, *given, dtype=dtype)
        kit.prepare(self.model)
        ids = torch.randint(0, 400, (1, POSITIONS), generator=torch.manual_seed(0))
        lengths = AttentionLengths((PROMPT_TOKENS,), POSITIONS, CUDA)
        self.given = (ids.to(CUDA), lengths.mask)

    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        return torch.cat(self.model(ids, MaskAlone(mask)), dim=-1)

    def __call__(self, run: Run) -> Tensor:
        return run(self.states, *self.given)


class Denoiser:
    """The transformer, at any size."""

    def __init__(self, kit: Tools, dtype: torch.dtype = BF16) -> None:
        config = Flux2Config.from_json(CONFIGS["transformer"])
        self.dit: Flux2Transformer = built(Flux2Transformer, config, kit.flux2, dtype=dtype)
        kit.prepare(self.dit)
        self.dtype = dtype
        text = torch.randn(1, POSITIONS, config.joint_attention_dim, generator=torch.manual_seed(1))
        self.words = self.dit.context_embedder(text.to(CUDA, dtype))

    def at(self, side: int) -> None:
        """Pictures of side x side pixels from now on."""
        grid = (side // 16, side // 16)
        levels = sigmas(grid[0] * grid[1], STEPS)
        self.steps = levels.diff().tolist()
        timesteps = [as_timestep(level, self.dtype).to(CUDA) for level in levels[:-1].split(1)]
        self.modulations = [self.dit.modulations(timestep) for timestep in timesteps]
        self.rotary = self.dit.rotary(position_ids(POSITIONS, grid, CUDA))
        shape = (1, grid[0] * grid[1], self.dit.config.in_channels)
        self.latents = torch.randn(shape, generator=torch.manual_seed(2)).to(CUDA)

    def first(self, run: Run) -> Tensor:
        return self.step(run, self.latents, 0)

    def step(self, run: Run, x: Tensor, number: int) -> Tensor:
        mods = self.modulations[number]
        return run(self.dit.velocity, x.to(self.dtype), self.words, mods, *self.rotary)

    def loop(self, run: Run) -> Tensor:
        x = self.latents
        for number, width in enumerate(self.steps):
            x = x + width * self.step(run, x, number).float()
        return x


class Decoder:
    """The VAE's decoder, at any size."""

    def __init__(self, kit: Tools, dtype: torch.dtype = BF16) -> None:
        config = VaeConfig.from_json(CONFIGS["vae"])
        self.vae: nn.Module = built(VaeDecoder, config, kit.vae, dtype=dtype)
        kit.prepare(self.vae)
        self.dtype = dtype

    def at(self, side: int) -> None:
        shape = (1, 32, side // 8, side // 8)
        self.latents = torch.randn(shape, generator=torch.manual_seed(3)).to(CUDA, self.dtype)

    def __call__(self, run: Run) -> Tensor:
        return run(self.vae, self.latents)


class Table:
    """Rows as they come, and all of them for the JSON."""

    def __init__(self) -> None:
        self.rows: list[Found] = []

    def add(self, part: str, how: str, ms: float, error: float | None = None) -> None:
        self.rows.append({"part": part, "how": how, "ms": round(ms, 4), "error": error})
        shown = "" if error is None else f"{error:12.2e}"
        print(f"{part:<40} {how:<18} {ms:10.3f} ms {shown}", flush=True)

    def both(
        self, part: str, how: str, kit: Tools, call: Callable[[Run], Tensor], exact: Tensor,
        repeats: int,
    ) -> None:  # fmt: skip
        """As it is, and as a graph."""
        for run, mark in ((direct, ""), (kit.run, " + graph")):
            error = relative_error(call(run), exact)
            self.add(part, how + mark, milliseconds(partial(call, run), repeats), error)
        kit.give_back_memory()


@contextmanager
def freed() -> Iterator[None]:
    """What the block made is gone after it."""
    yield
    gc.collect()
    torch.cuda.empty_cache()


def ceilings(table: Table) -> None:
    """What this machine can do at best, at the sizes that count."""
    size = 2**30
    source, target = torch.empty(2, size, dtype=torch.uint8, device=CUDA)
    ms = milliseconds(partial(target.copy_, source), 10)
    table.add("copy", f"{2 * size / ms / 1e9:.2f} TB/s", ms)
    a, b = (torch.randn(n, 3072, device=CUDA, dtype=BF16) for n in (4608, 27648))
    work = 2 * 4608 * 3072 * 27648
    ms = milliseconds(partial(F.linear, a, b), 20)
    table.add("matrix product bf16", f"{work / ms / 1e9:.0f} TFLOP/s", ms)
    if torch.cuda.get_device_capability() >= (8, 9):
        from klein_cli.optimize.quantize.fp8 import Fp8Linear, scaled

        layer, given = Fp8Linear(b, scaled), scaled(a)
        ms = milliseconds(partial(layer, given), 20)
        table.add("matrix product fp8", f"{work / ms / 1e9:.0f} TFLOP/s", ms)
    wide = torch.randn(1, 4608, 27648, device=CUDA, dtype=BF16)
    heads = wide.unflatten(-1, (-1, 128)).transpose(1, 2)
    parts = [heads[:, at : at + 24] for at in (0, 24, 48)]
    whole = [part.transpose(1, 2).contiguous().transpose(1, 2) for part in parts]
    attention = F.scaled_dot_product_attention
    for what, (query, key, value) in (
        ("as the projection left them", parts),
        ("without gaps", whole),
        ("value with gaps", (*whole[:2], parts[2])),
    ):
        ms = milliseconds(partial(attention, query, key, value), 20)
        table.add("attention, heads " + what, f"{4 * 4608**2 * 3072 / ms / 1e9:.0f} TFLOP/s", ms)


def encoder(table: Table) -> None:
    with freed():
        exact = Encoder(PLAIN, torch.float32)(direct)
    for kernels in ("torch", "triton"):
        with freed():
            kit = tools(settings(kernels))
            part = Encoder(kit)
            table.both("text encoder", kernels, kit, part, exact, 10)
            del part


def transformer(table: Table, sides: list[int]) -> None:
    """One step and four. Exact is float32 on the same weights, in plain torch."""
    exact: dict[int, tuple[Tensor, Tensor]] = {}
    with freed():
        part = Denoiser(PLAIN, torch.float32)
        for side in sides:
            part.at(side)
            exact[side] = part.first(direct), part.loop(direct)
        del part
    ways = [("torch", "none"), ("triton", "none")]
    if torch.cuda.get_device_capability() >= (8, 9):
        ways.append(("triton", "fp8"))
    for kernels, quantize in ways:
        with freed():
            kit = tools(settings(kernels, quantize))
            part = Denoiser(kit)
            how = kernels if quantize == "none" else quantize
            for side in sides:
                part.at(side)
                one, all_steps = exact[side]
                table.both(f"one step, {side}", how, kit, part.first, one, 10)
                table.both(f"{STEPS} steps, {side}", how, kit, part.loop, all_steps, 5)
            del part


def decoder(table: Table, sides: list[int]) -> None:
    exact = {}
    with freed():
        part = Decoder(PLAIN, torch.float32)
        for side in sides:
            part.at(side)
            exact[side] = part(direct)
        del part
    for kernels in ("torch", "triton"):
        with freed():
            kit = tools(settings(kernels))
            part = Decoder(kit)
            for side in sides:
                part.at(side)
                table.both(f"decode, {side}", kernels, kit, part, exact[side], 10)
            del part


def busiest(name: str, call: Callable[[], object], most: int) -> Found:
    """The kernels that take longest, of one call."""
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as watched:
        call()
        torch.cuda.synchronize()
    events = sorted(watched.key_averages(), key=lambda e: -e.self_device_time_total)
    total = sum(event.self_device_time_total for event in events)
    if not total:
        print(f"\n{name}: the profiler sees no kernels here (is CUPTI missing?)")
        return {"of": name, "ms": 0.0, "kernels": []}
    print(f"\n{name}: {total / 1000:.2f} ms in kernels")
    rows = []
    for event in events[:most]:
        ms = event.self_device_time_total / 1000
        rows.append({"kernel": event.key, "calls": event.count, "ms": round(ms, 4)})
        print(f"{ms:9.3f} ms {100000 * ms / total:5.1f} % {event.count:5} x  {event.key[:110]}")
    return {"of": name, "ms": total / 1000, "kernels": rows}


def kernels_that_count(side: int, most: int) -> list[Found]:
    found = []
    ways = [("triton", "none")]
    if torch.cuda.get_device_capability() >= (8, 9):
        ways.append(("triton", "fp8"))
    for kernels, quantize in ways:
        with freed():
            part = Denoiser(tools(settings(kernels, quantize)))
            part.at(side)
            name = f"one step, {side}, {kernels}, {quantize}"
            found.append(busiest(name, partial(part.first, direct), most))
            del part
    with freed():
        vae = Decoder(tools(settings("triton")))
        vae.at(side)
        found.append(busiest(f"decode, {side}", partial(vae, direct), most))
    with freed():
        text = Encoder(tools(settings("triton")))
        found.append(busiest("text encoder", partial(text, direct), most))
    return found


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[1024, 512])
    parser.add_argument("--parts", default="ceilings,encoder,transformer,decoder,kernels")
    parser.add_argument("--most", type=int, default=14, help="kernels of each table")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    started, table = time.perf_counter(), Table()
    facts: Found = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "off": left_out(settings("auto")),
    }
    print(json.dumps(facts))
    facts |= {"rows": table.rows, "kernels": []}
    print(f"{'part':<40} {'how':<18} {'median':>13} {'error':>12}")
    try:
        with torch.inference_mode(), full_precision(), at_work(CUDA):
            measure(table, options, facts)
    finally:
        facts["seconds"] = time.perf_counter() - started
        print(f"\nmeasured in {facts['seconds']:.0f} s")
        if options.json:
            options.json.write_text(json.dumps(facts, indent=1) + "\n")


def measure(table: Table, options: argparse.Namespace, facts: Found) -> None:
    """The parts that were asked for, in their order."""
    for part in options.parts.split(","):
        if part == "ceilings":
            with freed():
                ceilings(table)
        elif part == "encoder":
            encoder(table)
        elif part == "transformer":
            transformer(table, options.sides)
        elif part == "decoder":
            decoder(table, options.sides)
        else:
            facts["kernels"] = kernels_that_count(options.sides[0], options.most)


if __name__ == "__main__":
    main()
