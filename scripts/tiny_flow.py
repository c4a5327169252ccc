"""The second stage of `train_tiny`: encoder and DiT together, by flow matching.

Drawing and editing are learned at once. Three phases share one learning-rate schedule:

  match    flow matching with few text positions, which is cheaper;
  follow   the full 512 positions, half of the steps from the student's own trajectory;
  unroll   all four steps end to end, with a pixel loss through the frozen decoder.

Several processes, one a GPU, average their gradients; each draws or edits as luck will have it.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLFlux2
from tiny_batches import DRAW, EDIT, USUAL, Batches, Kind, Mixture, draw_kinds, kinds_of
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
from tiny_team import Team
from tiny_write import write_model
from torch import Tensor

PHASES = ("match", "follow", "unroll")
SAVED = 60.0
"""Seconds from one checkpoint to the next."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, how fast, and where one phase ends and the next begins.

    `until` is a time of `time.monotonic`, so that compiling counts. `begin` and `end` are the part
    of the whole that this run does, as fractions, like all that follow.
    """

    until: float
    begin: float = 0.0
    end: float = 1.0
    learning_rate: float = 2e-3
    match_until: float = 0.3
    follow_until: float = 0.5
    decay_from: float = 0.5
    edges: float = 0.0
    compiled: bool = True
    graphs: bool = True
    dtype: torch.dtype = torch.bfloat16


class Flow:
    """One run: data, student, optimiser and the clock; resumes from WORK/flow.pt."""

    def __init__(
        self,
        work: Path,
        plan: Plan,
        student: Student,
        vae: AutoencoderKLFlux2,
        batches: Batches,
        mixture: Mixture,
        team: Team,
    ) -> None:
        self.work, self.plan, self.student, self.vae = work, plan, student, vae
        self.batches, self.mixture, self.team = batches, mixture, team
        self.device, self.rng = team.device, random.Random(0)
        self.log = Log(work / "flow.log", silent=not team.leads)
        self.ema = Ema(student, 0.999)
        if plan.compiled:
            compile_blocks()
        inner = ("layers.", "blocks.")
        self.optimiser = Muon(
            student,
            plan.learning_rate,
            lambda name, p: p.ndim == 2 and any(part in name for part in inner),
        )
        self.done, self.step = plan.begin, 0
        self.captured: dict[str, Captured] = {}
        if (work / "flow.pt").exists():
            self._resume(torch.load(work / "flow.pt", map_location=self.device, weights_only=False))

    def run(self) -> None:
        """Train until the clock says so, saving now and then."""
        self._warm_up()
        self.team.share(p.data for p in self.student.parameters())
        first, started = self.done, time.monotonic()
        left = max(1e-3, self.team.agree(self.plan.until - started))
        saved, losses = 0.0, []
        self.log(f"learning for {left:.0f}s")
        while self.done < self.plan.end:
            phase = self._phase(self.done)
            self.optimiser.set_lr(self.plan.learning_rate * self._rate(self.done))
            losses.append(self._learn(phase).detach())
            self.team.average(self.optimiser.every)
            self.optimiser.step()
            self.ema.update(self.student)
            self.step += 1
            if self.step % 10 == 0:
                spent = self._clock(started)
                self.done = first + (self.plan.end - first) * spent / left
                if spent - saved > SAVED:
                    saved = spent
                    self.save()
            if self.step % 500 == 0 or self.step in (1, 20):
                self._report(phase, losses, time.monotonic() - started)
        self.save()
        self._report(phase, losses, time.monotonic() - started)

    def _clock(self, started: float) -> float:
        """Seconds since then, the same in all processes."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return self.team.agree(time.monotonic() - started)

    def _report(self, phase: str, losses: list[Tensor], spent: float) -> None:
        mean = torch.stack(losses).mean().item() if losses else 0.0
        losses.clear()
        draw, edit = (self.check(task) for task in (DRAW, EDIT)) if self.team.leads else (0, 0)
        if self.team.leads:
            self.log(
                f"flow {self.step} t={spent:.0f}s done {self.done:.3f} {phase} loss {mean:.5f} "
                f"rate {self._rate(self.done):.3f} "
                + " ".join(
                    f"{task} first {errors[0]:.4f} final {errors[-1]:.4f}"
                    for task, errors in ((DRAW, draw), (EDIT, edit))
                )
            )
        self.team.wait()

    def _learn(self, phase: str) -> Tensor:
        """One batch's loss, its gradients left in the parameters."""
        kind = draw_kinds(phase, self.mixture, self.rng, self.team.size)[self.team.rank]
        if self.step % 4 == 0:
            self.batches.renew(kind)
        inputs = self.batches.inputs(kind)
        if str(kind) in self.captured:
            return self.captured[str(kind)](inputs)
        self.student.forget()
        loss = self._loss(kind)(self.student, inputs)
        loss.backward()
        return loss

    def _loss(self, kind: Kind) -> Loss:
        if kind.loss == "match":
            return match_loss
        if kind.loss == "unroll":
            grid = self.batches.buffers[kind.buffer].grid
            return lambda student, batch: unroll_loss(
                student, batch, self.vae, grid, self.plan.edges
            )
        return lambda student, batch: follow_loss(student, batch, int(kind.loss[-1]))

    def _warm_up(self) -> None:
        """Compile every phase to come, and capture its batches, before the clock starts."""
        if not self.plan.compiled:
            return
        started, kinds = time.monotonic(), self._to_come()
        for loss, positions in dict.fromkeys((kind.loss, kind.positions) for kind in kinds):
            some = [kind for kind in kinds if (kind.loss, kind.positions) == (loss, positions)]
            for task in (DRAW, EDIT):
                mine = [kind for kind in some if kind.task == task]
                for kind in (mine[0], mine[-1]):
                    self._loss(kind)(self.student, self.batches.inputs(kind)).backward()
                    self.student.forget()
            self.log(f"compiled {loss} {positions} after {time.monotonic() - started:.0f}s")
        if not (self.plan.graphs and self.device.type == "cuda"):
            return
        pool = torch.cuda.graph_pool_handle()
        for kind in kinds:
            inputs = self.batches.inputs(kind)
            self.captured[str(kind)] = Captured(self.student, self._loss(kind), inputs, pool)
            if kind.source == USUAL:
                self._time(kind, inputs)
        self.log(f"captured {len(kinds)} kinds after {time.monotonic() - started:.0f}s")

    def _to_come(self) -> list[Kind]:
        """The kinds of all phases from here to this run's end, the largest first."""
        first, last = (PHASES.index(self._phase(at)) for at in (self.done, self.plan.end - 1e-6))
        phases = PHASES[first : last + 1]
        kinds = dict.fromkeys(kind for phase in reversed(phases) for kind in kinds_of(phase))
        return list(kinds)

    def _time(self, kind: Kind, inputs: Inputs) -> None:
        torch.cuda.synchronize()
        started = time.monotonic()
        for _ in range(3):
            self.captured[str(kind)](inputs)
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated() / 2**30
        spent = (time.monotonic() - started) / 3
        self.log(f"captured {kind}: {1000 * spent:.1f} ms, {held:.1f} GiB held")

    def _rate(self, done: float) -> float:
        warm = min(1.0, (self.step + 1) / 200)
        return warm * min(1.0, max(0.0, 1 - done) / (1 - self.plan.decay_from))

    def _phase(self, done: float) -> str:
        if done < self.plan.match_until:
            return "match"
        return "follow" if done < self.plan.follow_until else "unroll"

    def check(self, task: str) -> list[float]:
        """Mean squared latent error of the averaged model after each of its steps."""
        state = torch.cuda.get_rng_state() if self.device.type == "cuda" else None
        host = torch.random.get_rng_state()
        torch.manual_seed(7)
        batch = self.batches.inputs(Kind("unroll", POSITIONS, task, USUAL))
        levels, x, errors = batch["levels"], batch["noise"], []
        with self.ema.applied(self.student), autocast(x):
            text = twice(self.student.embed(batch["ids"], batch["mask"])).detach()
            for k in range(STEPS):
                v = at(self.student, x, levels[k], text, batch).detach()
                errors.append(F.mse_loss(x - levels[k] * v, batch["target"]).item())
                x = x + (levels[k + 1] - levels[k]) * v
        self.student.forget()
        torch.random.set_rng_state(host)
        if state is not None:
            torch.cuda.set_rng_state(state)
        return errors

    def save(self) -> None:
        """Write WORK/flow.pt in one move, and the model as it is in WORK/model."""
        if not self.team.leads:
            return
        state = {
            "student": self.student.state_dict(),
            "ema": self.ema.averages,
            "optimiser": self.optimiser.state_dict(),
            "done": self.done,
            "step": self.step,
        }
        torch.save(state, self.work / "flow.tmp")
        (self.work / "flow.tmp").rename(self.work / "flow.pt")
        tokenizer = self.work / "tokenizer"
        write_model(self.work / "model", self.ema.averages, self.vae, tokenizer, self.plan.dtype)

    def _resume(self, state: dict[str, object]) -> None:
        self.student.load_state_dict(state["student"])
        self.ema.averages = state["ema"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.done, self.step = max(self.plan.begin, state["done"]), state["step"]
        torch.manual_seed(1000 * self.step + self.team.rank)
