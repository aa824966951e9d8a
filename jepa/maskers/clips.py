"""Masks for clips, on a grid (time, rows, columns): V-JEPA's blocks, random tubes, and the future from the past."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from jepa.interfaces import Masker
from jepa.maskers import published_clips
from jepa.maskers.ablations import RandomPatches
from jepa.maskers.geometry import (
    Range,
    as_count,
    as_range,
    between,
    block_maps,
    block_sizes,
    largest_sizes,
    positions,
    require_3d,
    union,
    union_of_boxes,
)
from jepa.types import Masks

TRIES = 10  # draws of positions before the fallback


@dataclass(frozen=True, kw_only=True)
class BlockTask:
    """One of the prediction problems of `MultiBlock3D`.

    Attributes:
        blocks: target blocks of a sample.
        spatial_scale: (low, high) share of rows times columns that a block covers.
        temporal_scale: (low, high) share of the time steps that a block spans.
        aspect: (low, high) height / width of a block, in tokens.
        max_temporal_keep: share of the time steps, from the first on, that a context may lie in; what is later is a
            target.
        max_context: most tokens of a context; None: no limit. Others are left out at random (with `compat` the last).

    Raises:
        ValueError: one of them is out of its range.
    """

    blocks: int
    spatial_scale: Range
    temporal_scale: Range = (1.0, 1.0)
    aspect: Range = (0.75, 1.5)
    max_temporal_keep: float = 1.0
    max_context: int | None = None
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # a recipe's typo is refused

    def __post_init__(self) -> None:
        as_count("blocks", self.blocks)
        as_range("spatial_scale", self.spatial_scale, most=1)
        as_range("temporal_scale", self.temporal_scale, most=1)
        as_range("aspect", self.aspect)
        as_range("max_temporal_keep", (self.max_temporal_keep, 1.0), most=1)
        if self.max_context is not None:
            as_count("max_context", self.max_context)

    def steps(self, grid: Sequence[int]) -> int:
        """Time steps that a context may lie in."""
        return max(1, int(grid[0] * self.max_temporal_keep))


PUBLISHED = {
    "short": BlockTask(blocks=8, spatial_scale=(0.15, 0.15)),
    "long": BlockTask(blocks=2, spatial_scale=(0.7, 0.7)),
}


class MultiBlock3D(Masker):
    """Multi-block masking of clips (V-JEPA, Bardes et al. 2024, section 3): several tasks for each sample. The targets
    of a task are the union of its blocks, one set; its context is all the rest.

    Every block of every sample draws its own scales, aspect and place, each uniformly, and any place inside the grid is
    equally likely. Nothing is cut to the length of another sample. Where nothing is left for a context, the positions
    of that sample are drawn anew. After the last try its blocks go into one spatial corner, drawn at random, and to the
    end of the clip; `check` refuses settings where even that could leave nothing.

    Args:
        tasks: by name; the i-th is told apart by a predictor's i-th mask token.
        compat: draw as the published code does, see `jepa.maskers.published_clips`: block sizes shared by a batch,
            contexts and targets cut to the shortest of their batch, which drops the latest time steps.
        compat_batch: size of those batches, which was the batch of one process; None: the whole batch handed in.

    Raises:
        ValueError: no task, or a setting out of its range.
    """

    def __init__(
        self, *, tasks: Mapping[str, BlockTask] = PUBLISHED, compat: bool = False, compat_batch: int | None = None
    ) -> None:
        if not tasks:
            raise ValueError("tasks is empty: MultiBlock3D needs at least one")
        if compat_batch is not None and not compat:
            raise ValueError(f"compat_batch={compat_batch} has no effect without compat=True")
        self.tasks = dict(tasks)
        self.compat = compat
        self.compat_batch = None if compat_batch is None else as_count("compat_batch", compat_batch)

    def check(self, grid: tuple[int, ...]) -> None:
        """Refuse a grid that one block can fill.

        Raises:
            ValueError: the grid is not 3-D, or naming the task, its setting and what would work.
        """
        duration, rows, columns = require_3d(self, grid)
        for name, task in self.tasks.items():
            longest = published_clips.steps(task.temporal_scale[1], duration) if self.compat else None
            whole = duration == (longest or _steps(torch.tensor(task.temporal_scale[1]), duration))
            if whole and _can_fill(self.compat, task.spatial_scale[1], task.aspect, (rows, columns)):
                raise ValueError(
                    f"task {name!r}: a block of spatial_scale={task.spatial_scale} and temporal_scale="
                    f"{task.temporal_scale} can fill the grid {duration}x{rows}x{columns} and leave no context; lower "
                    f"the upper bound of one, or use a larger grid (a smaller patch)"
                )

    def sample(self, batch_size: int, grid: tuple[int, ...], generator: torch.Generator) -> list[Masks]:
        """For each task the context (B, *grid) and the targets (B, 1, *grid).

        Raises:
            ValueError: as in `check`.
        """
        self.check(grid)
        if self.compat:
            return self._published(batch_size, grid, generator)
        return [self._draw(task, batch_size, grid, generator) for task in self.tasks.values()]

    def _draw(self, task: BlockTask, batch_size: int, grid: tuple[int, ...], generator: torch.Generator) -> Masks:
        uniform = torch.rand(3, batch_size, task.blocks, generator=generator)
        sizes = torch.cat(
            (
                _steps(between(task.temporal_scale, uniform[0]), grid[0])[..., None],
                block_sizes(between(task.spatial_scale, uniform[1]), between(task.aspect, uniform[2]), grid[1:]),
            ),
            -1,
        )  # (B, M, 3)

        def hide(sizes: Tensor, corners: Tensor) -> Tensor:
            hidden = union_of_boxes(corners, sizes, grid)
            hidden[:, task.steps(grid) :] = True
            return hidden

        hidden = hide(sizes, positions(sizes, grid, generator))
        for place in [positions] * (TRIES - 1) + [_aside]:
            full = hidden.flatten(1).all(1).nonzero().flatten()
            if len(full) == 0:
                break
            hidden[full] = hide(sizes[full], place(sizes[full], grid, generator))
        context = ~hidden
        if task.max_context is not None:
            context = thinned(context, task.max_context, generator)
        return Masks(context, hidden[:, None])

    def _published(self, batch_size: int, grid: tuple[int, ...], generator: torch.Generator) -> list[Masks]:
        batches = torch.arange(batch_size) // (self.compat_batch or batch_size)
        uniform = published_clips.draw_uniform(int(batches[-1]) + 1, generator)
        drawn = []
        for task in self.tasks.values():
            size = published_clips.block_size(uniform, task.spatial_scale, task.temporal_scale, task.aspect, grid)
            sizes = size[batches, None].expand(-1, task.blocks, -1)
            masks = published_clips.draw_masks(sizes, task.steps(grid), grid, generator, _aside)
            drawn.append(published_clips.truncate(masks, batches, task.max_context))
        return drawn


class RandomTubes(Masker):
    """Places at random, the same ones at all times, as targets; the context is the rest (Tong et al. 2022, VideoMAE).

    Args:
        target_ratio: (low, high) share of the places that are targets; each sample draws its own.

    Raises:
        ValueError: the setting is out of its range.
    """

    def __init__(self, *, target_ratio: Range = (0.9, 0.9)) -> None:
        self.places = RandomPatches(target_ratio=target_ratio)

    def check(self, grid: tuple[int, ...]) -> None:
        """Refuse a grid on which there can be no target or no context.

        Raises:
            ValueError: it is not 3-D, or has too few places.
        """
        self.places.check(require_3d(self, grid)[1:])

    def sample(self, batch_size: int, grid: tuple[int, ...], generator: torch.Generator) -> list[Masks]:
        """One task: context (B, *grid) and targets (B, 1, *grid).

        Raises:
            ValueError: as in `check`.
        """
        duration, rows, columns = require_3d(self, grid)
        (places,) = self.places.sample(batch_size, (rows, columns), generator)
        targets = places.targets[:, :, None].repeat(1, 1, duration, 1, 1)
        return [Masks(~targets[:, 0], targets)]


class Causal(Masker):
    """The context is the first time steps, the targets lie in the later ones.

    Args:
        context: (low, high) share of the time steps that is seen; each sample draws its own. At least one step is, and
            at least one is not.
        blocks: target blocks in the later steps, through all of them; 0: everything there.
        spatial_scale, aspect: of the blocks, as for `MultiBlock3D`.

    Raises:
        ValueError: a setting is out of its range.
    """

    def __init__(
        self,
        *,
        context: Range = (0.5, 0.5),
        blocks: int = 0,
        spatial_scale: Range = (0.15, 0.15),
        aspect: Range = (0.75, 1.5),
    ) -> None:
        self.context = as_range("context", context, most=1)
        self.blocks = as_count("blocks", blocks) if blocks else 0
        self.spatial_scale = as_range("spatial_scale", spatial_scale, most=1)
        self.aspect = as_range("aspect", aspect)

    def check(self, grid: tuple[int, ...]) -> None:
        """Refuse a grid without past or future.

        Raises:
            ValueError: it is not 3-D, or has one time step.
        """
        if require_3d(self, grid)[0] < 2:
            raise ValueError(f"Causal needs at least two time steps, got grid {tuple(grid)}: more frames per clip")

    def sample(self, batch_size: int, grid: tuple[int, ...], generator: torch.Generator) -> list[Masks]:
        """One task: context (B, *grid) and targets (B, 1, *grid).

        Raises:
            ValueError: as in `check`.
        """
        self.check(grid)
        share = between(self.context, torch.rand(batch_size, 1, generator=generator))
        seen = (grid[0] * share).round().clamp(1, grid[0] - 1)
        past = (torch.arange(grid[0]) < seen)[:, :, None, None].expand(batch_size, *grid).clone()
        targets = ~past
        if self.blocks:
            uniform = torch.rand(2, batch_size, self.blocks, generator=generator)
            scale, aspect = between(self.spatial_scale, uniform[0]), between(self.aspect, uniform[1])
            sizes = block_sizes(scale, aspect, grid[1:])
            targets &= union(block_maps(positions(sizes, grid[1:], generator), sizes, grid[1:]))[:, None]
        return [Masks(past, targets[:, None])]


def thinned(context: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Maps (B, *grid) of which at most so many cells are left, drawn at random."""
    chance = torch.rand(context.shape, generator=generator).masked_fill_(~context, 2.0).flatten(1)
    order = chance.argsort(1)[:, :most]
    return torch.zeros_like(context).flatten(1).scatter_(1, order, True).view_as(context) & context


def _steps(scale: Tensor, duration: int) -> Tensor:
    """Time steps of blocks that span `scale` of them, at least one."""
    return (scale * duration).round().clamp(min=1)


@lru_cache(maxsize=256)
def _can_fill(compat: bool, scale: float, aspect: Range, grid: tuple[int, int]) -> bool:
    """Whether a block of this scale can cover all rows and columns."""
    if compat:
        return published_clips.can_fill(scale, aspect, grid)
    return grid in largest_sizes(scale, aspect, grid)


def _aside(sizes: Tensor, grid: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Corners (B, M, 3) of blocks at the end of the clip, in one spatial corner that each sample draws."""
    far = torch.rand(len(sizes), 1, 3, generator=generator) < 0.5
    far[..., 0] = True
    return far * (torch.tensor(grid) - sizes)
