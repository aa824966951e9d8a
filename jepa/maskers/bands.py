"""Bands of time and of frequency, on the grid (time, frequency) of a spectrogram."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from jepa.interfaces import Masker
from jepa.maskers.geometry import (
    Range,
    as_count,
    as_range,
    between,
    block_maps,
    block_sizes,
    positions,
    require_2d,
    smallest_size,
    union,
)
from jepa.types import Masks

Axis = Literal["time", "frequency", "both"]
AXES = ("time", "frequency")  # of the grid


class Bands(Masker):
    """Whole bands as targets: steps in time at every frequency, frequencies at every time, or crosses of one of each.

    What a model could guess from the same moment or the same frequency, as it can with blocks and single patches, is
    hidden too. The context is one large block without the targets. Every band of every sample draws its own width and
    place, each uniformly; any place is equally likely, and bands may overlap.

    Args:
        axis: "time", "frequency" or "both". These are the time-only and frequency-only masks of Huang et al. 2022
            (Audio-MAE); crosses are how time-frequency aware masks are read here (Fei et al. 2023, A-JEPA).
        targets: bands, or crosses, of a sample, M.
        target_scale: (low, high) share of the time steps, or of the frequencies, that a band is wide; at least one.
        context_scale: (low, high) share of the grid that the context block covers before targets are removed; it has
            the grid's own aspect.

    Raises:
        ValueError: a setting is out of its range.
    """

    def __init__(
        self,
        *,
        axis: Axis = "both",
        targets: int = 3,
        target_scale: Range = (0.05, 0.075),
        context_scale: Range = (0.85, 1.0),
    ) -> None:
        if axis not in get_args(Axis):
            raise ValueError(f"axis must be one of {', '.join(get_args(Axis))}, got {axis!r}")
        self.axis = axis
        self.targets = as_count("targets", targets)
        self.target_scale = as_range("target_scale", target_scale, most=1)
        self.context_scale = as_range("context_scale", context_scale, most=1)

    def check(self, grid: tuple[int, ...]) -> None:
        """Refuse a grid on which bands beside each other can leave no context.

        Raises:
            ValueError: the grid is not 2-D, or naming the setting, the numbers and what would work.
        """
        times, frequencies = require_2d(self, grid)
        seen = smallest_size(self.context_scale[0], times / frequencies, grid)
        for axis in self._axes():
            hidden = self.targets * int(_width(torch.tensor(self.target_scale[1]), grid[axis]))
            if hidden >= seen[axis]:
                raise ValueError(
                    f"{self.targets} targets of target_scale up to {self.target_scale[1]:g} can hide {hidden} of the "
                    f"{grid[axis]} positions in {AXES[axis]} of grid {times}x{frequencies}, and a context block of "
                    f"context_scale {self.context_scale[0]:g} has {seen[axis]}; fewer targets, a lower target_scale, a "
                    f"higher context_scale or a larger grid (a smaller patch)"
                )

    def sample(self, batch_size: int, grid: tuple[int, ...], generator: torch.Generator) -> list[Masks]:
        """One task: context (B, time, frequency) and targets (B, M, time, frequency).

        Raises:
            ValueError: as in `check`.
        """
        self.check(grid)
        targets = union(torch.stack(list(self._bands(batch_size, grid, generator)), 1))
        share = between(self.context_scale, torch.rand(batch_size, generator=generator))
        sizes = block_sizes(share, torch.full_like(share, grid[0] / grid[1]), grid)
        context = block_maps(positions(sizes, grid, generator), sizes, grid)
        return [Masks(context & ~union(targets), targets)]

    def _axes(self) -> Sequence[int]:
        """Axes of the grid along which bands are narrow."""
        return range(len(AXES)) if self.axis == "both" else [AXES.index(self.axis)]

    def _bands(self, batch_size: int, grid: tuple[int, ...], generator: torch.Generator) -> Iterator[Tensor]:
        """Maps (B, M, *grid), for each axis."""
        for axis in self._axes():
            sizes = torch.tensor(grid, dtype=torch.float32).repeat(batch_size, self.targets, 1)
            share = between(self.target_scale, torch.rand(batch_size, self.targets, generator=generator))
            sizes[..., axis] = _width(share, grid[axis])
            yield block_maps(positions(sizes, grid, generator), sizes, grid)


def _width(share: Tensor, positions: int) -> Tensor:
    return (share * positions).round().clamp(min=1)
