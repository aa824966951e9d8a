"""Pictures of what a run does."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from jepa.types import Indices, JepaBatch

CONTEXT, TARGET, MARGIN = (66, 133, 244), (234, 88, 12), 6
HIDDEN = 0.18  # brightness of what an encoder does not see


def mask_sheet(batch: JepaBatch, batch_transform: Callable[[JepaBatch], JepaBatch], samples: int = 6) -> Image.Image:
    """One row per sample: the input, what the context encoder sees, and each target set of the first task.

    Args:
        batch: as its dataset made it; inputs of two spatial axes.
        batch_transform: brings the inputs to the encoder's range.
        samples: rows at the most.
    """
    inputs = batch_transform(batch).target.x[:samples]
    task = batch.tasks[0]
    assert isinstance(task.query, Indices)
    assert task.context.keep is not None
    pictures = to_rgb(inputs)
    size = pictures.shape[-2:]
    context = enlarge(task.context.keep.maps()[: len(pictures)], size)
    targets = enlarge(task.query.maps(), size).unflatten(0, (len(batch.target.x), -1))[: len(pictures)]
    rows = []
    for picture, seen, asked in zip(pictures, context, targets, strict=True):
        cells = [picture, shade(picture, seen), *(outline(shade(picture, block), block) for block in asked)]
        rows.append(torch.cat([F.pad(cell, (0, MARGIN, 0, MARGIN), value=1.0) for cell in cells], dim=2))
    sheet = torch.cat(rows, dim=1)
    zoom = max(1, round(96 / size[-1]))
    image = Image.fromarray((sheet.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
    image = image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
    return titled(image, ["input", "context", *(f"target {i + 1}" for i in range(targets.shape[1]))])


def to_rgb(x: Tensor) -> Tensor:
    """(B, C, H, W) of any range and number of channels -> (B, 3, H, W) in [0, 1], stretched per sample."""
    x = x.detach().float().cpu()
    x = x[:, :3] if x.shape[1] >= 3 else x[:, :1].expand(-1, 3, -1, -1)
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return (x - low) / (high - low).clamp_min(1e-6)


def enlarge(maps: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Boolean maps (S, rows, columns) -> (S, H, W)."""
    assert maps.ndim == 3
    assert prod(size)
    return F.interpolate(maps[:, None].float(), size=tuple(size), mode="nearest")[:, 0].bool()


def shade(picture: Tensor, seen: Tensor) -> Tensor:
    """Darken what is not seen: (3, H, W), (H, W) -> (3, H, W)."""
    return torch.where(seen, picture, picture * HIDDEN)


def outline(picture: Tensor, block: Tensor) -> Tensor:
    """A frame in the target colour around a block."""
    inner = -F.max_pool2d(-block[None, None].float(), 3, stride=1, padding=1)[0, 0] > 0
    colour = torch.tensor(TARGET).view(3, 1, 1) / 255
    return torch.where(block & ~inner, colour, picture)


def titled(image: Image.Image, titles: list[str]) -> Image.Image:
    """The image below a line of column titles."""
    out = Image.new("RGB", (image.width, image.height + 18), "white")
    out.paste(image, (0, 18))
    draw = ImageDraw.Draw(out)
    for number, title in enumerate(titles):
        draw.text((number * image.width / len(titles) + 2, 3), title, fill="black")
    return out
