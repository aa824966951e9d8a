"""Two views of each sample, made on the device from what the workers stacked: a moved one, or two augmented ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import atan2, cos, radians, sin

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.data.normalize import Normalize
from jepa.data.transforms import pair
from jepa.nn import motion
from jepa.types import JepaBatch, Task, View


class Saccades(Normalize):
    """The context is the middle of each picture, the target is what is seen there after the task's movement.

    Both are cut from one larger picture, so that no border appears; the larger picture has room for the largest
    movement. Normalises first.

    Args:
        mean, std: see `Normalize`.
        size: pixels of the views, one number or (height, width).
        rotation, translation, scale: the largest that `jepa.maskers.Saccade` draws, in its units.

    Raises:
        ValueError: see `Normalize`.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        size: int | Sequence[int],
        rotation: float = 0.0,
        translation: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        super().__init__(mean, std)
        self.size = pair(size)
        self.limits = (rotation, translation, scale)

    def forward(self, batch: JepaBatch) -> JepaBatch:
        """The views (B, C, *size) of a batch of one task.

        Raises:
            ValueError: the pictures have no room for the largest movement.
            TypeError: the task asks for something else than a movement.
        """
        (task,) = batch.tasks
        if not isinstance(task.query, Tensor) or task.query.shape[1:] != (len(motion.NAMES),):
            raise TypeError("data.batch_transform makes moved views: the masker must be jepa.maskers.Saccade")
        x = self.normalize(batch.target.signal)
        needed = room(self.size, *self.limits)
        if any(found < least for found, least in zip(x.shape[2:], needed, strict=True)):
            raise ValueError(
                f"pictures of {tuple(x.shape[2:])} have no room for views of {tuple(self.size)} that move that far: "
                f"make them at least {needed}, or lower masker.translation, masker.rotation or masker.scale"
            )
        still = torch.zeros_like(task.query)
        context = View(warp(x, still, self.size))
        return replace(
            batch, target=View(warp(x, task.query, self.size)), tasks=[Task(context, task.query, task.share)]
        )

    def raw_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (shape[0], *room(self.size, *self.limits))


def warp(x: Tensor, movement: Tensor, size: Sequence[int]) -> Tensor:
    """What an eye sees that looked at the middle of each picture and then moved; beyond a picture is zero.

    Args:
        x: (B, C, H, W).
        movement: (B, 5), see `jepa.nn.motion`.
        size: (height, width) of the view; its pixels are as large as the picture's.

    Returns:
        (B, C, *size), bilinear; without a movement and where both sizes are even or both odd, pixels exactly.
    """
    view, whole = (x.new_tensor([float(s[-1]), float(s[-2])], dtype=torch.float32) for s in (size, x.shape))
    matrix = motion.linear(movement.float()) * (view / whole[:, None])  # from -1..1 of the view to -1..1 of the picture
    shift = movement[:, 1:3].float() * (2 * min(size) / whole)
    grid = F.affine_grid(torch.cat((matrix, shift[..., None]), 2), [len(x), 1, *size], align_corners=False)
    return F.grid_sample(x, grid.to(x.dtype), mode="bilinear", padding_mode="zeros", align_corners=False)


def room(size: Sequence[int], rotation: float, translation: float, scale: float) -> tuple[int, int]:
    """(height, width) of the smallest picture in which a view of `size` can move that far without seeing its border."""
    height, width = size[0] - 1, size[1] - 1  # between the centres of the outermost pixels

    def reach(along: int, across: int) -> int:
        angle = min(radians(rotation), atan2(across, along))  # at which the corner reaches furthest
        extent = scale * (along * cos(angle) + across * sin(angle)) + 2 * translation * min(size)
        return int(-(-(extent + 1 - 1e-6) // 1))

    return reach(height, width), reach(width, height)


class Views(Normalize):
    """Two augmented views of each sample, stacked as x (2, C, *size) by its transform, on the two sides of a task.

    Args:
        mean, std: see `Normalize`.
        both_ways: each view is predicted from the other, so that a batch of B samples makes 2 B predictions; otherwise
            the first is the target and the second the context, which is enough where both sides are treated alike.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], both_ways: bool = False) -> None:
        super().__init__(mean, std)
        self.both_ways = both_ways

    def forward(self, batch: JepaBatch) -> JepaBatch:
        """The batch with its views apart, normalised.

        With `both_ways` the labels and the index of a sample come twice, as its views do.

        Raises:
            ValueError: samples are not pairs of views.
            TypeError: the task hides something.
        """
        (task,) = batch.tasks
        if not isinstance(task.query, Tensor):
            raise TypeError("data.batch_transform makes pairs of views: the masker must be jepa.maskers.Pair")
        x = batch.target.signal
        if x.ndim < 4 or x.shape[1] != 2:
            raise ValueError(
                f"data.batch_transform needs samples of two views (2, C, *size), "
                f"got {tuple(x.shape[1:])}: set data.transform to one of jepa.data.augment"
            )
        first, second = map(self.normalize, x.unbind(1))
        if not self.both_ways:
            return replace(batch, target=View(first), tasks=[Task(View(second), task.query, task.share)])
        return replace(
            batch,
            target=View(torch.cat((first, second))),
            tasks=[Task(View(torch.cat((second, first))), task.query.repeat(2, 1), task.share)],
            labels={name: torch.cat((label, label)) for name, label in batch.labels.items()},
            index=None if batch.index is None else batch.index.repeat(2),
        )

    def raw_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (2, *shape)
