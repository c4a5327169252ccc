"""The second stage of `train_tiny`: encoder and DiT together, by flow matching.

Three phases share one learning-rate schedule:

  match    flow matching with few text positions, which is cheaper;
  follow   the full 512 positions, half of the steps from the student's own trajectory;
  unroll   all four steps end to end, with a pixel loss through the frozen decoder.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLFlux2
from tiny_data import LatentBuffer, Prompts
from tiny_models import POSITIONS, Student, compile_blocks, decode_latents, unpack
from tiny_optim import Ema, Log, Muon
from torch import Tensor

from klein_cli.denoise.latents import position_ids
from klein_cli.denoise.schedule import sigmas

SHORT_POSITIONS = 128
STEPS = 4
SQUARE, LONG = "square", "long"
"""The usual buffers: everyday prompts and long ones, both 16 x 16 sixteenths of the side."""
# The other buffers: latent heights and widths, in sixteenths of the picture's.
OTHER_GRIDS = (
    *((8, 8), (12, 12), (20, 20), (24, 24), (16, 24), (24, 16)),
    *((9, 16), (16, 9), (12, 20), (20, 12), (8, 24), (24, 8)),
)
# How often each of the four sigmas is drawn: where the picture lies is decided at the first.
SIGMA_WEIGHTS = (0.35, 0.20, 0.20, 0.25)
OTHER_SIGMAS = 0.15
LOWEST_SIGMA = 0.1
STEP_WEIGHTS = (0.1, 0.2, 0.4, 1.0)
PROBE_WEIGHT = 0.5

Inputs = dict[str, Tensor]
Loss = Callable[[Student, Inputs], Tensor]


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, how fast, and where one phase ends and the next begins (fractions of the time)."""

    seconds: float
    batch: int = 256
    learning_rate: float = 2e-3
    match_until: float = 0.55
    follow_until: float = 0.75
    decay_from: float = 0.5
    other_grids: float = 0.15
    long_prompts: float = 0.06
    buffered: int = 20_000
    renewed: int = 8
    pixels: float = 1.0
    compiled: bool = True
    graphs: bool = True


# --- losses: student and tensors in, a number out ------------------------------------------------


def match_loss(student: Student, batch: Inputs) -> Tensor:
    """The velocity at one noise level of the true path."""
    noise, target, sigma = batch["noise"], batch["target"], batch["sigma"]
    with _autocast(noise):
        text = _twice(student.embed(batch["ids"], batch["mask"]))
        x = target + sigma[:, None, None] * (noise - target)
        out = student.velocity(x, sigma, text, batch["places"])
    return F.mse_loss(out, noise - target) + _probe_loss(student, batch)


def follow_loss(student: Student, batch: Inputs, stop: int) -> Tensor:
    """The velocity that leads to the right picture from where the student's own steps led."""
    levels, x = batch["levels"], batch["noise"]
    with _autocast(x):
        text = _twice(student.embed(batch["ids"], batch["mask"]))
        for k in range(stop):
            # Detached rather than run without gradients, which would compile everything twice.
            v = _at(student, x, levels[k], text.detach(), batch["places"]).detach()
            x = x + (levels[k + 1] - levels[k]) * v
        out = _at(student, x, levels[stop], text, batch["places"])
    loss = F.mse_loss(out, (x - batch["target"]) / levels[stop])
    return loss + _probe_loss(student, batch)


def unroll_loss(
    student: Student, batch: Inputs, vae: AutoencoderKLFlux2, grid: tuple[int, int], pixels: float
) -> Tensor:
    """Every step's picture, and the last one's pixels, with gradients through all steps."""
    levels, x, target = batch["levels"], batch["noise"], batch["target"]
    loss = x.new_zeros(())
    with _autocast(x):
        text = _twice(student.embed(batch["ids"], batch["mask"]))
        for k in range(STEPS):
            v = _at(student, x, levels[k], text, batch["places"])
            loss = loss + STEP_WEIGHTS[k] * F.mse_loss(x - levels[k] * v, target)
            x = x + (levels[k + 1] - levels[k]) * v
    few = batch["pictures"]
    difference = decode_latents(vae, unpack(x[: len(few)], grid)) - few
    return loss + pixels * (difference.abs().mean() + difference.square().mean())


def _probe_loss(student: Student, batch: Inputs) -> Tensor:
    """How wrong the DiT's middle is about where things lie."""
    offsets, there = batch["offsets"], batch["there"]
    wrong = (student.offsets(offsets.shape[1]) - offsets).square() * there[:, None]
    return PROBE_WEIGHT * wrong.mean()


def _at(student: Student, x: Tensor, sigma: Tensor, text: Tensor, places: Tensor) -> Tensor:
    return student.velocity(x, sigma.expand(len(x)), text, places)


def _twice(text: Tensor) -> Tensor:
    """Each prompt's embeddings for both of its pictures."""
    return text.repeat_interleave(2, 0)


def _autocast(like: Tensor) -> torch.autocast:
    return torch.autocast(like.device.type, torch.bfloat16)


class Captured:
    """A loss and its gradients as a CUDA graph over inputs of fixed shapes.

    Graphs of one memory `pool` share what they work in: one replays at a time.
    """

    def __init__(self, student: Student, loss: Loss, inputs: Inputs, pool: tuple[int, int]) -> None:
        self.student = student
        self.inputs = {name: t.clone() for name, t in inputs.items()}
        student.zero_grad()
        loss(student, self.inputs).backward()
        student.forget()
        self.graph = torch.cuda.CUDAGraph()
        # On the stream of all other steps: gradients are accumulated where a parameter was first
        # used, and a capture must not depend on another stream.
        with torch.cuda.graph(self.graph, pool=pool, stream=torch.cuda.current_stream()):
            value = loss(student, self.inputs)
            value.backward()
        self.loss = value.detach()
        self.grads = [p.grad for p in student.parameters()]
        student.forget()

    def __call__(self, inputs: Inputs) -> Tensor:
        """The loss; its gradients lie in the parameters."""
        for name, value in inputs.items():
            self.inputs[name].copy_(value)
        self.graph.replay()
        for p, grad in zip(self.student.parameters(), self.grads, strict=True):
            p.grad = grad
        return self.loss.clone()


class Flow:
    """One run: data, student, optimiser and the clock; resumes from WORK/flow.pt."""

    def __init__(
        self,
        work: Path,
        plan: Plan,
        student: Student,
        vae: AutoencoderKLFlux2,
        pools: tuple[Prompts, Prompts],
        log: Log,
    ) -> None:
        torch.manual_seed(1)
        self.work, self.plan, self.student, self.log = work, plan, student, log
        self.prompts, self.long_prompts = pools
        self.device = self.prompts.ids.device
        self.rng = random.Random(0)
        self.vae = vae.to(self.device).eval().requires_grad_(False)
        statistics = copy.deepcopy(self.vae.bn)
        self.vae.bfloat16().bn = statistics
        self.ema = Ema(student, 0.999)
        if plan.compiled:
            compile_blocks()
        inner = ("layers.", "blocks.")
        self.optimiser = Muon(
            student,
            plan.learning_rate,
            lambda name, p: p.ndim == 2 and any(part in name for part in inner),
        )
        self.elapsed, self.step = 0.0, 0
        self.captured: dict[str, Captured] = {}
        few = max(4, plan.buffered // 16)
        self.buffers = {
            SQUARE: LatentBuffer(self.vae, self.prompts, plan.buffered, (16, 16)),
            LONG: LatentBuffer(self.vae, self.long_prompts, 2 * few, (16, 16)),
        }
        for grid in OTHER_GRIDS:
            name = f"{grid[0]}x{grid[1]}"
            self.buffers[name] = LatentBuffer(self.vae, self.prompts, few, grid)
        if (work / "flow.pt").exists():
            self._resume(torch.load(work / "flow.pt", map_location=self.device, weights_only=False))

    def run(self) -> None:
        """Train until the clock says so, saving now and then."""
        self._warm_up()
        last, losses, saved = time.monotonic(), [], self.elapsed
        while self.elapsed < self.plan.seconds:
            done = self.elapsed / self.plan.seconds
            self.optimiser.set_lr(self.plan.learning_rate * self._rate(done))
            phase = self._phase(done)
            losses.append(self._learn(phase).detach())
            self.optimiser.step()
            self.ema.update(self.student)
            self.step += 1
            if self.step % 10 == 0 and self.device.type == "cuda":
                torch.cuda.synchronize()
            now = time.monotonic()
            self.elapsed, last = self.elapsed + now - last, now
            if self.step % 500 == 0 or self.step in (1, 20):
                mean = torch.stack(losses).mean().item()
                losses.clear()
                first, final = self.check()
                self.log(
                    f"flow {self.step} t={self.elapsed:.0f}s {phase} loss {mean:.5f} "
                    f"rate {self._rate(done):.3f} first {first:.4f} final {final:.4f}"
                )
                if self.elapsed - saved > 100:
                    self.save()
                    saved = self.elapsed
                last = time.monotonic()
        self.save()

    def _learn(self, phase: str) -> Tensor:
        """One batch's loss, its gradients left in the parameters."""
        positions = SHORT_POSITIONS if phase == "match" else POSITIONS
        source, kind = self._source(positions), phase
        if phase == "follow":
            own = source == SQUARE and self.rng.random() < 0.5
            kind = f"follow{self.rng.randint(1, 3)}" if own else "match"
        if self.step % 4 == 0:
            self.buffers[source].renew(self.plan.renewed)
        inputs = self._inputs(source, kind, positions)
        name = f"{kind} {positions} {source}"
        if name in self.captured:
            return self.captured[name](inputs)
        self.student.forget()
        loss = self._loss(kind, source)(self.student, inputs)
        loss.backward()
        return loss

    def _source(self, positions: int) -> str:
        """Which buffer the next batch comes from."""
        if self.rng.random() < self.plan.other_grids:
            return self.rng.choice([name for name in self.buffers if name not in (SQUARE, LONG)])
        if positions == POSITIONS and self.rng.random() < self.plan.long_prompts:
            return LONG
        return SQUARE

    def _loss(self, kind: str, source: str) -> Loss:
        if kind == "match":
            return match_loss
        if kind == "unroll":
            grid = self.buffers[source].grid
            return lambda student, batch: unroll_loss(
                student, batch, self.vae, grid, self.plan.pixels
            )
        return lambda student, batch: follow_loss(student, batch, int(kind[-1]))

    def _inputs(self, source: str, kind: str, positions: int) -> Inputs:
        buffer = self.buffers[source]
        tokens = buffer.grid[0] * buffer.grid[1]
        pairs = self.plan.batch * 128 // max(256, tokens)
        if kind == "unroll":
            pairs //= 4
        if source == LONG:
            pairs //= 4
        pairs = max(2, pairs)
        rows, noise, target, means = buffer.sample(pairs)
        ids, mask = buffer.prompts.tokens(rows, positions)
        levels = sigmas(tokens, STEPS).to(self.device)
        inputs = {"ids": ids, "mask": mask, "noise": noise, "target": target, "levels": levels}
        inputs["places"] = position_ids(positions, buffer.grid, self.device)
        if kind == "match":
            inputs["sigma"] = self._noise_levels(len(noise), levels)
        if kind == "unroll":
            few = max(1, pairs // 2)
            inputs["pictures"] = buffer.pictures(rows[:few], means[: 2 * few])
        else:
            inputs["offsets"], inputs["there"] = buffer.offsets(rows, means)
        return inputs

    def _noise_levels(self, count: int, levels: Tensor) -> Tensor:
        weights = torch.tensor(SIGMA_WEIGHTS, device=self.device)
        own = levels[torch.multinomial(weights, count, replacement=True)]
        other = LOWEST_SIGMA + (1 - LOWEST_SIGMA) * torch.rand(count, device=self.device)
        return torch.where(torch.rand(count, device=self.device) < OTHER_SIGMAS, other, own)

    def _warm_up(self) -> None:
        """Compile every phase, and capture the usual size, before the clock starts."""
        started = time.monotonic()
        kinds = [("match", SHORT_POSITIONS), ("match", POSITIONS), ("unroll", POSITIONS)]
        kinds += [(f"follow{k}", POSITIONS) for k in (1, 2, 3)]
        for kind, positions in kinds:
            for source in (SQUARE, "24x8"):
                inputs = self._inputs(source, kind, positions)
                self._loss(kind, source)(self.student, inputs).backward()
                self.student.forget()
            self.log(f"compiled {kind} {positions} after {time.monotonic() - started:.0f}s")
        if self.plan.graphs and self.device.type == "cuda":
            pool = torch.cuda.graph_pool_handle()
            for kind, positions in kinds:
                sources = list(self.buffers) if kind in ("match", "unroll") else [SQUARE]
                if positions == SHORT_POSITIONS:
                    sources.remove(LONG)
                for source in sources:
                    self._capture(kind, positions, source, pool)
                self.log(f"captured {kind} {positions} after {time.monotonic() - started:.0f}s")

    def _capture(self, kind: str, positions: int, source: str, pool: tuple[int, int]) -> None:
        inputs = self._inputs(source, kind, positions)
        name = f"{kind} {positions} {source}"
        self.captured[name] = Captured(self.student, self._loss(kind, source), inputs, pool)
        if source == SQUARE:
            self._time(name, inputs)

    def _time(self, name: str, inputs: Inputs) -> None:
        torch.cuda.synchronize()
        started = time.monotonic()
        for _ in range(5):
            self.captured[name](inputs)
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated() / 2**30
        spent = (time.monotonic() - started) / 5
        self.log(f"captured {name}: {1000 * spent:.1f} ms, {held:.1f} GiB held")

    def _rate(self, done: float) -> float:
        warm = min(1.0, (self.step + 1) / 200)
        return warm * min(1.0, max(0.0, 1 - done) / (1 - self.plan.decay_from))

    def _phase(self, done: float) -> str:
        if done < self.plan.match_until:
            return "match"
        return "follow" if done < self.plan.follow_until else "unroll"

    def check(self) -> tuple[float, float]:
        """Mean squared latent error of the averaged model after its first and its last step."""
        state = torch.cuda.get_rng_state() if self.device.type == "cuda" else None
        host = torch.random.get_rng_state()
        torch.manual_seed(7)
        short = self.elapsed < self.plan.match_until * self.plan.seconds
        positions = SHORT_POSITIONS if short else POSITIONS
        batch = self._inputs(SQUARE, "unroll", positions)
        levels, x, errors = batch["levels"], batch["noise"], []
        with self.ema.applied(self.student), _autocast(x):
            text = _twice(self.student.embed(batch["ids"], batch["mask"])).detach()
            for k in range(STEPS):
                v = _at(self.student, x, levels[k], text, batch["places"]).detach()
                errors.append(F.mse_loss(x - levels[k] * v, batch["target"]).item())
                x = x + (levels[k + 1] - levels[k]) * v
        torch.random.set_rng_state(host)
        if state is not None:
            torch.cuda.set_rng_state(state)
        return errors[0], errors[-1]

    def save(self) -> None:
        """Write WORK/flow.pt in one move."""
        state = {
            "student": self.student.state_dict(),
            "ema": self.ema.averages,
            "optimiser": self.optimiser.state_dict(),
            "elapsed": self.elapsed,
            "step": self.step,
        }
        torch.save(state, self.work / "flow.tmp")
        (self.work / "flow.tmp").rename(self.work / "flow.pt")

    def _resume(self, state: dict[str, object]) -> None:
        self.student.load_state_dict(state["student"])
        self.ema.averages = state["ema"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.elapsed, self.step = state["elapsed"], state["step"]
        torch.manual_seed(self.step)
