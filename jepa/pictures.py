"""Pictures of samples, of masks, and of what a model makes of them, on grids of one to three axes.

A picture is (3, H, W), or (3, T, H, W) if it moves. Only `frames` knows how many axes an input has; everything else
works along however many it is given.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn

from jepa.types import Indices, JepaBatch, JointGrid, Task, View

TARGET, MARGIN = (234, 88, 12), 6
HIDDEN = 0.18  # brightness of what an encoder does not see
BAND = 8  # length over height of the band that shows one axis
SIDE, STRIP, CLIPS = 96, 8, 2  # of a sheet: pixels of a picture, frames of a strip, and clips of each task
LONG, WIDE = 2, 512  # width over height from which a spectrogram is long, and most pixels of its width
# a dark-to-bright scale that is even to the eye and to the colour-blind: inferno (Smith & van der Walt), every eighth
HEAT = ((0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85), (227, 89, 51), (249, 140, 10), (252, 255, 164))  # fmt: skip # noqa: E501


def frames(x: Tensor, axes: int) -> Tensor:
    """Lay the last `axes` axes out as pictures: (..., *size) -> (..., [T,] H, W).

    One axis becomes a band; of three the first (the time of a clip) is that along which a picture moves.

    Raises:
        ValueError: there is no picture of so many axes.
    """
    if axes == 1:
        length = x.shape[-1]
        return x[..., None, :].expand(*x.shape[:-1], max(1, length // BAND), length)
    if axes in (2, 3):
        return x
    raise ValueError(f"pictures show one to three axes, not {axes}")


def few(picture: Tensor, most: int) -> Tensor:
    """At most so many frames of a moving picture (C, T, H, W), evenly from the first to the last."""
    count = picture.shape[1]
    return picture[:, torch.linspace(0, count - 1, most).round().long()] if count > most else picture


def strip(picture: Tensor, rows: int = 1) -> Tensor:
    """The frames of a moving picture (C, T, H, W) side by side, in rows of equal length: (C, rows * H, T / rows * W).

    A still one is returned as it is.
    """
    if picture.ndim == 3:
        return picture
    return picture.unflatten(1, (rows, -1)).movedim(3, 2).flatten(3).flatten(1, 2)


def sounds_of(batch_transform: Any) -> dict[str, int]:
    """Samples per second of the sounds that a batch transform turns into spectrograms (time, frequency), by the name of
    their modality, "" where there is one only.

    It says so by an attribute `rate`, as `jepa.data.LogMel`, or has `parts` by modality that do, as
    `jepa.data.JointInputs`. What any other makes is shown as it lies, and not played.
    """
    parts = getattr(batch_transform, "parts", None)
    of_names = dict(parts.items()) if isinstance(parts, Mapping | nn.ModuleDict) else {"": batch_transform}
    rates = {name: getattr(part, "rate", None) for name, part in of_names.items()}
    return {name: rate for name, rate in rates.items() if isinstance(rate, int)}


def upright(picture: Tensor) -> Tensor:
    """A spectrogram, or a map of it, as people read it: (..., time, frequency) -> (..., frequency, time), with low
    frequencies at the bottom."""
    return picture.transpose(-1, -2).flip(-2)


def to_rgb(x: Tensor) -> Tensor:
    """(B, C, *size) -> pictures (B, 3, [T,] H, W) in [0, 1]: bytes as they are, other numbers stretched by sample.

    Of more than three channels the first three are shown, of two the first.
    """
    x = x.detach().cpu()
    whole = x.dtype == torch.uint8
    x = frames(x.float(), x.ndim - 2)
    x = x[:, :3] if x.shape[1] >= 3 else x[:, :1].expand(-1, 3, *x.shape[2:])
    if whole:
        return x / 255
    inner = tuple(range(1, x.ndim))
    low, high = x.amin(inner, keepdim=True), x.amax(inner, keepdim=True)
    return (x - low) / (high - low).clamp_min(1e-6)


def enlarge(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Values on a grid, (..., *grid), over the pixels of an input of that size: (..., [T,] H, W)."""
    first = maps.ndim - len(size)
    for axis, side in enumerate(size, start=first):
        cells = maps.shape[axis]
        maps = maps.index_select(axis, torch.arange(side, device=maps.device) * cells // side)
    return frames(maps, len(size))


def shade(picture: Tensor, seen: Tensor) -> Tensor:
    """Darken what is not seen: (3, [T,] H, W), ([T,] H, W) -> (3, [T,] H, W)."""
    return torch.where(seen, picture, picture * HIDDEN)


def outline(picture: Tensor, block: Tensor, width: int = 1) -> Tensor:
    """A frame in the target colour just inside a block, at each time: (3, [T,] H, W), ([T,] H, W) -> (3, [T,] H, W)."""
    edged = F.pad(block[None].float(), [width] * 4)  # what lies outside the picture is no part of the block
    inner = -F.max_pool2d(-edged, 2 * width + 1, stride=1)[0] > 0
    return torch.where(block & ~inner, _target_colour(picture.ndim), picture)


def frame_width(size: Sequence[int]) -> int:
    """Of an outline that is still seen when pictures of this size are shown small."""
    shape = size[-2:]
    return max(1, round(min(shape) / 100), round(max(shape) / 400))


def heat(picture: Tensor, values: Tensor) -> Tensor:
    """`values` ([T,] H, W), from their least to their largest, as colours over a grey picture (3, [T,] H, W)."""
    low, high = values.min(), values.max()
    scaled = (values - low) / (high - low).clamp_min(1e-12) * (len(HEAT) - 1)
    table = torch.tensor(HEAT) / 255
    below = scaled.floor().long().clamp_max(len(HEAT) - 2)
    colours = torch.lerp(table[below], table[below + 1], (scaled - below)[..., None]).movedim(-1, 0)
    return 0.3 * picture.mean(0, keepdim=True) + 0.7 * colours


def cut(x: Tensor, grid: Sequence[int]) -> Tensor:
    """Inputs (B, C, *size) in the cells of a grid: (B, G, C, *patch). A remainder at the end of an axis is left out."""
    patch = [side // cells for side, cells in zip(x.shape[2:], grid, strict=True)]
    for axis, (cells, side) in enumerate(zip(grid, patch, strict=True), start=2):
        x = x.narrow(axis, 0, cells * side)
    pairs = [number for pair in zip(grid, patch, strict=True) for number in pair]
    axes = len(patch)
    x = x.reshape(*x.shape[:2], *pairs)  # (B, C, g0, p0, g1, p1, ...)
    x = x.permute(0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2))
    return x.reshape(len(x), prod(grid), x.shape[1 + axes], *patch)


def join(cells: Tensor, grid: Sequence[int]) -> Tensor:
    """The inverse of `cut`: (B, G, C, *patch) -> (B, C, *size)."""
    axes, (samples, _, channels, *patch) = len(grid), cells.shape
    x = cells.reshape(samples, *grid, channels, *patch)
    order = [0, 1 + axes, *(place for axis in range(axes) for place in (1 + axis, 2 + axes + axis))]
    return x.permute(order).reshape(samples, channels, *(g * p for g, p in zip(grid, patch, strict=True)))


def crop(x: Tensor, cells: Tensor) -> Tensor:
    """The smallest part of an input (C, *size) that holds the true cells of a map (*grid): (C, *part)."""
    for axis in range(cells.ndim):
        others = tuple(a for a in range(cells.ndim) if a != axis)
        held = (cells.any(others) if others else cells).nonzero().flatten()
        side = x.shape[axis + 1] // cells.shape[axis]
        start, stop = int(held[0]) * side, (int(held[-1]) + 1) * side
        x = x.narrow(axis + 1, start, stop - start)
    return x


def of_modality(batch: JepaBatch, name: str) -> JepaBatch:
    """What a batch shows of one modality, as if there were no other. A context may then hold nothing, and a task may
    ask for no set."""

    def view(whole: View) -> View:
        assert not isinstance(whole.x, Tensor)
        return View(whole.x[name], None if whole.keep is None else within(whole.keep, name))

    tasks = []
    for task in batch.tasks:
        query = task.query
        if isinstance(query, Indices):
            samples = len(batch.target)
            asked = within(query, name)
            some = asked.lengths.view(samples, -1).any(0).repeat(samples)  # sets of other modalities are left out
            query = _held(asked.maps()[some])
        tasks.append(Task(view(task.context), query, task.share))
    return JepaBatch(view(batch.target), tasks, batch.labels, batch.index)


def within(index: Indices, name: str) -> Indices:
    """The positions of one modality, on its own grid; sets may be empty."""
    assert isinstance(index.grid, JointGrid)
    return _held(index.maps()[:, index.grid.cells(name)].unflatten(1, index.grid.parts[name]))


def _held(maps: Tensor) -> Indices:
    """As `Indices.from_maps`, but a set, or all of them, may be empty."""
    lengths = maps.flatten(1).sum(1)
    values = maps.flatten(1).nonzero()[:, 1]
    extremes = (int(lengths.min()), int(lengths.max())) if len(lengths) else (0, 0)
    return Indices(values, lengths, tuple(maps.shape[1:]), *extremes)


def task_pictures(batch: JepaBatch, task: Task, samples: int) -> list[dict[str, Tensor]]:
    """For each of the first samples, pictures by title: what the target encoder sees, what the context
    encoder sees, what the predictor is asked, and each target set. A motion or action is written in the title.

    Args:
        batch: as its dataset made it, or normalised.
        task: one of the batch.
        samples: at most so many.
    """
    inputs, views = to_rgb(batch.target.signal[:samples]), to_rgb(task.context.signal[:samples])
    rows: list[dict[str, Tensor]] = [{"input": picture} for picture in inputs]
    size = task.context.signal.shape[2:]
    seen = torch.ones(len(views), *views.shape[2:], dtype=torch.bool)
    if task.context.keep is not None:
        seen = enlarge(task.context.keep.maps()[:samples].cpu(), size)
    for row, view, part in zip(rows, views, seen, strict=True):
        row["context"] = shade(view, part)
    if not isinstance(task.query, Indices):
        for row, view, motion in zip(rows, views, task.query.tolist(), strict=False):
            row[f"asked {', '.join(f'{number:.2f}' for number in motion) or 'for the other view'}"] = view
        return rows
    sets = len(task.query) // len(batch.target)
    if not sets:  # it asks for another modality
        return rows
    targets = enlarge(task.query.maps().cpu(), batch.target.signal.shape[2:]).unflatten(0, (-1, sets))
    width = frame_width(size)
    for row, picture, blocks in zip(rows, inputs, targets, strict=False):
        row["asked"] = asked(row["context"], blocks, width)
        for number, block in enumerate(blocks, start=1):
            row[f"target {number}"] = outline(shade(picture, block), block, width)
    return rows


def asked(context: Tensor, blocks: Tensor, width: int) -> Tensor:
    """The context with the target sets (M, [T,] H, W) marked: what a predictor is given, where to look and no more."""
    picture = torch.where(blocks.any(0), torch.lerp(context, _target_colour(context.ndim), 0.35), context)
    for block in blocks:
        picture = outline(picture, block, width)
    return picture


def mask_sheet(batch: JepaBatch, samples: int = 6, spectrograms: Collection[str] = ()) -> Image.Image:
    """The pictures of each task, as `task_pictures` makes them: a row for each sample, or of a clip or a long
    spectrogram a row for each picture, with the clip's frames side by side.

    Args:
        batch: as the encoder is given it.
        samples: of each task at the most; of clips and long spectrograms no more than two.
        spectrograms: names of the modalities that are, "" of the only one; see `sounds_of`.
    """
    x = batch.target.x
    sheets = (
        _sheets(batch, samples, "" in spectrograms)
        if isinstance(x, Tensor)
        else [sheet for name in x for sheet in _sheets(of_modality(batch, name), samples, name in spectrograms)]
    )
    out = Image.new("RGB", (max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)), "white")
    top = 0
    for sheet in sheets:
        out.paste(sheet, (0, top))
        top += sheet.height
    return out


def _sheets(batch: JepaBatch, samples: int, spectrograms: bool) -> list[Image.Image]:
    sheets: list[Image.Image] = []
    for number, task in enumerate(batch.tasks, start=1):
        rows = task_pictures(batch, task, samples)
        if spectrograms:
            rows = [{title: upright(picture) for title, picture in row.items()} for row in rows]
        *moving, height, width = rows[0]["input"].shape[1:]
        if not moving and not (spectrograms and width > LONG * height):
            sheets.append(_still_sheet(rows))
            continue
        for clip, row in enumerate(rows[:CLIPS], start=1):
            name = f"task {number}, sample {clip}" if len(batch.tasks) > 1 else f"sample {clip}"
            sheets += [_strip_sheet(picture, f"{name}: {title}") for title, picture in row.items()]
    return sheets


def _still_sheet(rows: Sequence[Mapping[str, Tensor]]) -> Image.Image:
    """One row for each sample."""
    strips = [
        torch.cat([F.pad(picture, (0, MARGIN, 0, MARGIN), value=1.0) for picture in row.values()], dim=2)
        for row in rows
    ]
    sheet = to_image(torch.cat(strips, dim=1))
    zoom = max(1, round(SIDE / next(iter(rows[0].values())).shape[-1]))
    sheet = sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST)
    return titled(sheet, list(rows[0]))


def _strip_sheet(picture: Tensor, title: str) -> Image.Image:
    """A few frames of a moving picture, or a long one."""
    moving = picture.ndim == 4
    picture = few(picture, STRIP) if moving else picture
    image = to_image(strip(F.pad(picture, (0, MARGIN, 0, MARGIN), value=1.0)))
    zoom = SIDE / picture.shape[-1] if moving else min(1.0, WIDE / picture.shape[-1])
    zoom, way = (round(zoom), Image.Resampling.NEAREST) if zoom >= 1 else (zoom, Image.Resampling.LANCZOS)
    return titled(image.resize((round(image.width * zoom), round(image.height * zoom)), way), [title])


def to_image(picture: Tensor) -> Image.Image:
    """(3, H, W) in [0, 1]."""
    return Image.fromarray((picture.permute(1, 2, 0).clamp(0, 1).numpy() * 255).round().astype(np.uint8))


def titled(image: Image.Image, titles: list[str]) -> Image.Image:
    """The image below a line of column titles."""
    out = Image.new("RGB", (image.width, image.height + 18), "white")
    out.paste(image, (0, 18))
    draw = ImageDraw.Draw(out)
    for number, title in enumerate(titles):
        draw.text((number * image.width / len(titles) + 2, 3), title, fill="black")
    return out


def _target_colour(ndim: int) -> Tensor:
    return torch.tensor(TARGET).view(3, *[1] * (ndim - 1)) / 255
