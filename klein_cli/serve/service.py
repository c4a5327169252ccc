"""What the routes share: the model that is served, the line, and what is known of it all."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from klein_cli import __version__
from klein_cli.serve.dispatcher import Dispatcher
from klein_cli.serve.fields import Served
from klein_cli.serve.lengths import PromptLengths
from klein_cli.serve.log import Log
from klein_cli.serve.metrics import Labels, Metrics
from klein_cli.settings import Settings


@dataclass(slots=True, kw_only=True)
class Service:
    """One server. `model` is as it was asked for, `facts` what clients compare with their own."""

    model: str
    served: Served
    settings: Settings
    facts: Mapping[str, str]
    lengths: PromptLengths
    dispatcher: Dispatcher
    metrics: Metrics
    log: Log
    started: float = field(default_factory=time.time)

    def gauges(self) -> dict[str, dict[Labels, float]]:
        """What is measured when it is asked for."""
        waiting = {"single": 0, "bulk": 0}
        for ticket in self.dispatcher.waiting:
            waiting["bulk" if ticket.bulk else "single"] += 1
        return {
            "klein_queue_images": {(("class", name),): n for name, n in waiting.items()},
            "klein_drawing_images": {(): len(self.dispatcher.drawing)},
            "klein_model_loaded": {(): self.dispatcher.loaded},
            "klein_build_info": {(("version", __version__),): 1},
        }
