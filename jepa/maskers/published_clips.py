"""The sampler of the published V-JEPA code, as a distribution: what `MultiBlock3D(compat=True)` draws.

It differs for each batch size:

- three uniform numbers, drawn once for a batch of one process, give the size of all blocks of all its samples; every
  task uses the same three, because their generators count from the same start;
- contexts and targets are cut to the shortest of their batch by dropping the end of the raster order, the latest time
  steps.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, prod

import torch
from torch import Tensor

from jepa.maskers.geometry import Range, between, union_of_boxes
from jepa.maskers.published import cut, draw_numbers
from jepa.types import Masks

TRIES = 100  # of the positions of a sample whose context is empty, which the published code draws without end


def draw_uniform(batches: int, generator: torch.Generator) -> Tensor:
    """(batches, 3) numbers in [0, 1), float64, that decide time steps, area and aspect."""
    return torch.rand(batches, 3, generator=generator).double()


def steps(share: float, duration: int) -> int:
    """Time steps of a block that spans a share of them."""
    return max(1, int(duration * share))


def block_size(uniform: Tensor, spatial: Range, temporal: Range, aspect: Range, grid: tuple[int, ...]) -> Tensor:
    """Sizes (..., 3), time first, from numbers (..., 3)."""
    duration, rows, columns = grid
    time = (duration * between(temporal, uniform[..., 0])).trunc()
    area = (rows * columns * between(spatial, uniform[..., 1])).trunc()
    ratio = between(aspect, uniform[..., 2])
    sizes = torch.stack((time, (area * ratio).sqrt().round(), (area / ratio).sqrt().round()), -1)
    return sizes.clamp(min=1).minimum(torch.tensor(grid))


def can_fill(scale: float, aspect: Range, grid: tuple[int, int]) -> bool:
    """Whether a block of this scale can cover all rows and columns."""
    rows, columns = grid
    area = int(prod(grid) * scale)
    low = 0.0 if rows == 1 else (rows - 0.5) ** 2 / max(area, 1e-9)  # aspects that make a side round up to the grid's
    high = inf if columns == 1 else area / (columns - 0.5) ** 2
    return max(low, aspect[0]) <= min(high, aspect[1])


def draw_masks(
    sizes: Tensor,
    kept_steps: int,
    grid: tuple[int, ...],
    generator: torch.Generator,
    last_resort: Callable[[Tensor, tuple[int, ...], torch.Generator], Tensor],
) -> Masks:
    """Masks before truncation for blocks of `sizes` (B, M, 3); what comes after `kept_steps` is a target.

    Positions of a sample without context are drawn anew, at last by `last_resort`. Without such samples the draws are
    those of the published code, in its order: clip by clip, block by block, its row, its column, its time step.
    """

    def place(sizes: Tensor) -> Tensor:
        numbers = draw_numbers(sizes.numel(), generator).view(sizes.shape)[..., [2, 0, 1]]
        return numbers % (torch.tensor(grid) - sizes.long() + 1)

    def hide(sizes: Tensor, corners: Tensor) -> Tensor:
        hidden = union_of_boxes(corners, sizes, grid)
        hidden[:, kept_steps:] = True
        return hidden

    hidden = hide(sizes, place(sizes))
    for attempt in range(TRIES):
        full = hidden.flatten(1).all(1).nonzero().flatten()
        if len(full) == 0:
            break
        corners = place(sizes[full]) if attempt < TRIES - 1 else last_resort(sizes[full], grid, generator)
        hidden[full] = hide(sizes[full], corners)
    return Masks(~hidden, hidden[:, None])


def truncate(masks: Masks, batches: Tensor, max_context: int | None = None) -> Masks:
    """Cut every context and every target set to the shortest of its batch, keeping the first in raster order."""
    return Masks(cut(masks.context, batches, max_context), cut(masks.targets[:, 0], batches)[:, None])
