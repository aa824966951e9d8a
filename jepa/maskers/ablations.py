"""The masks that I-JEPA compares multi-block masking with (Assran et al. 2023, section 9, table 6).

Each asks for the targets from their complement. The defaults are the paper's.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod

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
    largest_sizes,
    positions,
    require_2d,
)
from jepa.types import Masks


class SingleBlock(Masker):
    """One large target block; the context is the rest.

    Args:
        target_scale: (low, high) share of the grid that the block covers.
        target_aspect: (low, high) height / width of the block, in tokens.

    Raises:
        ValueError: a setting is out of its range.
    """

    def __init__(self, *, target_scale: Range = (0.6, 0.6), target_aspect: Range = (0.75, 1.5)) -> None:
        self.target_scale = as_range("target_scale", target_scale, most=1)
        self.target_aspect = as_range("target_aspect", target_aspect)

    def check(self, grid: tuple[int, ...]) -> None:
        """Refuse a grid that a block can fill.

        Raises:
            ValueError: the grid is not 2-D, or the largest block leaves no context.
        """
        require_2d(self, grid)
        if _largest_area(self.target_scale[1], self.target_aspect, grid) == prod(grid):
            raise ValueError(
                f"target_scale={self.target_scale} can fill grid {grid[0]}x{grid[1]} and leave no context; lower its "
                f"upper bound or use a larger grid (a smaller patch)"
            )

    def sample(self, batch_size: int, grid: tuple[int, ...], generator: torch.Generator) -> list[Masks]:
        """One task: context (B, rows, columns) and targets (B, 1, rows, columns).

        Raises:
            ValueError: as in `check`.
        """
        self.check(grid)
        uniform = torch.rand(2, batch_size, 1, generator=generator)
        sizes = block_sizes(between(self.target_scale, uniform[0]), between(self.target_aspect, uniform[1]), grid)
        targets = block_maps(positions(sizes, grid, generator), sizes, grid)
        return [Masks(~targets[:, 0], targets)]


@lru_cache(maxsize=256)
def _largest_area(scale: float, aspect: Range, grid: tuple[int, ...]) -> int:
    return max(height * width for height, width in largest_sizes(scale, aspect, grid))


class Rasterized(Masker):
    """The grid cut into four quadrants: one, drawn at random, is the context; the other three are the targets."""

    def check(self, grid: tuple[int, ...]) -> None:
        """Refuse a grid without four quadrants.

        Raises:
            ValueError: the grid is not 2-D or has fewer than two rows or columns.
        """
        require_2d(self, grid)
        if min(grid) < 2:
            raise ValueError(f"Rasterized cuts the grid into quadrants, which needs at least 2x2, got {tuple(grid)}")

    def sample(self, batch_size: int, grid: tuple[int, ...], generator: torch.Generator) -> list[Masks]:
        """One task: context (B, rows, columns) and targets (B, 3, rows, columns), in raster order.

        Raises:
            ValueError: as in `check`.
        """
        self.check(grid)
        low = torch.cartesian_prod(torch.tensor([0, 1]), torch.tensor([0, 1]))  # (4, 2) which half of each axis
        size = torch.tensor(grid)
        middle = (size + 1) // 2
        quadrants = block_maps(low * middle, torch.where(low == 0, middle, size - middle), grid)
        others = torch.tensor([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
        seen = torch.randint(4, (batch_size,), generator=generator)
        return [Masks(quadrants[seen], quadrants[others[seen]])]


class RandomPatches(Masker):
    """Single tokens at random as targets, on a grid of any number of axes; the context is the rest.

    Args:
        target_ratio: (low, high) share of the tokens that are targets; each sample draws its own.
        targets: sets that a sample's target tokens are dealt out to, M; their sizes differ by at most one.

    Raises:
        ValueError: a setting is out of its range.
    """

    def __init__(self, *, target_ratio: Range = (0.6, 0.6), targets: int = 1) -> None:
        self.target_ratio = as_range("target_ratio", target_ratio, most=1)
        self.targets = as_count("targets", targets)

    def check(self, grid: tuple[int, ...]) -> None:
        """Refuse a grid on which a set can be empty.

        Raises:
            ValueError: there can be fewer target tokens than target sets, or no context.
        """
        size = prod(grid)
        low, high = (int(n) for n in self._hidden(torch.tensor([0.0, 1.0]), size))
        if low < self.targets or high >= size:
            raise ValueError(
                f"target_ratio={self.target_ratio} makes {low} to {high} of the {size} tokens of grid {tuple(grid)} "
                f"targets; {self.targets} target sets and the context need at least one token each"
            )

    def sample(self, batch_size: int, grid: tuple[int, ...], generator: torch.Generator) -> list[Masks]:
        """One task: context (B, *grid) and targets (B, M, *grid).

        Raises:
            ValueError: as in `check`.
        """
        self.check(grid)
        size = prod(grid)
        hidden = self._hidden(torch.rand(batch_size, 1, 1, generator=generator), size)  # (B, 1, 1)
        order = torch.rand(batch_size, 1, size, generator=generator).argsort(stable=True)
        rank = torch.empty_like(order).scatter_(2, order, torch.arange(size).expand_as(order))  # (B, 1, G)
        ends = torch.arange(self.targets + 1)[:, None] * hidden // self.targets  # (B, M + 1, 1)
        targets = (rank >= ends[:, :-1]) & (rank < ends[:, 1:])
        return [Masks((rank >= hidden).view(-1, *grid), targets.view(-1, self.targets, *grid))]

    def _hidden(self, uniform: Tensor, size: int) -> Tensor:
        """Number of target tokens for numbers in [0, 1]."""
        return (between(self.target_ratio, uniform) * size).round().long()
