"""Augmentations that make two views of a picture, for methods whose task is to see that they are the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from jepa.data.transforms import pair

Pair = tuple[float, float]


def two_views(
    size: int | Sequence[int],
    scale: Pair = (0.08, 1.0),
    flip: float = 0.5,
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1),
    jitter_share: float = 0.8,
    grey: float = 0.2,
    blur: Pair = (1.0, 0.1),
    solarize: Pair = (0.0, 0.2),
) -> TwoViews:
    """Random crops, flips, colours, blur and solarisation in the order of BYOL (Grill et al. 2020, appendix B), whose
    numbers are the defaults; recipes give those of each method.

    Args:
        size: pixels of a view, one number or (height, width).
        scale: range of a crop's share of the area; its aspect ratio is 3/4 to 4/3.
        flip: probability of mirroring.
        jitter: strength of the changes of brightness, contrast, saturation and hue.
        jitter_share: probability of these.
        grey: probability of losing colour.
        blur: probability of a Gaussian blur of 0.1 to 2 pixels, for the first and the second view.
        solarize: probability of inverting bright pixels, for the first and the second view.

    Raises:
        ValueError: a probability or a range is impossible.
    """
    shares = [flip, jitter_share, grey, *blur, *solarize]
    if not 0 < scale[0] <= scale[1] <= 1 or not all(0 <= share <= 1 for share in shares):
        raise ValueError(
            f"need 0 < scale[0] <= scale[1] <= 1 and probabilities in 0..1, got scale {list(scale)} and {shares}"
        )
    kernel = 2 * (min(pair(size)) // 20) + 1  # about a tenth of the view, odd

    def view(blurred: float, solarized: float) -> Callable[[Tensor], Tensor]:
        return v2.Compose(
            [
                v2.RandomResizedCrop(pair(size), scale, interpolation=InterpolationMode.BICUBIC, antialias=True),
                v2.RandomHorizontalFlip(flip),
                v2.RandomApply([v2.ColorJitter(*jitter)], jitter_share),
                v2.RandomGrayscale(grey),
                v2.RandomApply([v2.GaussianBlur(kernel, (0.1, 2.0))], blurred),
                v2.RandomSolarize(128, solarized),
            ]
        )

    return TwoViews(view(blur[0], solarize[0]), view(blur[1], solarize[1]))


class TwoViews:
    """Both views of a sample, stacked: (C, H, W) -> (2, C, *size). `jepa.data.Views` takes them apart again."""

    def __init__(self, first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor]) -> None:
        self.first, self.second = first, second

    def __call__(self, x: Tensor) -> Tensor:
        return torch.stack((self.first(x), self.second(x)))
