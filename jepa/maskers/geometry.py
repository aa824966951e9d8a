"""Blocks on grids: their sizes, their places and their maps. All maskers of this room are built from these.

Sizes and corners are float tensors (..., 2) of whole numbers, rows first, or (..., 3), time before them: float because
they come from and go back into real arithmetic, and whole numbers of this size are exact in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

Range = tuple[float, float]
ROUNDING = 1e-5  # relative; safely more than the float32 error of a block's side


def as_range(name: str, value: Sequence[float], most: float = 1e6) -> Range:
    """The pair (low, high) of a setting.

    Raises:
        ValueError: naming the setting, unless 0 < low <= high <= most.
    """
    pair = tuple(value) if isinstance(value, Sequence) else (value,)
    if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= most:
        raise ValueError(f"{name} must be (low, high) with 0 < low <= high <= {most:g}, got {value}")
    return float(pair[0]), float(pair[1])


def as_count(name: str, value: int) -> int:
    """A setting that counts something.

    Raises:
        ValueError: naming the setting, unless it is a whole number of at least 1.
    """
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value}")
    return value


def require_2d(masker: object, grid: Sequence[int]) -> tuple[int, int]:
    """The (rows, columns) of a 2-D grid.

    Raises:
        ValueError: `grid` is not 2-D, or has an empty axis.
    """
    if len(grid) != 2 or min(grid) < 1:
        raise ValueError(f"{type(masker).__name__} draws blocks on a 2-D grid (rows, columns), got grid {tuple(grid)}")
    return grid[0], grid[1]


def require_3d(masker: object, grid: Sequence[int]) -> tuple[int, int, int]:
    """The (time, rows, columns) of a 3-D grid.

    Raises:
        ValueError: `grid` is not 3-D, or has an empty axis.
    """
    if len(grid) != 3 or min(grid) < 1:
        raise ValueError(f"{type(masker).__name__} needs a 3-D grid (time, rows, columns), got grid {tuple(grid)}")
    return grid[0], grid[1], grid[2]


def between(limits: Range | Tensor, uniform: Tensor) -> Tensor:
    """Numbers in [0, 1) stretched to (low, high); `limits` may also be a tensor (2, ...) that broadcasts."""
    low, high = limits
    return low + uniform * (high - low)


def block_sizes(scale: Tensor, aspect: Tensor, grid: Sequence[int]) -> Tensor:
    """Sizes (..., 2) of blocks that cover `scale` of the grid with `aspect` = height / width, both (...).

    A side that would leave the grid is cut to it, and the other side grows to keep the area. Each side is rounded, and
    is at least 1.
    """
    rows, columns = grid
    area = scale * (rows * columns)
    height = (area * aspect).sqrt().maximum(area / columns).clamp(max=rows)
    return torch.stack((height, area / height), -1).round().clamp(min=1)


def largest_sizes(scale: float, aspect: Range, grid: Sequence[int]) -> list[tuple[int, int]]:
    """Every height that `block_sizes` can give at `scale` with an aspect in the range, with its largest width.

    Ascending in height, descending in width. A side on the edge of being rounded up counts as rounded up, so no block
    of this scale or a smaller one is larger than all of these.
    """
    scale, low, high = scale * (1 + ROUNDING), aspect[0] * (1 - ROUNDING), aspect[1] * (1 + ROUNDING)
    (shortest, _), (tallest, _) = _sizes(scale, (low, high), grid)
    heights = range(shortest + 1, tallest + 1)
    flattest = [low, *(max(low, (h - 0.5) ** 2 / (scale * prod(grid)) * (1 - ROUNDING)) for h in heights)]
    widths = [width for _, width in _sizes(scale, flattest, grid)]
    return list(zip((shortest, *heights), widths, strict=True))


def smallest_size(scale: float, aspect: float, grid: Sequence[int]) -> tuple[int, int]:
    """The (height, width) of `block_sizes`, where a side on the edge of being rounded up counts as rounded down."""
    return _sizes(scale * (1 - ROUNDING), [aspect], grid)[0]


def _sizes(scale: float, aspects: Sequence[float], grid: Sequence[int]) -> list[tuple[int, int]]:
    sizes = block_sizes(torch.tensor(scale, dtype=torch.float64), torch.tensor(aspects, dtype=torch.float64), grid)
    return [(height, width) for height, width in sizes.long().tolist()]


def positions(sizes: Tensor, grid: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """First corners (..., axes) for blocks of `sizes` (..., axes); any place inside the grid is equally likely."""
    room = torch.tensor(grid) - sizes
    return (torch.rand(sizes.shape, generator=generator) * (room + 1)).floor()


@lru_cache(maxsize=64)
def _cells_before(grid: tuple[int, ...], axis: int) -> Tensor:
    """(n + 1, G) boolean: entry k marks the cells that lie before row (or column) k."""
    position = torch.arange(grid[0] * grid[1]) // grid[1] if axis == 0 else torch.arange(grid[1]).repeat(grid[0])
    return position < torch.arange(grid[axis] + 1)[:, None]


def block_maps(corners: Tensor, sizes: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Boolean maps (..., *grid) of blocks given by corners (..., 2) and sizes (..., 2)."""
    starts, ends = corners.long(), (corners + sizes).long()
    inside = []
    for axis in (0, 1):
        before = _cells_before(grid, axis)  # looking rows of cells up is several times faster than comparing each cell
        end, start = ends[..., axis].flatten(), starts[..., axis].flatten()
        inside.append(before.index_select(0, end).logical_xor_(before.index_select(0, start)))
    return inside[0].logical_and_(inside[1]).view(*corners.shape[:-1], *grid)


def union_of_boxes(corners: Tensor, sizes: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Union (B, *grid) of the M boxes of each sample on a 3-D grid, given by corners and sizes (B, M, 3)."""
    areas = block_maps(corners[..., 1:], sizes[..., 1:], grid[1:])  # (B, M, rows, columns)
    if bool((sizes[..., 0] == grid[0]).all()):  # through all time steps, as published: the same at each of them
        return union(areas)[:, None].repeat(1, grid[0], 1, 1)
    step, start = torch.arange(grid[0]), corners[..., :1]
    spans = (step >= start) & (step < start + sizes[..., :1])  # (B, M, time)
    joined = torch.zeros(len(sizes), *grid, dtype=torch.bool)
    for span, area in zip(spans.unbind(1), areas.unbind(1), strict=True):
        joined |= span[:, :, None, None] & area[:, None]
    return joined


def union(maps: Tensor) -> Tensor:
    """Union (B, *grid) of the M maps (B, M, *grid) of each sample; nothing where M = 0."""
    joined = maps.new_zeros((maps.shape[0], *maps.shape[2:]))
    for one in maps.unbind(1):
        joined |= one
    return joined


def tokens(maps: Tensor) -> Tensor:
    """(B,) true cells of each of the maps (B, *grid)."""
    return maps.flatten(1).sum(1, dtype=torch.int32)
