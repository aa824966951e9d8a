"""Transforms of one sample, run by the data workers on bytes (C, H, W).

Randomness comes from torch's global generator, which is seeded for each sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

Transform = Callable[[Tensor], Tensor]


def random_resized_crop(
    size: int | Sequence[int],
    scale: Sequence[float] = (0.3, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
    horizontal_flip: float = 0.0,
) -> Transform:
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
    crop = v2.RandomResizedCrop(pair(size), scale=(low, high), ratio=(narrow, wide), antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip(horizontal_flip)]) if horizontal_flip else crop


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
