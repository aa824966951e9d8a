"""The collapse panel as something that looks on while a run trains."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from statistics import mean
from typing import Any

from torch import Tensor

from jepa.probes.panel import CollapsePanel
from jepa.types import JepaBatch, StepOutput

log = logging.getLogger(__name__)

LOOKS = 10  # over which the accuracy on single batches is averaged


class Watch:
    """Measures every so many steps, warns when the verdict changes, and may ask to stop.

    Args:
        every: steps between measurements.
        stop_on_collapse: ask for a checkpoint and an end when the verdict is "collapsed".

    Attributes:
        stop: why the run should stop, if it should.
    """

    def __init__(self, *, every: int, stop_on_collapse: bool = False) -> None:
        self.every, self.stop_on_collapse = every, stop_on_collapse
        self.panel = CollapsePanel()
        self.stop: str | None = None
        self._said = "healthy"

    def __call__(self, step: int, output: StepOutput, batch: JepaBatch, *, due: bool) -> dict[str, float]:
        """What the panel measures where it is due; between, its online kNN only learns the batch."""
        if not due:
            self.panel.remember(output.intermediates, batch.labels, batch.index)
            return {}
        values = self.panel.measure(output.intermediates, batch.labels, batch.index)
        verdict = self.panel.verdict()
        if verdict.status not in (self._said, "too early to tell"):
            self._said = verdict.status
            helps = f". What usually helps: {'; '.join(verdict.advice)}" if verdict.advice else ""
            log.warning("step %d: %s%s", step, verdict, helps)
        if verdict.status == "collapsed" and self.stop_on_collapse:
            self.stop = f"collapsed: {verdict.reasons[0]}"
        return values

    def summary(self) -> dict[str, str]:
        """A few words for the progress bar."""
        last = self.panel.history[-1] if self.panel.history else {}
        rank = {"rank": f"{last['target_rank']:.0f}"} if "target_rank" in last else {}
        first = next((name for name in last if name.startswith("knn/")), "")
        scores = [look[first] for look in self.panel.history[-LOOKS:] if first in look]
        knn = {f"knn {first.removeprefix('knn/')}": f"{mean(scores):.2f}"} if scores else {}
        return rank | knn | {"run": self.panel.verdict().status}

    def state_dict(self) -> dict[str, Tensor]:
        return flatten(self.panel.state_dict())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.panel.load_state_dict(nest(state))
        status = self.panel.verdict().status
        self._said = "healthy" if status == "too early to tell" else status


def flatten(state: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """Nested dictionaries of tensors as one, with names joined by "|"."""
    flat: dict[str, Tensor] = {}
    for name, value in state.items():
        flat |= flatten(value, f"{prefix}{name}|") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def nest(flat: Mapping[str, Tensor]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *groups, last = name.split("|")
        node = nested
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
    return nested
