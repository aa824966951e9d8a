"""Pictures on grids of one, two and three axes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jepa.pictures import (
    crop,
    cut,
    enlarge,
    few,
    frames,
    heat,
    join,
    mask_sheet,
    outline,
    strip,
    task_pictures,
    to_image,
    to_rgb,
)
from jepa.types import Indices, JepaBatch, Task, View

SIZES = {1: ((12,), (4,)), 2: ((8, 12), (2, 3)), 3: ((4, 8, 12), (2, 2, 3))}


def batch_on(axes: int, query: Tensor | None = None) -> JepaBatch:
    """Two samples; the context is the first cell, the two target sets are the second and the last."""
    size, grid = SIZES[axes]
    x = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    cells = torch.tensor(grid).prod().item()
    context = Indices.of(torch.zeros(2, dtype=torch.long), torch.ones(2, dtype=torch.long), grid)
    asked = Indices.of(torch.tensor([1, cells - 1] * 2), torch.ones(4, dtype=torch.long), grid)
    return JepaBatch(View(x), [Task(View(x, context), asked if query is None else query)])


@pytest.mark.parametrize("axes", SIZES)
def test_join_undoes_cut(axes: int) -> None:
    size, grid = SIZES[axes]
    x = torch.randn(2, 3, *size)
    assert torch.equal(join(cut(x, grid), grid), x)
    ragged = torch.nn.functional.pad(x, (0, 1))  # one more along the last axis, which no cell holds
    assert torch.equal(join(cut(ragged, grid), grid), x)


@pytest.mark.parametrize("axes", SIZES)
def test_cells_are_crops_and_lie_where_maps_say(axes: int) -> None:
    size, grid = SIZES[axes]
    x = torch.randn(1, 3, *size)
    cells = cut(x, grid)[0]
    for number in range(len(cells)):
        one = torch.zeros(len(cells), dtype=torch.bool)
        one[number] = True
        assert torch.equal(crop(x[0], one.view(grid)), cells[number])
        shown = enlarge(one.view(1, *grid), size)[0]
        assert torch.equal(frames(x[0], axes)[:, shown].unique(), cells[number].unique())
        assert shown.float().mean() == 1 / len(cells)


def test_crop_is_the_bounding_box() -> None:
    x = torch.arange(36).view(1, 6, 6)
    held = torch.tensor([[0, 1, 0], [0, 0, 0], [0, 0, 1]], dtype=torch.bool)
    assert torch.equal(crop(x, held), x[:, :, 2:])


def test_frames_run_from_left_to_right() -> None:
    clip = torch.stack([torch.full((2, 3), float(t)) for t in range(4)])[None]  # (1, T, H, W)
    assert torch.equal(strip(clip)[0, 0], torch.tensor([0.0, 1, 2, 3]).repeat_interleave(3))
    first, second = strip(clip, rows=2)[0].split(2)
    assert torch.equal(first[0], torch.tensor([0.0, 1]).repeat_interleave(3))
    assert torch.equal(second[1], torch.tensor([2.0, 3]).repeat_interleave(3))
    assert torch.equal(strip(clip[:, 0]), clip[:, 0])


def test_few_frames_are_spread_over_the_clip() -> None:
    clip = torch.arange(9.0).view(1, 9, 1, 1)
    assert few(clip, 3).flatten().tolist() == [0, 4, 8]
    assert torch.equal(few(clip, 16), clip)


def test_no_picture_of_four_axes() -> None:
    with pytest.raises(ValueError, match="one to three axes, not 4"):
        frames(torch.zeros(1, 2, 2, 2, 2), 4)


def test_bytes_keep_their_brightness_and_other_numbers_are_stretched() -> None:
    x = torch.tensor([51, 102], dtype=torch.uint8).view(1, 1, 1, 2)
    assert torch.allclose(to_rgb(x)[0, :, 0], torch.tensor([0.2, 0.4]).expand(3, 2))
    assert torch.allclose(to_rgb(x.float() - 70)[0, :, 0], torch.tensor([0.0, 1.0]).expand(3, 2))


@pytest.mark.parametrize("axes", SIZES)
def test_task_pictures_show_what_is_seen_and_asked(axes: int) -> None:
    batch = batch_on(axes)
    rows = task_pictures(batch, batch.tasks[0], samples=2)
    assert [list(row) for row in rows] == [["input", "context", "asked", "target 1", "target 2"]] * 2
    size = SIZES[axes][0]
    first = enlarge(batch.tasks[0].context.keep.maps(), size)[0]  # type: ignore[union-attr]
    picture = rows[0]["input"]
    assert torch.equal(rows[0]["context"][:, first], picture[:, first])
    assert torch.allclose(rows[0]["context"][:, ~first], picture[:, ~first] * 0.18)
    hidden = ~first & ~enlarge(batch.tasks[0].query.maps()[:2].any(0, keepdim=True), size)[0]  # type: ignore[union-attr]
    assert torch.equal(rows[0]["asked"][:, hidden], rows[0]["context"][:, hidden])
    assert not torch.equal(rows[0]["asked"], rows[0]["context"])


def test_a_motion_is_written_above_its_view() -> None:
    batch = batch_on(2, query=torch.tensor([[0.5, -1.0], [0.0, 2.0]]))
    rows = task_pictures(batch, batch.tasks[0], samples=2)
    assert [list(row) for row in rows] == [
        ["input", "context", "asked 0.50, -1.00"],
        ["input", "context", "asked 0.00, 2.00"],
    ]


def test_asked_picture_holds_nothing_of_the_targets() -> None:
    batch = batch_on(2)
    changed = batch.target.x.clone()
    there = enlarge(batch.tasks[0].query.maps().unflatten(0, (2, 2)).any(1), (8, 12))  # type: ignore[union-attr]
    visible = enlarge(batch.tasks[0].context.keep.maps(), (8, 12))  # type: ignore[union-attr]
    sample = task_pictures(batch, batch.tasks[0], 1)[0]["asked"]
    changed[:, :, :][(there & ~visible)[:, None].expand_as(changed)] = 0
    other = JepaBatch(View(changed), [Task(View(changed, batch.tasks[0].context.keep), batch.tasks[0].query)])
    dark = task_pictures(other, other.tasks[0], 1)[0]["asked"]
    assert (sample - dark).abs().max() <= 0.18 * 0.65 + 1e-6  # what shines through the shade, as in the context


def test_outline_is_inside_the_block() -> None:
    block = torch.zeros(7, 7, dtype=torch.bool)
    block[1:6, 1:6] = True
    changed = (outline(torch.ones(3, 7, 7), block) != 1).any(0)
    assert int(changed.sum()) == 16
    assert bool((block | ~changed).all())
    assert not changed[2:5, 2:5].any()


def test_outline_is_closed_at_the_edge_of_the_picture() -> None:
    changed = (outline(torch.ones(3, 4, 5), torch.ones(4, 5, dtype=torch.bool)) != 1).any(0)
    assert int(changed.sum()) == 4 * 5 - 2 * 3


def test_heat_gets_brighter_with_the_value() -> None:
    brightness = heat(torch.zeros(3, 1, 64), torch.linspace(0, 1, 64)[None]).sum(0)[0]
    assert bool((brightness.diff() > 0).all())
    assert torch.isfinite(heat(torch.zeros(3, 2, 2), torch.ones(2, 2))).all()


def test_outline_goes_around_the_block_of_each_frame() -> None:
    block = torch.zeros(2, 5, 5, dtype=torch.bool)
    block[0, :, :3], block[1, 1:4] = True, True
    moving = outline(torch.ones(3, 2, 5, 5), block)
    for t in range(2):
        assert torch.equal(moving[:, t], outline(torch.ones(3, 5, 5), block[t]))


def test_mask_sheet_of_clips_has_a_strip_for_each_picture_of_each_task() -> None:
    batch = batch_on(3)
    one, two = mask_sheet(batch), mask_sheet(JepaBatch(batch.target, batch.tasks * 2))
    zoom = 96 // 12
    assert one.size == ((12 + 6) * 4 * zoom, 2 * 5 * ((8 + 6) * zoom + 18))
    assert two.size == (one.width, 2 * one.height)
    whole = to_rgb(batch.target.x)[0]
    for t in range(4):
        corner = one.getpixel((t * (12 + 6) * zoom, 18))
        assert corner == to_image(whole[:, t]).getpixel((0, 0))


@pytest.mark.parametrize("axes", [1, 2])
def test_mask_sheet_has_a_column_for_each_title(axes: int) -> None:
    sheet = mask_sheet(batch_on(axes))
    cell = to_image(to_rgb(batch_on(axes).target.x)[0])
    zoom = max(1, round(96 / cell.width))
    assert sheet.size == ((cell.width + 6) * 5 * zoom, (cell.height + 6) * 2 * zoom + 18)
