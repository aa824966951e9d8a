"""What a trainer is told and asked: how long to train, who looks on, and what its processes agree on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from jepa.types import JepaBatch, StepOutput


class Probe(Protocol):
    """Looks at training steps from outside, in the main process only, at its share of the batch.

    Attributes:
        every: steps between its measurements.
        stop: why the run should stop, if it should.
    """

    every: int
    stop: str | None

    def __call__(self, step: int, output: StepOutput, batch: JepaBatch, *, due: bool) -> Mapping[str, float]:
        """Called after every step; what it measures where that is `due` goes into the metrics."""

    def summary(self) -> Mapping[str, str]:
        """A few words for the progress bar."""

    def state_dict(self) -> Mapping[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Plan:
    """How long, how often, and where to.

    Attributes:
        steps: optimiser steps of the whole run.
        log_every, checkpoint_every: in steps.
        keep_last, keep_every: checkpoints that stay: the last so many, and those of steps that `keep_every` divides.
        run_dir: where metrics and checkpoints go.
        clip_norm: largest norm of the gradient of all parameters; None: not clipped.
        clip_parts: clip the gradient of each part (encoder, predictor) by its own norm.
        clip_after: steps without clipping at the start.
        workers: data workers of each process.
        fingerprint: what the order of samples depends on.
    """

    steps: int
    run_dir: Path
    fingerprint: str
    log_every: int = 10
    checkpoint_every: int = 1000
    keep_last: int = 2
    keep_every: int | None = None
    clip_norm: float | None = None
    clip_parts: bool = False
    clip_after: int = 0
    workers: int = 0

    @property
    def checkpoints(self) -> Path:
        return self.run_dir / "checkpoints"


@dataclass(frozen=True)
class Facts:
    """What all processes agree on at a step.

    Attributes:
        terms: of the loss, means over the global batch.
        bad_step: first step whose loss was not finite; 0: none.
        stop: a process was told to stop.
        skipped: samples skipped so far, all processes together.
    """

    terms: dict[str, float]
    bad_step: int
    stop: bool
    skipped: int

    @property
    def loss(self) -> float:
        return sum(self.terms.values())
