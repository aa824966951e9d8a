"""Multi-block masking of I-JEPA (Assran et al. 2023, section 3 and appendix A.1)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from jepa.interfaces import Masker
from jepa.maskers import published
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
    smallest_size,
    tokens,
    union,
)
from jepa.types import Masks

TRIES = 10  # draws of positions before the fallback


class MultiBlock(Masker):
    """A few target blocks, and one large context block without the tokens of the targets.

    Every block of every sample draws its own scale, aspect and place, each uniformly, and any place inside the grid is
    equally likely. The context block has the grid's own aspect. Nothing is cut to the length of another sample.

    Where fewer than `min_context` tokens are left, the positions of that sample are drawn anew. After the last try its
    targets go into one corner of the grid, drawn at random, and its context block into the opposite corner; `check`
    refuses settings where that would not be enough.

    Args:
        targets: target blocks of a sample, M.
        target_scale: (low, high) share of the grid that a target block covers.
        target_aspect: (low, high) height / width of a target block, in tokens.
        context_scale: (low, high) share of the grid that the context block covers before targets are removed.
        min_context: fewest context tokens. With `compat` the comparison is strict, as published (there: 10): a context
            holds at least one token more, and so does every target.
        compat: draw as the published code does, see `jepa.maskers.published`: sizes shared by a batch, no block in the
            last row or column, contexts cut to the shortest of their batch.
        compat_batch: size of those batches, which was the batch of one process; None: the whole batch handed in.

    Raises:
        ValueError: a setting is out of its range.
    """

    def __init__(
        self,
        *,
        targets: int = 4,
        target_scale: Range = (0.15, 0.2),
        target_aspect: Range = (0.75, 1.5),
        context_scale: Range = (0.85, 1.0),
        min_context: int = 10,
        compat: bool = False,
        compat_batch: int | None = None,
    ) -> None:
        self.targets = as_count("targets", targets)
        self.target_scale = as_range("target_scale", target_scale, most=1)
        self.target_aspect = as_range("target_aspect", target_aspect)
        self.context_scale = as_range("context_scale", context_scale, most=1)
        self.min_context = as_count("min_context", min_context)
        if compat_batch is not None and not compat:
            raise ValueError(f"compat_batch={compat_batch} has no effect without compat=True")
        self.compat = compat
        self.compat_batch = None if compat_batch is None else as_count("compat_batch", compat_batch)

    def check(self, grid: tuple[int, ...]) -> None:
        """Refuse a grid on which `min_context` tokens cannot be promised.

        Raises:
            ValueError: the grid is not 2-D, or naming the setting, the numbers and what would work.
        """
        rows, columns = require_2d(self, grid)
        if self.compat:
            published.check(
                self.target_scale, self.target_aspect, self.context_scale, self.min_context, (rows, columns)
            )
            return
        left = fewest_left(self.targets, self.target_scale[1], self.target_aspect, self.context_scale[0], grid)
        if left < self.min_context:
            lower = f"lower min_context to {left} or " if left > 0 else ""
            raise ValueError(
                f"min_context={self.min_context} cannot be promised on grid {rows}x{columns}: {self.targets} targets "
                f"of target_scale up to {self.target_scale[1]:g} can leave {left} tokens of a context block of "
                f"context_scale {self.context_scale[0]:g}; {lower}lower target_scale, raise context_scale or use a "
                f"larger grid (a smaller patch)"
            )

    def sample(self, batch_size: int, grid: tuple[int, ...], generator: torch.Generator) -> list[Masks]:
        """One task: context (B, rows, columns) and targets (B, M, rows, columns).

        Raises:
            ValueError: as in `check`.
        """
        self.check(grid)
        if self.compat:
            return [self._published(batch_size, grid, generator)]
        sizes = self._sizes(batch_size, grid, generator)
        maps = block_maps(positions(sizes, grid, generator), sizes, grid)  # (B, M + 1, *grid)
        context = _carve(maps)
        for place in [positions] * (TRIES - 1) + [_opposite_corners]:
            short = (tokens(context) < self.min_context).nonzero().flatten()
            if len(short) == 0:
                break
            maps[short] = block_maps(place(sizes[short], grid, generator), sizes[short], grid)
            context[short] = _carve(maps[short])
        return [Masks(context, maps[:, : self.targets].contiguous())]

    def _sizes(self, batch_size: int, grid: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Sizes (B, M + 1, 2) of the targets and, last, the context block."""
        own = grid[0] / grid[1]
        scales = torch.tensor([self.target_scale] * self.targets + [self.context_scale]).T  # (2, M + 1): low, high
        aspects = torch.tensor([self.target_aspect] * self.targets + [(own, own)]).T
        uniform = torch.rand(2, batch_size, self.targets + 1, generator=generator)
        return block_sizes(between(scales, uniform[0]), between(aspects, uniform[1]), grid)

    def _published(self, batch_size: int, grid: tuple[int, ...], generator: torch.Generator) -> Masks:
        batches = torch.arange(batch_size) // (self.compat_batch or batch_size)
        sizes = published.draw_sizes(
            int(batches[-1]) + 1, self.target_scale, self.target_aspect, self.context_scale, grid, generator
        )
        masks = published.draw_masks(sizes[batches], self.targets, self.min_context, grid, generator)
        return published.truncate(masks, batches)


def _carve(maps: Tensor) -> Tensor:
    """Context (B, *grid) from maps (B, M + 1, *grid): the last block without the others."""
    return maps[:, -1] & ~union(maps[:, :-1])


def _opposite_corners(sizes: Tensor, grid: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Positions (B, M + 1, 2): the targets in one corner of the grid, drawn at random, the last block in the other."""
    far = torch.rand(len(sizes), 1, 2, generator=generator) < 0.5
    last = torch.arange(sizes.shape[1])[:, None] == sizes.shape[1] - 1
    return (far ^ last) * (torch.tensor(grid) - sizes)


@lru_cache(maxsize=256)
def fewest_left(targets: int, target_scale: float, aspect: Range, context_scale: float, grid: tuple[int, ...]) -> int:
    """Fewest context tokens when targets up to this scale lie in one corner, the context block in the opposite one.

    The worst case over all sizes: the smallest context block, and those blocks of the largest scale whose union
    reaches furthest into it.
    """
    height, width = smallest_size(context_scale, grid[0] / grid[1], grid)
    reach = [
        (max(0, h + height - grid[0]), max(0, w + width - grid[1]))
        for h, w in largest_sizes(target_scale, aspect, grid)
    ]
    hidden = {0: 0}  # columns reached so far: most tokens hidden by blocks that reach no further
    for _ in range(targets):
        grown = dict(hidden)
        for h, w in reach:  # the wider a block the lower it is, so it adds its own height to the columns beyond
            for columns, area in hidden.items():
                if w > columns:
                    grown[w] = max(grown.get(w, 0), area + (w - columns) * h)
        hidden = grown
    return height * width - max(hidden.values())
