"""Maskers of clips: what every mask keeps to on any grid, and the published V-JEPA sampler's numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jepa.build import RecipeError, build
from jepa.maskers import BlockTask, Causal, MultiBlock3D, RandomTubes, published_clips
from jepa.maskers.clips import PUBLISHED, thinned
from jepa.types import Indices, Masks

STATISTICS = json.loads((Path(__file__).parent / "golden" / "mask_statistics.json").read_text())
GOLDEN = {
    "short": STATISTICS["vjepa 16x224/2x16 short-range: 8 blocks of 0.15"],
    "long": STATISTICS["vjepa 16x224/2x16 long-range: 2 blocks of 0.7"],
}
GRID = (8, 14, 14)
ASPECT, WHOLE = (0.75, 1.5), (1.0, 1.0)

grids = st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9))
seeds = st.integers(0, 2**32)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ranges(low: float, high: float) -> st.SearchStrategy[tuple[float, float]]:
    return st.tuples(st.floats(low, high), st.floats(low, high)).map(lambda pair: (min(pair), max(pair)))


def tokens(maps: Tensor) -> Tensor:
    return maps.flatten(1).sum(1)


def draw(masker, batch_size: int, grid: tuple[int, ...] = GRID, seed: int = 0) -> list[Masks]:
    found = masker.sample(batch_size, grid, generator(seed))
    for masks in found:
        assert masks.context.shape == (batch_size, *grid)
        assert masks.targets.shape == (batch_size, 1, *grid)
        assert masks.context.dtype == masks.targets.dtype == torch.bool
        assert tokens(masks.context).min() >= 1
        assert tokens(masks.targets).min() >= 1
        assert not (masks.context & masks.targets[:, 0]).any()
    return found


def accepts(masker, grid: tuple[int, ...]) -> bool:
    """What `check` says, after asserting that `sample` says the same."""
    messages = []
    for call in (lambda: masker.check(grid), lambda: masker.sample(2, grid, generator())):
        try:
            call()
            messages.append(None)
        except ValueError as error:
            messages.append(str(error))
    assert messages[0] == messages[1]
    return messages[0] is None


MASKERS = [
    MultiBlock3D(),
    MultiBlock3D(compat=True, compat_batch=3),
    MultiBlock3D(tasks={"one": BlockTask(blocks=3, spatial_scale=(0.1, 0.4), temporal_scale=(0.3, 0.9))}),
    RandomTubes(),
    Causal(),
    Causal(blocks=3, context=(0.2, 0.7)),
]


@pytest.mark.parametrize("masker", MASKERS, ids=lambda m: type(m).__name__)
def test_masks_come_from_the_generator_alone(masker) -> None:
    first, before = draw(masker, 7, seed=3), torch.get_rng_state()
    again, other = draw(masker, 7, seed=3), draw(masker, 7, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one.context, two.context)
        assert torch.equal(one.targets, two.targets)
    if not isinstance(masker, Causal) or masker.blocks:
        assert not torch.equal(first[0].targets, other[0].targets)


@pytest.mark.parametrize("masker", MASKERS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("grid", [(14, 14), (196,), (2, 8, 14, 14)])
def test_clips_have_a_3d_grid(masker, grid: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="3-D grid"):
        masker.check(grid)


@pytest.mark.parametrize(
    ("call", "key"),
    [
        (lambda: BlockTask(blocks=0, spatial_scale=(0.1, 0.2)), "blocks"),
        (lambda: BlockTask(blocks=1, spatial_scale=(0.0, 0.2)), "spatial_scale"),
        (lambda: BlockTask(blocks=1, spatial_scale=(0.1, 0.2), temporal_scale=(0.5, 1.5)), "temporal_scale"),
        (lambda: BlockTask(blocks=1, spatial_scale=(0.1, 0.2), aspect=(2.0, 1.0)), "aspect"),
        (lambda: BlockTask(blocks=1, spatial_scale=(0.1, 0.2), max_temporal_keep=0.0), "max_temporal_keep"),
        (lambda: BlockTask(blocks=1, spatial_scale=(0.1, 0.2), max_context=0), "max_context"),
        (lambda: MultiBlock3D(tasks={}), "tasks is empty"),
        (lambda: MultiBlock3D(compat_batch=4), "compat_batch=4 has no effect"),
        (lambda: RandomTubes(target_ratio=(0.5, 1.5)), "target_ratio"),
        (lambda: Causal(context=(0.0, 0.5)), "context"),
        (lambda: Causal(blocks=-1), "blocks"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(call, key: str) -> None:
    with pytest.raises(ValueError, match=key):
        call()


def test_tasks_come_from_a_recipe() -> None:
    node = {"_target_": "jepa.maskers.MultiBlock3D", "tasks": {"near": {"blocks": 3, "spatial_scale": [0.1, 0.2]}}}
    assert build(node, "masker").tasks == {"near": BlockTask(blocks=3, spatial_scale=(0.1, 0.2))}
    for key, value, message in [
        ("blocs", 3, r"masker\.tasks\.near\.blocs=3: Unexpected keyword argument"),
        ("aspect", [2.0, 1.0], r"masker\.tasks\.near=.*aspect must be \(low, high\)"),
        ("blocks", "many", r"masker\.tasks\.near\.blocks='many': Input should be a valid integer"),
    ]:
        wrong = {**node, "tasks": {"near": {**node["tasks"]["near"], key: value}}}
        with pytest.raises(RecipeError, match=message):
            build(wrong, "masker")


# several tasks of blocks ----------------------------------------------------------------------------------------------


@st.composite
def block_tasks(draw: st.DrawFn) -> BlockTask:
    return BlockTask(
        blocks=draw(st.integers(1, 5)),
        spatial_scale=draw(ranges(0.01, 1.0)),
        temporal_scale=draw(st.just(WHOLE) | ranges(0.05, 1.0)),
        aspect=draw(ranges(0.2, 5.0)),
        max_temporal_keep=draw(st.floats(0.1, 1.0)),
        max_context=draw(st.none() | st.integers(1, 30)),
    )


@settings(max_examples=150, deadline=None)
@given(block_tasks(), st.booleans(), grids, seeds)
def test_multi_block_keeps_its_promises_or_refuses(task: BlockTask, compat: bool, grid, seed: int) -> None:
    masker = MultiBlock3D(tasks={"one": task}, compat=compat)
    if not accepts(masker, grid):
        return
    (masks,) = draw(masker, 6, grid, seed)
    steps = task.steps(grid)
    assert not masks.context[:, steps:].any()
    if task.max_context is not None:
        assert tokens(masks.context).max() <= task.max_context
    if compat:
        assert len(tokens(masks.context).unique()) == len(tokens(masks.targets).unique()) == 1
    else:
        assert masks.targets[:, 0, steps:].all()
        if task.max_context is None:
            assert (masks.context | masks.targets[:, 0]).all()


def test_one_block_is_a_box_of_the_asked_size() -> None:
    task = BlockTask(blocks=1, spatial_scale=(0.2, 0.3), temporal_scale=(0.25, 0.5))
    (masks,) = draw(MultiBlock3D(tasks={"one": task}), 400)
    box = masks.targets[:, 0]
    spans = [box.any(dim=axes).sum(1) for axes in ((2, 3), (1, 3), (1, 2))]  # time, rows, columns
    assert torch.equal(spans[0] * spans[1] * spans[2], tokens(box))
    assert set(spans[0].tolist()) == {2, 3, 4}
    area = spans[1] * spans[2] / 196
    assert 0.16 < float(area.min()) < 0.22
    assert 0.28 < float(area.max()) < 0.34
    cover = box.double().mean(0)
    for axis in range(3):
        assert float((cover - cover.flip(axis)).abs().max()) < 0.12  # any place is equally likely
        assert cover.movedim(axis, 0)[[0, -1]].flatten(1).any(1).all()  # up to every border


def test_blocks_through_all_time_steps_are_the_same_at_each() -> None:
    for masks in draw(MultiBlock3D(), 50):
        assert (masks.targets == masks.targets[:, :, :1]).all()
        lengths = tokens(masks.context)
        assert len(lengths.unique()) > 10  # ragged: nothing is cut


def test_blocks_that_leave_nothing_are_drawn_anew() -> None:
    """Two blocks of 3 x 4 cover 4 x 4 unless they lie on each other; eight hardly ever do."""
    for blocks, compat in ((2, False), (2, True), (8, False), (8, True)):
        task = BlockTask(blocks=blocks, spatial_scale=(0.75, 0.75), aspect=(0.75, 0.75))
        batch = 1 if compat else None
        (masks,) = draw(MultiBlock3D(tasks={"one": task}, compat=compat, compat_batch=batch), 300, (2, 4, 4))
        assert tokens(masks.context).unique().tolist() == [8]
        assert 0.3 < float(masks.context[:, 0, 0, 0].double().mean()) < 0.7  # on either side


@pytest.mark.parametrize("compat", [False, True])
def test_blocks_that_can_fill_the_grid_are_refused(compat: bool) -> None:
    full = {"far": BlockTask(blocks=1, spatial_scale=(0.5, 1.0), aspect=(1.0, 1.0))}
    with pytest.raises(ValueError, match=r"task 'far': .*spatial_scale=\(0\.5, 1\.0\).* can fill the grid 8x14x14"):
        MultiBlock3D(tasks=full, compat=compat).check(GRID)
    shorter = {"far": BlockTask(blocks=4, spatial_scale=(1.0, 1.0), temporal_scale=(0.5, 0.8), aspect=(1.0, 1.0))}
    assert len(draw(MultiBlock3D(tasks=shorter, compat=compat), 64)) == 1


def test_thinning_keeps_a_random_part() -> None:
    context = torch.rand(200, 2, 5, 5, generator=generator()) < 0.5
    kept = thinned(context, 10, generator(1))
    assert (kept <= context).all()
    assert torch.equal(tokens(kept), tokens(context).clamp(max=10))
    assert float((kept[:, 0].double().mean() - kept[:, 1].double().mean()).abs()) < 0.03
    assert torch.equal(thinned(context, 50, generator(1)), context)


def test_stills_are_clips_of_one_time_step() -> None:
    assert len(draw(MultiBlock3D(), 20, (1, 14, 14))) == 2


# the published sampler ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "scale", "expected"),
    [
        (14, 0.15, [(5, 6), (6, 5), (6, 5), (5, 5), (5, 6), (6, 5), (7, 4), (6, 5)]),
        (16, 0.15, [(6, 7), (6, 6), (7, 6), (6, 6), (6, 7), (7, 5), (8, 5), (7, 6)]),
        (24, 0.15, [(8, 10), (10, 9), (10, 8), (9, 9), (8, 10), (11, 8), (11, 8), (10, 8)]),
        (14, 0.7, [(11, 13), (12, 11), (13, 11), (11, 12), (11, 13), (14, 10), (14, 10), (13, 10)]),
        (16, 0.7, [(12, 15), (14, 13), (15, 12), (13, 14), (12, 15), (16, 11), (16, 11), (15, 12)]),
    ],
)
def test_published_sizes(side: int, scale: float, expected: list[tuple[int, int]]) -> None:
    uniform = torch.cat([published_clips.draw_uniform(1, generator(counter)) for counter in range(8)])
    sizes = published_clips.block_size(uniform, (scale, scale), WHOLE, ASPECT, (8, side, side))
    assert sizes.tolist() == [[8, height, width] for height, width in expected]


def test_published_batch() -> None:
    """Batch 4: sizes from counter 0, positions from a second generator with seed 0."""
    uniform = published_clips.draw_uniform(1, generator(0))
    size = published_clips.block_size(uniform, (0.15, 0.15), WHOLE, ASPECT, GRID)
    masks = published_clips.draw_masks(size.expand(4, 8, 3), 8, GRID, generator(0), lambda *_: pytest.fail("used"))
    masks = published_clips.truncate(masks, torch.zeros(4, dtype=torch.int64))
    context, targets = (Indices.from_maps(m).values.view(4, -1) for m in (masks.context, masks.targets[:, 0]))
    assert context.sum(1).tolist() == [307856, 327560, 222233, 286695]
    assert targets.sum(1).tolist() == [662088, 646541, 773784, 681553]
    assert (context.shape[1], targets.shape[1]) == (416, 976)
    assert context[:, -1].tolist() == [1533, 1567, 1089, 1374]
    assert targets[:, -1].tolist() == [1336, 1322, 1564, 1399]


def test_published_statistics() -> None:
    drawn = draw(MultiBlock3D(compat=True, compat_batch=1), 4000)  # batches of one are not cut
    for name, masks in zip(PUBLISHED, drawn, strict=True):
        for maps, key in ((masks.context, "context_tokens_per_clip"), (masks.targets, "target_tokens_per_clip")):
            found, recorded = tokens(maps).double(), GOLDEN[name][key]
            assert float(found.mean()) == pytest.approx(recorded["mean"], abs=0.1 * recorded["std"])
            assert float(found.std()) == pytest.approx(recorded["std"], rel=0.06)


@pytest.mark.parametrize("batch", [24, 128])
def test_published_truncation(batch: int) -> None:
    batches = 60
    drawn = draw(MultiBlock3D(compat=True, compat_batch=batch), batches * batch)
    for name, masks in zip(PUBLISHED, drawn, strict=True):
        recorded = GOLDEN[name]["context_and_target_left_after_cutting_to_the_batch_minimum"][str(batch)]
        for maps, expected in zip((masks.context, masks.targets), recorded, strict=True):
            left = tokens(maps).view(batches, batch)
            assert (left == left[:, :1]).all()
            known_to = 4 * float(left[:, 0].double().std()) / 20**0.5  # the recordings are means over few batches
            assert float(left[:, 0].double().mean()) == pytest.approx(expected, abs=known_to)


def test_both_tasks_of_a_published_batch_use_the_same_numbers() -> None:
    task = BlockTask(blocks=1, spatial_scale=(0.2, 0.4))
    first, second = draw(MultiBlock3D(tasks={"a": task, "b": task}, compat=True, compat_batch=1), 100)
    assert torch.equal(tokens(first.targets), tokens(second.targets))
    assert not torch.equal(first.targets, second.targets)


# tubes, and the future ------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(ranges(0.05, 1.0), grids, seeds)
def test_tubes_or_refusal(ratio: tuple[float, float], grid, seed: int) -> None:
    masker = RandomTubes(target_ratio=ratio)
    if not accepts(masker, grid):
        return
    (masks,) = draw(masker, 6, grid, seed)
    assert (masks.context | masks.targets[:, 0]).all()
    assert (masks.targets == masks.targets[:, :, :1]).all()
    share = tokens(masks.targets[:, :, 0]) / (grid[1] * grid[2])
    rounding = 0.51 / (grid[1] * grid[2])
    assert (share >= ratio[0] - rounding).all()
    assert (share <= ratio[1] + rounding).all()


def test_the_future_comes_after_the_past() -> None:
    (masks,) = draw(Causal(context=(0.25, 0.75)), 200)
    seen = masks.context.flatten(2).all(2)
    assert torch.equal(seen, masks.context.flatten(2).any(2))  # whole steps
    assert set(seen.sum(1).tolist()) == {2, 3, 4, 5, 6}
    assert (seen.int().diff(dim=1) <= 0).all()  # the first ones
    assert (masks.context ^ masks.targets[:, 0]).all()
    (masks,) = draw(Causal(blocks=2), 200)
    assert not masks.targets[:, :, :4].any()
    assert (masks.targets[:, :, 4:] == masks.targets[:, :, 4:5]).all()
    share = tokens(masks.targets) / (4 * 196)
    assert 0.12 < float(share.min()) < float(share.max()) < 0.34
    (masks,) = draw(Causal(context=(1.0, 1.0)), 3)
    assert masks.context[:, :7].all()
    with pytest.raises(ValueError, match="two time steps"):
        Causal().check((1, 14, 14))
