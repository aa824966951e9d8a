"""From one masker to another in the course of training."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from math import sqrt

import torch

from jepa.interfaces import Masker
from jepa.types import Masks, Motions


class Curriculum(Masker):
    """Easy masks first, hard ones more and more often (A-JEPA, Fei et al. 2023, section 3).

    Each batch is drawn with one of two maskers, `then` with probability `min(1, sqrt(progress * (1 - start^2) +
    start^2))`, the root of Platanios et al. 2019: `start` at first, .71 in the middle, 1 at the end of training. Where
    nobody says how far training is, it is at its end.

    Args:
        first, then: maskers that pose as many tasks as each other.
        start: probability of `then` at the first step.

    Raises:
        ValueError: `start` is no probability.
    """

    def __init__(self, *, first: Masker, then: Masker, start: float = 0.01) -> None:
        if not 0 <= start <= 1:
            raise ValueError(f"start must lie in 0..1, got {start}")
        self.first, self.then, self.start = first, then, start
        self.share = 1.0  # of batches that `then` draws

    def at(self, progress: float) -> Curriculum:
        now = copy(self)
        now.first, now.then = self.first.at(progress), self.then.at(progress)
        now.share = min(1.0, sqrt(progress * (1 - self.start**2) + self.start**2))
        return now

    def kinds(self) -> Sequence[tuple[float, Masker]]:
        shares = ((1 - self.share, self.first), (self.share, self.then))
        return [(share * part, kind) for share, masker in shares for part, kind in masker.kinds()]

    def check(self, grid: tuple[int, ...]) -> None:
        """Refuse what either masker refuses, and maskers that pose different numbers of tasks.

        Raises:
            ValueError: naming which.
        """
        tasks = {}
        for name, masker in (("first", self.first), ("then", self.then)):
            try:
                masker.check(grid)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            tasks[name] = len(masker.sample(1, grid, torch.Generator()))
        if tasks["first"] != tasks["then"]:
            raise ValueError(f"first poses {tasks['first']} tasks on each sample and then {tasks['then']}")

    def sample(self, batch_size: int, grid: tuple[int, ...], generator: torch.Generator) -> Sequence[Masks | Motions]:
        """What the masker that was drawn draws."""
        hard = torch.rand((), generator=generator) < self.share
        return (self.then if hard else self.first).sample(batch_size, grid, generator)
