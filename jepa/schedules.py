"""Schedules as pure functions of the optimiser step, counted from 1. Resuming replays nothing.

Exact values of the published schedules: the first update uses step 1, so `start` itself is never applied. With `end`
equal to `peak` (or to `start`) a schedule is constant, after its warmup.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi


@dataclass(frozen=True)
class WarmupCosine:
    """Linear from `start` to `peak` over `warmup` steps, half a cosine to `end` at step `total`, and `end` after."""

    start: float
    peak: float
    end: float
    warmup: int
    total: int

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return self.start + (step / self.warmup) * (self.peak - self.start)
        progress = min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))
        return self.end + (self.peak - self.end) * 0.5 * (1 + cos(pi * progress))


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from `start` to `end` at step `total`, and `end` after it."""

    start: float
    end: float
    total: int

    def __call__(self, step: int) -> float:
        progress = min(1.0, step / self.total)
        return self.end + (self.start - self.end) * 0.5 * (1 + cos(pi * progress))


@dataclass(frozen=True)
class LinearDecay:
    """From `start` before the first step to `end` at step `total`, and `end` after: the cooldown of V-JEPA 2."""

    start: float
    end: float
    total: int

    def __call__(self, step: int) -> float:
        return self.start + min(1.0, step / self.total) * (self.end - self.start)


@dataclass(frozen=True)
class Linear:
    """From `start` at step 1 towards `end`, which step `total` + 1 would reach."""

    start: float
    end: float
    total: int

    def __call__(self, step: int) -> float:
        return self.start + (step - 1) * (self.end - self.start) / self.total
