"""Counts of what the engine does, in the text form that Prometheus reads."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

Labels = tuple[tuple[str, str], ...]

_HELP = {
    "klein_requests_total": ("counter", "Answers, by route and status."),
    "klein_images_total": ("counter", "Images drawn, by model."),
    "klein_cancelled_total": ("counter", "Images that nobody waited for any more, by reason."),
    "klein_rejected_total": ("counter", "Requests refused because the line was full."),
    "klein_engine_deaths_total": ("counter", "Engines whose process ended by itself."),
    "klein_wait_seconds": ("histogram", "Time in the line."),
    "klein_image_seconds": ("histogram", "Time of a batch in the engine, by size."),
    "klein_step_seconds": ("histogram", "Time between two denoising steps."),
    "klein_queue_images": ("gauge", "Batches that wait, by class."),
    "klein_drawing_images": ("gauge", "Batches that are being drawn."),
    "klein_model_loaded": ("gauge", "Engines with the model in memory."),
    "klein_build_info": ("gauge", "The version."),
}


class Metrics:
    """Counters and histograms of one server; gauges are given when they are asked for."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[Labels, float]] = defaultdict(lambda: defaultdict(float))
        self._histograms: dict[str, dict[Labels, list[float]]] = defaultdict(dict)

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        """Add to a counter."""
        self._counts[name][tuple(labels.items())] += by

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """Add a time to a histogram."""
        # One a bucket, then those beyond all, then the sum.
        empty = [0.0] * (len(_SECONDS) + 2)
        held = self._histograms[name].setdefault(tuple(labels.items()), empty)
        held[bisect_left(_SECONDS, seconds)] += 1
        held[-1] += seconds

    def value(self, name: str, **labels: str) -> float:
        """What a counter has come to."""
        return self._counts[name][tuple(labels.items())]

    def text(self, gauges: Mapping[str, Mapping[Labels, float]]) -> str:
        """All of it, and these gauges."""
        return "".join(f"{line}\n" for line in self._lines(gauges))

    def _lines(self, gauges: Mapping[str, Mapping[Labels, float]]) -> Iterator[str]:
        for name, (kind, words) in _HELP.items():
            yield f"# HELP {name} {words}"
            yield f"# TYPE {name} {kind}"
            for labels, value in {**self._counts.get(name, {}), **gauges.get(name, {})}.items():
                yield f"{name}{_written(labels)} {value:g}"
            for labels, held in self._histograms.get(name, {}).items():
                yield from _buckets(name, labels, held)


def _buckets(name: str, labels: Labels, held: list[float]) -> Iterator[str]:
    total = 0.0
    for most, count in zip((*map(str, _SECONDS), "+Inf"), held[:-1], strict=True):
        total += count
        yield f"{name}_bucket{_written((*labels, ('le', most)))} {total:g}"
    yield f"{name}_sum{_written(labels)} {held[-1]:.6g}"
    yield f"{name}_count{_written(labels)} {total:g}"


def _written(labels: Labels) -> str:
    if not labels:
        return ""
    pairs = (f'{name}="{_escaped(value)}"' for name, value in labels)
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
