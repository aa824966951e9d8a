"""Transforms of clips (C, T, H, W), and erasing on the device.

For evaluation `jepa.data.center_crop` takes clips as it takes pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from jepa.data.normalize import Normalize
from jepa.data.transforms import TRIES, RandomResizedCrop, Transform, pair, random_resized_crop
from jepa.types import JepaBatch


def clip_random_resized_crop(
    size: int | Sequence[int],
    scale: Sequence[float] = (0.3, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
    horizontal_flip: float = 0.0,
    motion_shift: bool = False,
    antialias: bool = True,
) -> Transform:
    """The same random part of every frame, resized with bilinear interpolation.

    Args:
        size: pixels of the result, one number or (height, width).
        scale: range of the part's share of the area.
        ratio: range of its aspect ratio, width / height.
        horizontal_flip: probability of mirroring the clip. Leave it at 0 where left and right mean something.
        motion_shift: draw one part for the first and one for the last frame, and move from one to the other.
        antialias: average over the pixels that a smaller result leaves out; False as in the published V-JEPA.

    Raises:
        ValueError: a range or the probability is impossible.
    """
    crop = random_resized_crop(size, scale, ratio, horizontal_flip)
    return _ClipRandomResizedCrop(crop, motion_shift, antialias)


class _ClipRandomResizedCrop:
    def __init__(self, crop: RandomResizedCrop, motion_shift: bool, antialias: bool) -> None:
        self.crop, self.motion_shift, self.antialias = crop, motion_shift, antialias

    def __call__(self, x: Tensor) -> Tensor:
        """x: (C, T, H, W) -> (C, T, *size)."""
        frames = x.transpose(0, 1)
        height, width = x.shape[-2:]
        if self.motion_shift:
            first, last = self.crop.box(height, width), self.crop.box(height, width)
            steps = (torch.linspace(a, b, len(frames)).int().tolist() for a, b in zip(first, last, strict=True))
            boxes = list(zip(*steps, strict=True))
            parts = [self._resized(frames[t : t + 1], box) for t, box in enumerate(boxes)]
            resized = torch.cat(parts)
        else:
            resized = self._resized(frames, self.crop.box(height, width))
        clip = resized.transpose(0, 1).contiguous()
        flip = self.crop.horizontal_flip
        return clip.flip(-1) if flip and torch.rand(()) < flip else clip

    def _resized(self, frames: Tensor, box: Sequence[int]) -> Tensor:
        """(T, C, H, W) -> (T, C, *size)."""
        top, left, height, width = box
        part = frames[..., top : top + height, left : left + width]
        return interpolate(part, self.crop.size, mode="bilinear", antialias=self.antialias)


def side_crops(size: int | Sequence[int], views: int = 3) -> Transform:
    """Parts of the clip side by side, for evaluation: resized to just cover `size`, then cut along the longer side.

    Args:
        size: pixels of each view, one number or (height, width).
        views: how many, evenly from one end to the other; one is the middle. Probes average over them.

    Raises:
        ValueError: no views.
    """
    if views < 1:
        raise ValueError(f"views must be at least 1, got {views}")
    return _SideCrops(pair(size), views)


class _SideCrops:
    def __init__(self, size: list[int], views: int) -> None:
        self.size, self.views = size, views

    def __call__(self, x: Tensor) -> Tensor:
        """x: (C, T, H, W) -> (views, C, T, *size)."""
        height, width = x.shape[-2:]
        factor = max(self.size[0] / height, self.size[1] / width)
        whole = [max(round(height * factor), self.size[0]), max(round(width * factor), self.size[1])]
        resized = interpolate(x.transpose(0, 1), whole, mode="bilinear", antialias=True).transpose(0, 1)
        room = [whole[0] - self.size[0], whole[1] - self.size[1]]
        parts = [k / (self.views - 1) if self.views > 1 else 0.5 for k in range(self.views)]
        corners = [(round(part * room[0]), round(part * room[1])) for part in parts]
        return torch.stack([resized[..., a : a + self.size[0], b : b + self.size[1]] for a, b in corners])


class RandomErasing(Normalize):
    """Normalises, then fills a random box with noise: the same box in all frames of a clip, other noise in each.

    For data.batch_transform. Only training erases; features and probes normalise as without it. Boxes are drawn on the
    device, by each process for its share of the batch: another number of processes erases other boxes.

    Args:
        mean, std: see `Normalize`.
        probability: of erasing a sample.
        area: range of the box's share of a frame.
        ratio: range of its aspect ratio, height / width.

    Raises:
        ValueError: see `Normalize`; a range or the probability is impossible.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        probability: float = 0.25,
        area: Sequence[float] = (0.02, 1 / 3),
        ratio: Sequence[float] = (0.3, 10 / 3),
    ) -> None:
        super().__init__(mean, std)
        (low, high), (wide, narrow) = area, ratio
        if not 0 <= probability <= 1 or not 0 < low <= high <= 1 or not 0 < wide <= narrow:
            raise ValueError(
                f"need a probability in 0..1, 0 < area[0] <= area[1] <= 1 and 0 < ratio[0] <= ratio[1]; "
                f"got {probability}, {list(area)} and {list(ratio)}"
            )
        self.probability, self.area, self.ratio = probability, (low, high), (wide, narrow)

    def forward(self, batch: JepaBatch) -> JepaBatch:
        """The batch with each of its inputs normalised and erased."""
        return batch.map_inputs(lambda x: self.erase(self.normalize(x)))

    def erase(self, x: Tensor) -> Tensor:
        """x: (B, C, [T,] H, W) floating point, changed in place."""
        for sample in x:
            if torch.rand(()) < self.probability and (box := self.box(*x.shape[-2:])):
                top, left, height, width = box
                sample[..., top : top + height, left : left + width].normal_()
        return x

    def box(self, height: int, width: int) -> tuple[int, int, int, int] | None:
        """(top, left, height, width); None if no try fits."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for share, shape, down, right in torch.rand(TRIES, 4).tolist():
            area = height * width * (self.area[0] + share * (self.area[1] - self.area[0]))
            ratio = math.exp(low + shape * (high - low))
            h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < h < height and 0 < w < width:
                return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
        return None
