"""Tasks in which nothing is hidden: the view moves, or there are two of it."""

from __future__ import annotations

from math import log

import torch

from jepa.interfaces import Masker
from jepa.types import Motions


class Saccade(Masker):
    """Random eye movements, each component drawn uniformly and on its own (`jepa.nn.motion` says what they mean).

    `data.batch_transform: {_target_: jepa.data.Saccades, ...}` cuts the views to match; it is told these limits too, to
    refuse pictures without room for them.

    Args:
        rotation: largest turn in degrees, either way.
        translation: largest shift along each axis, as a share of the view's shorter side: 0.1 of 64 pixels are 6.4.
        scale: largest factor by which the view covers more, and inverse of the smallest, drawn log-uniformly; 1: none.
        mirror: probability of a mirrored view.

    Raises:
        ValueError: a limit is out of its range, or nothing would ever move.
    """

    def __init__(
        self, *, rotation: float = 0.0, translation: float = 0.0, scale: float = 1.0, mirror: float = 0.0
    ) -> None:
        if not 0 <= rotation <= 180 or translation < 0 or scale < 1 or not 0 <= mirror <= 1:
            raise ValueError(
                f"need rotation in 0..180, translation >= 0, scale >= 1 and mirror in 0..1; "
                f"got {rotation}, {translation}, {scale}, {mirror}"
            )
        if rotation == translation == mirror == 0 and scale == 1:
            raise ValueError("nothing would ever move: raise rotation, translation, scale or mirror")
        self.limits = torch.tensor([rotation, translation, translation, log(scale)])
        self.mirror = mirror

    def sample(self, batch_size: int, grid: tuple[int, ...], generator: torch.Generator) -> list[Motions]:
        """One task: movements (B, 5)."""
        drawn = torch.rand(batch_size, 5, generator=generator)
        moved = (2 * drawn[:, :4] - 1) * self.limits
        return [Motions(torch.cat((moved, (drawn[:, 4:] < self.mirror).float()), 1))]


class Pair(Masker):
    """Nothing is hidden and there is nothing to tell: the other view of the same sample is to be predicted."""

    def sample(self, batch_size: int, grid: tuple[int, ...], generator: torch.Generator) -> list[Motions]:
        """One task: empty codes (B, 0)."""
        return [Motions(torch.empty(batch_size, 0))]
