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
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLFlux2
from tiny_data import LatentBuffer, Prompts
from tiny_losses import (
    STEPS,
    Captured,
    Inputs,
    Loss,
    at,
    autocast,
    follow_loss,
    match_loss,
    twice,
    unroll_loss,
)
from tiny_models import POSITIONS, Student, compile_blocks
from tiny_optim import Ema, Log, Muon
from torch import Tensor

from klein_cli.sampling.latents import position_ids
from klein_cli.sampling.schedule import sigmas

SHORT_POSITIONS = 128
SQUARE, LONG = "square", "long"
"""The usual buffers: everyday prompts and long ones, both 16 x 16 sixteenths of the side."""
# The other buffers: latent heights and widths, in sixteenths of the picture's.
OTHER_GRIDS = (
    *((8, 8), (24, 24), (16, 24), (24, 16)),
    *((12, 12), (20, 20), (9, 16), (16, 9), (12, 20), (20, 12), (8, 24), (24, 8)),
)
UNROLLED_GRIDS = OTHER_GRIDS[:4]
# How often each of the four sigmas is drawn: where the picture lies is decided at the first.
SIGMA_WEIGHTS = (0.35, 0.20, 0.20, 0.25)
OTHER_SIGMAS = 0.15
LOWEST_SIGMA = 0.1


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, how fast, and where one phase ends and the next begins (fractions of the time).

    `begin` and `end` are the part of the whole that this run does: it may take several sittings.
    """

    seconds: float
    begin: float = 0.0
    end: float = 1.0
    batch: int = 256
    learning_rate: float = 2e-3
    match_until: float = 0.5
    follow_until: float = 0.65
    decay_from: float = 0.5
    other_grids: float = 0.15
    long_prompts: float = 0.06
    buffered: int = 20_000
    renewed: int = 8
    stars: float = 0.0
    edges: float = 0.0
    compiled: bool = True
    graphs: bool = True


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
        self.elapsed, self.step = plan.begin * plan.seconds, 0
        self.captured: dict[str, Captured] = {}
        few = max(4, plan.buffered // 16)
        self.buffers = {
            SQUARE: LatentBuffer(self.vae, self.prompts, plan.buffered, (16, 16), plan.stars),
            LONG: LatentBuffer(self.vae, self.long_prompts, 2 * few, (16, 16), plan.stars),
        }
        for grid in OTHER_GRIDS:
            self.buffers[_name(grid)] = LatentBuffer(self.vae, self.prompts, few, grid, plan.stars)
        if (work / "flow.pt").exists():
            self._resume(torch.load(work / "flow.pt", map_location=self.device, weights_only=False))

    def run(self) -> None:
        """Train until the clock says so, saving now and then."""
        self._warm_up()
        last, losses, saved = time.monotonic(), [], self.elapsed
        while self.elapsed < self.plan.end * self.plan.seconds:
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
        kind, positions, source = self._draw(phase)
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

    def _draw(self, phase: str) -> tuple[str, int, str]:
        """The next batch's kind of loss, its text positions and the buffer it comes from."""
        unroll = phase == "unroll"
        if self.rng.random() < self.plan.other_grids:
            name = _name(self.rng.choice(UNROLLED_GRIDS if unroll else OTHER_GRIDS))
            return ("unroll", POSITIONS, name) if unroll else ("match", SHORT_POSITIONS, name)
        if phase == "match":
            return "match", SHORT_POSITIONS, SQUARE
        kind = "unroll" if unroll else "match"
        if self.rng.random() < self.plan.long_prompts:
            return kind, POSITIONS, LONG
        if not unroll and self.rng.random() < 0.5:
            kind = f"follow{self.rng.randint(1, 3)}"
        return kind, POSITIONS, SQUARE

    def _loss(self, kind: str, source: str) -> Loss:
        if kind == "match":
            return match_loss
        if kind == "unroll":
            grid = self.buffers[source].grid
            return lambda student, batch: unroll_loss(
                student, batch, self.vae, grid, self.plan.edges
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
        """Compile every phase to come, and capture the usual size, before the clock starts."""
        started, done = time.monotonic(), self.elapsed / self.plan.seconds
        kinds = []
        if self.plan.end > self.plan.follow_until:
            kinds.append(("unroll", POSITIONS))
        if done < self.plan.follow_until:
            kinds += [("match", SHORT_POSITIONS), ("match", POSITIONS)]
            kinds += [(f"follow{k}", POSITIONS) for k in (1, 2, 3)]
        for kind, positions in kinds:
            for source in (SQUARE, _name(OTHER_GRIDS[-1])):
                inputs = self._inputs(source, kind, positions)
                self._loss(kind, source)(self.student, inputs).backward()
                self.student.forget()
            self.log(f"compiled {kind} {positions} after {time.monotonic() - started:.0f}s")
        if self.plan.graphs and self.device.type == "cuda":
            pool = torch.cuda.graph_pool_handle()
            others = {
                ("match", SHORT_POSITIONS): [_name(grid) for grid in OTHER_GRIDS],
                ("match", POSITIONS): [LONG],
                ("unroll", POSITIONS): [LONG, *(_name(grid) for grid in UNROLLED_GRIDS)],
            }
            for kind, positions in kinds:
                for source in (SQUARE, *others.get((kind, positions), ())):
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
        with self.ema.applied(self.student), autocast(x):
            text = twice(self.student.embed(batch["ids"], batch["mask"])).detach()
            for k in range(STEPS):
                v = at(self.student, x, levels[k], text, batch["places"]).detach()
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


def _name(grid: tuple[int, int]) -> str:
    return f"{grid[0]}x{grid[1]}"
