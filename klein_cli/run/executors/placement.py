"""Where a run's images are drawn: --workers, --ray and --server as one value."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from klein_cli.errors import UsageError
from klein_cli.run.resident.finding import Resident, ServerChoice


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """How many `workers` draw, each a process with the model, on this machine or on a Ray.

    No `workers` means one for each GPU, or what the Ray at the address `ray` has. The `resident`
    engine draws instead if `server` lets it and one was found that will do.
    """

    workers: int | None = 1
    ray: str | None = None
    server: ServerChoice = field(default_factory=ServerChoice)
    resident: Resident | None = None

    @classmethod
    def parse(cls, workers: str | None, ray: str | None, server: str = "off") -> Placement:
        """From the options as they were given, None if not. Raises UsageError."""
        choice = ServerChoice.parse(server)
        if workers is not None or ray is not None:
            if choice.mode in ("require", "start"):
                raise UsageError(
                    "--server cannot be combined with --workers or --ray", "leave one of them out"
                )
            choice = ServerChoice()
        if workers == "auto" or (workers is None and ray is not None):
            return cls(workers=None, ray=ray)
        text = "1" if workers is None else workers
        if not re.fullmatch(r"0*[1-9]\d{0,3}", text, re.ASCII):
            raise UsageError(
                f"--workers {text} is not valid", "use a number from 1 to 9999, or auto"
            )
        return cls(workers=int(text), ray=ray, server=choice)

    @property
    def single(self) -> bool:
        """Whether this process itself draws."""
        return self.ray is None and self.workers == 1 and self.resident is None

    def settled(self, *, gpus: int, images: int) -> Placement:
        """With "one for each GPU" counted, and no more workers than images."""
        workers = self.workers
        if workers is None and self.ray is None:
            workers = max(1, gpus)
        return replace(self, workers=None if workers is None else min(workers, images))

    def check_device(self, device: str) -> None:
        """Raise UsageError when workers are to share one GPU."""
        if not self.single and device.startswith("cuda:"):
            raise UsageError(
                f"--device {device} is one GPU, and each worker needs its own",
                "use --device cuda, and CUDA_VISIBLE_DEVICES to leave some out",
            )

    def check_gpus(self, gpus: int) -> None:
        """Raise UsageError when there are GPUs, but fewer than workers."""
        if self.workers is not None and self.workers > gpus > 0:
            raise UsageError(
                f"--workers {self.workers} needs a GPU for each, and there "
                f"{'is' if gpus == 1 else 'are'} {gpus}",
                f"use --workers {gpus}, or auto",
            )
