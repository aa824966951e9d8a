"""The sampler of the published I-JEPA code, as a distribution: what `MultiBlock(compat=True)` draws.

It differs from the paper's text (Assran et al. 2023, appendix A.1), and differently for each batch size:

- one uniform number gives both scale and aspect, so that only one line through their rectangle is drawn from;
- it is drawn once for all targets of a batch of one process, and once for its context blocks;
- sides stay below the grid's and the bound of positions is exclusive, so that no block reaches the last row or column;
- contexts are cut to the shortest of their batch by dropping the end of the raster order, the bottom rows.

Sizes and positions are separate functions, because the published code draws them from different generators.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from jepa.maskers.geometry import Range, between, block_maps, tokens, union
from jepa.types import Masks

TRIES = 20  # failed positions of a context block before it may overlap one target more


def draw_sizes(
    batches: int,
    target_scale: Range,
    target_aspect: Range,
    context_scale: Range,
    grid: tuple[int, ...],
    generator: torch.Generator,
) -> Tensor:
    """Sizes (batches, 2, 2): for each batch the (height, width) of its targets and of its context blocks."""
    uniform = torch.rand(batches, 2, generator=generator).double()
    target = block_sizes(uniform[:, 0], target_scale, target_aspect, grid)
    return torch.stack((target, block_sizes(uniform[:, 1], context_scale, (1, 1), grid)), 1)


def block_sizes(uniform: Tensor, scale: Range, aspect: Range, grid: tuple[int, ...]) -> Tensor:
    """Sizes (..., 2) from numbers (...) in [0, 1), float64, each deciding both scale and aspect."""
    area = (prod(grid) * between(scale, uniform)).trunc()
    ratio = between(aspect, uniform)
    sides = torch.stack(((area * ratio).sqrt(), (area / ratio).sqrt()), -1).round()
    return sides.minimum(torch.tensor(grid) - 1)


@lru_cache(maxsize=256)
def smallest_area(scale: Range, aspect: Range, grid: tuple[int, ...]) -> int:
    """Fewest tokens of a block: the minimum of `block_sizes` over all numbers in [0, 1)."""

    def crossing(limits: Range, value: Tensor) -> Tensor:
        """Numbers in [0, 1) at which `between` passes a value."""
        at = ((value - limits[0]) / (limits[1] - limits[0])).flatten()
        return at[(at > 0) & (at < 1)]

    # the size is constant between the numbers where the area or a rounded side changes
    area = torch.arange(int(prod(grid) * scale[0]), int(prod(grid) * scale[1]) + 2, dtype=torch.float64)
    half = torch.arange(max(grid) + 1, dtype=torch.float64)[:, None] + 0.5
    edges = torch.cat(
        (
            torch.tensor([0.0, 1.0], dtype=torch.float64),
            crossing(scale, area / prod(grid)),
            crossing(aspect, half**2 / area),
            crossing(aspect, area / half**2),
        )
    ).unique()
    inside = torch.cat((edges[:-1], (edges[:-1] + edges[1:]) / 2))
    return int(block_sizes(inside, scale, aspect, grid).prod(-1).min())


def check(
    target_scale: Range, target_aspect: Range, context_scale: Range, min_context: int, grid: tuple[int, ...]
) -> None:
    """Refuse settings with which the published sampler would try forever.

    Raises:
        ValueError: a target or context block can be too small for `min_context`.
    """
    blocks = {"target": (target_scale, target_aspect), "context": (context_scale, (1.0, 1.0))}
    for name, (scale, aspect) in blocks.items():
        area = smallest_area(scale, aspect, grid)
        if area <= min_context:
            lower = f"lower min_context below {area}, " if area > 1 else ""
            raise ValueError(
                f"min_context={min_context} cannot be kept with compat=True on grid {grid[0]}x{grid[1]}: "
                f"{name}_scale={scale} gives {name} blocks of {area} tokens, and the published sampler tries forever "
                f"unless blocks hold more than min_context; {lower}raise {name}_scale, use a larger grid (a smaller "
                f"patch), or compat=False"
            )


def draw_masks(
    sizes: Tensor, targets: int, min_context: int, grid: tuple[int, ...], generator: torch.Generator
) -> Masks:
    """Masks before truncation for the sizes (B, 2, 2) of each sample's targets and context block.

    A context with too few tokens is placed anew; after every 20 failures it may overlap one target more, the last
    first. Without failures the draws are those of the published code, in its order: image by image, its targets, then
    its context, each its row, then its column.
    """
    sizes = sizes[:, [0] * targets + [1]]  # (B, M + 1, 2)
    maps = _place(sizes, grid, generator)
    context = maps[:, -1] & ~union(maps[:, :-1])
    for failures in range(1, TRIES * targets + 1):
        short = (tokens(context) <= min_context).nonzero().flatten()
        if len(short) == 0:
            break
        kept = targets - failures // TRIES
        context[short] = _place(sizes[short, -1], grid, generator) & ~union(maps[short, :kept])
    return Masks(context, maps[:, :-1].contiguous())


def _place(sizes: Tensor, grid: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Maps (..., *grid) of blocks of `sizes` (..., 2) at random places above the last row and column."""
    room = torch.tensor(grid) - sizes.long()
    return block_maps(draw_numbers(room.numel(), generator).view(room.shape) % room, sizes, grid)


def draw_numbers(count: int, generator: torch.Generator) -> Tensor:
    """(count,) the 32-bit numbers that as many calls of `torch.randint` would take from a CPU generator.

    `torch.randint(n, (1,))` is the generator's next 32-bit number modulo n. A 64-bit number is made of two of them,
    the first in its upper half; with an odd count, one is thrown away.
    """
    both = torch.empty(-(-count // 2), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    return (torch.stack((both >> 32, both), -1) & 0xFFFFFFFF).flatten()[:count]


def truncate(masks: Masks, batches: Tensor) -> Masks:
    """Cut every context to the shortest of its batch, keeping the first in raster order; `batches` (B,) ascending."""
    return Masks(cut(masks.context, batches), masks.targets)


def cut(maps: Tensor, batches: Tensor, most: int | None = None) -> Tensor:
    """Maps (B, *grid) with as many cells as the one of their batch that has fewest, and at most `most`: the first."""
    shortest = torch.zeros(int(batches[-1]) + 1, dtype=torch.int64)
    shortest.scatter_reduce_(0, batches, tokens(maps).long(), "amin", include_self=False)
    kept = shortest if most is None else shortest.clamp(max=most)
    rank = maps.flatten(1).cumsum(1)
    return maps & (rank <= kept[batches][:, None]).view_as(maps)
