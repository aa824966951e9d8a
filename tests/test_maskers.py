"""Maskers: what every mask keeps to on any grid, and the published sampler's numbers."""

import json
from collections import Counter
from collections.abc import Callable
from itertools import combinations_with_replacement
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from jepa.maskers import MultiBlock, RandomPatches, Rasterized, SingleBlock, multiblock, published
from jepa.maskers.geometry import block_maps, block_sizes, largest_sizes
from jepa.types import Indices, Masks

STATISTICS = json.loads((Path(__file__).parent / "golden" / "mask_statistics.json").read_text())
GOLDEN = {
    16: STATISTICS["ijepa 224/14, target 0.15-0.2 aspect 0.75-1.5 x4, context 0.85-1.0"],
    14: STATISTICS["ijepa 224/16, same"],
}
SCALES = {"target_scale": (0.15, 0.2), "target_aspect": (0.75, 1.5), "context_scale": (0.85, 1.0)}

grids = st.tuples(st.integers(1, 24), st.integers(1, 24))
seeds = st.integers(0, 2**32)


def ranges(low: float, high: float) -> st.SearchStrategy[tuple[float, float]]:
    return st.tuples(st.floats(low, high), st.floats(low, high)).map(lambda pair: (min(pair), max(pair)))


@st.composite
def multi_blocks(draw: st.DrawFn, compat: bool = False) -> MultiBlock:
    return MultiBlock(
        targets=draw(st.integers(1, 6)),
        target_scale=draw(ranges(0.01, 1.0)),
        target_aspect=draw(ranges(0.1, 10.0)),
        context_scale=draw(ranges(0.05, 1.0)),
        min_context=draw(st.integers(1, 20)),
        compat=compat,
        compat_batch=draw(st.none() | st.integers(1, 20)) if compat else None,
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(masker, batch_size: int, grid: tuple[int, ...], seed: int = 0) -> Masks:
    (masks,) = masker.sample(batch_size, grid, generator(seed))
    assert masks.context.shape == (batch_size, *grid)
    assert masks.targets.shape[0] == batch_size
    assert masks.targets.shape[2:] == grid
    assert masks.context.dtype == masks.targets.dtype == torch.bool
    return masks


def tokens(maps: Tensor) -> Tensor:
    return maps.flatten(-2).sum(-1)


def sides(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Heights and widths of the bounding boxes, after asserting that the maps (..., rows, columns) fill them."""
    height, width = maps.any(-1).sum(-1), maps.any(-2).sum(-1)
    assert (height * width == tokens(maps)).all(), "not a rectangle"
    for occupied in (maps.any(-1), maps.any(-2)):
        starts = occupied[..., :1].sum(-1) + (occupied[..., 1:] & ~occupied[..., :-1]).sum(-1)
        assert (starts == 1).all(), "not one piece"
    return height, width


def overlap(masks: Masks) -> Tensor:
    return masks.context[:, None] & masks.targets


def refusal(call: Callable[[], object]) -> str | None:
    """The message with which a call refuses its arguments, None if it does not."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return None


def accepts(masker, grid: tuple[int, ...]) -> bool:
    """What `check` says, after asserting that `sample` says the same."""
    message = refusal(lambda: masker.check(grid))
    assert refusal(lambda: masker.sample(2, grid, generator())) == message
    return message is None


# every masker ---------------------------------------------------------------------------------------------------------

MASKERS = [MultiBlock(), MultiBlock(compat=True, compat_batch=4), SingleBlock(), Rasterized(), RandomPatches(targets=2)]
each_masker = pytest.mark.parametrize("masker", MASKERS, ids=lambda m: type(m).__name__ + str(getattr(m, "compat", "")))


@each_masker
def test_masks_come_from_the_generator_alone(masker):
    first = draw(masker, 9, (10, 12), seed=3)
    before = torch.get_rng_state()
    again, other = draw(masker, 9, (10, 12), seed=3), draw(masker, 9, (10, 12), seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.context, again.context)
    assert torch.equal(first.targets, again.targets)
    assert not torch.equal(first.targets, other.targets)


@each_masker
def test_a_slice_of_the_batch_holds_the_same_indices(masker):
    masks = draw(masker, 8, (12, 10))
    sets = masks.targets.shape[1]
    whole, part = (Indices.from_maps(t.flatten(0, 1)) for t in (masks.targets, masks.targets[2:5]))
    start, end = whole.offsets[2 * sets], whole.offsets[5 * sets]
    assert torch.equal(whole.values[start:end], part.values)
    assert torch.equal(part.maps().view(3, sets, 12, 10), masks.targets[2:5])


@pytest.mark.parametrize("masker", [MultiBlock(), MultiBlock(compat=True), SingleBlock(), Rasterized()])
@pytest.mark.parametrize("grid", [(196,), (8, 14, 14)])
def test_blocks_need_a_2d_grid(masker, grid):
    with pytest.raises(ValueError, match="2-D grid"):
        masker.check(grid)


@pytest.mark.parametrize(
    ("masker", "key", "value"),
    [
        (MultiBlock, "targets", 0),
        (MultiBlock, "targets", 1.5),
        (MultiBlock, "target_scale", (0.0, 0.2)),
        (MultiBlock, "target_scale", (0.3, 0.2)),
        (MultiBlock, "target_scale", 0.2),
        (MultiBlock, "target_aspect", (0.75, float("inf"))),
        (MultiBlock, "target_aspect", (float("nan"), 1.5)),
        (MultiBlock, "context_scale", (0.85, 1.1)),
        (MultiBlock, "context_scale", (0.85, 0.9, 1.0)),
        (MultiBlock, "min_context", 0),
        (MultiBlock, "compat_batch", 16),
        (SingleBlock, "target_scale", (0.5, 2.0)),
        (SingleBlock, "target_aspect", (-1.0, 1.0)),
        (RandomPatches, "target_ratio", (0.0, 0.5)),
        (RandomPatches, "targets", 0),
    ],
)
def test_settings_out_of_range_are_refused_by_name(masker, key, value):
    with pytest.raises(ValueError, match=key):
        masker(**{key: value})


# multi-block ----------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(multi_blocks(), grids, seeds)
def test_multi_block_keeps_its_promises_or_refuses(masker, grid, seed):
    if not accepts(masker, grid):
        return
    masks = draw(masker, 8, grid, seed)
    assert masks.targets.shape[1] == masker.targets
    assert not overlap(masks).any()
    assert tokens(masks.context).min() >= masker.min_context

    (low, high), (flat, tall) = masker.target_scale, masker.target_aspect
    height, width = sides(masks.targets)
    least = (height - 0.5) * (height > 1) * (width - 0.5) * (width > 1)  # a side of 1 may have been rounded up from 0
    size = grid[0] * grid[1]
    assert (least <= high * size * 1.001).all()
    assert ((height + 0.5) * (width + 0.5) >= low * size * 0.999).all()
    whole = (height == grid[0]) | (width == grid[1])  # the aspect gave way to the grid
    assert (whole | (height == 1) | ((height - 0.5) / (width + 0.5) <= tall * 1.001)).all()
    assert (whole | (width == 1) | ((height + 0.5) / (width - 0.5) >= flat * 0.999)).all()


@settings(max_examples=100, deadline=None)
@given(multi_blocks(), grids, seeds)
def test_the_fallback_keeps_exactly_what_check_promises(masker, grid, seed):
    left = multiblock.fewest_left(
        masker.targets, masker.target_scale[1], masker.target_aspect, masker.context_scale[0], grid
    )
    masker.min_context = left + 1
    assert not accepts(masker, grid)
    assume(left > 0)
    masker.min_context = left
    assert tokens(draw(masker, 16, grid, seed).context).min() >= left


@pytest.mark.parametrize("grid", [(6, 6), (5, 9), (14, 14)])
@pytest.mark.parametrize("targets", [1, 2, 3])
@pytest.mark.parametrize("scale", [0.16, 0.31, 0.6])
def test_fewest_left_is_what_trying_every_size_finds(grid, targets, scale):
    aspects = torch.linspace(0.3, 3.0, 200_001, dtype=torch.float64)
    sizes = block_sizes(torch.tensor(scale, dtype=torch.float64), aspects, grid)
    sizes = sizes[[*(sizes.diff(dim=0) != 0).any(1).nonzero().flatten().tolist(), -1]]  # one of each
    blocks = block_maps(torch.zeros_like(sizes), sizes, grid)
    size = block_sizes(torch.tensor(0.7), torch.tensor(grid[0] / grid[1]), grid)
    context = block_maps(torch.tensor(grid) - size, size, grid)
    tried = combinations_with_replacement(range(len(blocks)), targets)
    least = min(int((context & ~blocks[list(chosen)].any(0)).sum()) for chosen in tried)
    assert multiblock.fewest_left(targets, scale, (0.3, 3.0), 0.7, grid) == least


def test_refusal_names_the_setting_the_numbers_and_what_works():
    masker = MultiBlock(target_scale=(0.3, 0.4), min_context=10)
    with pytest.raises(ValueError, match=r"min_context=10 .* 4x4: 4 targets .* leave \d+ tokens") as error:
        masker.check((4, 4))
    enough = int(str(error.value).split("lower min_context to ")[1].split()[0])
    MultiBlock(target_scale=(0.3, 0.4), min_context=enough).check((4, 4))


def test_only_samples_with_too_little_context_are_drawn_anew():
    strict, lenient = (MultiBlock(target_scale=(0.3, 0.4), min_context=n) for n in (60, 1))
    redrawn, first = draw(strict, 256, (14, 14)), draw(lenient, 256, (14, 14))
    short = tokens(first.context) < 60
    changed = (redrawn.targets != first.targets).flatten(1).any(1)
    assert 10 < short.sum() < 246
    assert torch.equal(changed, short)
    assert torch.equal(tokens(redrawn.targets), tokens(first.targets))  # sizes are kept


def test_blocks_are_spread_evenly_up_to_every_border():
    targets = draw(MultiBlock(), 10_000, (14, 14)).targets.flatten(0, 1)
    cover = targets.double().mean(0)
    error = (cover * (1 - cover) / len(targets)).sqrt()
    for mirrored in (cover.flip(0), cover.flip(1)):
        assert ((cover - mirrored).abs() < 6 * error).all()
    assert (cover[[0, -1]] > 5 * error[[0, -1]]).all()
    assert (cover[:, [0, -1]] > 5 * error[:, [0, -1]]).all()
    height, width = sides(targets)
    top, left = targets.any(2).int().argmax(1), targets.any(1).int().argmax(1)
    for start, room in ((top, 14 - height), (left, 14 - width)):
        reached = Counter(zip(room.tolist(), start.tolist(), strict=True))
        for steps in room.unique().tolist():
            counts = torch.tensor([reached[steps, at] for at in range(steps + 1)]).double()
            assert ((counts - counts.mean()).abs() < 5 * counts.mean().sqrt() + 1).all()


def test_scale_aspect_and_blocks_are_independent():
    height, width = (side.double() for side in sides(draw(MultiBlock(), 1000, (64, 64)).targets))
    area, aspect = (height * width).flatten(), (height / width).flatten()
    assert abs(torch.corrcoef(torch.stack((area, aspect)))[0, 1]) < 0.06
    assert torch.corrcoef(height.T).triu(1).abs().max() < 0.12
    for values, low, high in ((area / 64**2, 0.15, 0.2), (aspect, 0.75, 1.5)):
        within = torch.histc(values, 5, low, high) / len(values)
        assert (within - 0.2).abs().max() < 0.04  # uniform, up to rounding


def test_context_block_has_the_grids_aspect_and_its_own_place():
    masker = MultiBlock(targets=1, target_scale=(0.002, 0.002), context_scale=(0.25, 0.25))
    masks = draw(masker, 200, (24, 48))
    height, width = masks.context.any(2).sum(1), masks.context.any(1).sum(1)
    assert torch.equal(height, torch.full((200,), 12))
    assert torch.equal(width, torch.full((200,), 24))
    assert len(masks.context.flatten(1).float().argmax(1).unique()) > 100


# the published sampler ------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(multi_blocks(compat=True), grids, seeds)
def test_compat_keeps_its_promises_or_refuses(masker, grid, seed):
    if not accepts(masker, grid):
        return
    masks = draw(masker, 40, grid, seed)
    assert not masks.targets[..., -1, :].any()
    assert not masks.targets[..., -1].any()
    assert not masks.context[..., -1, :].any()
    assert not masks.context[..., -1].any()
    assert tokens(masks.context).min() > masker.min_context
    assert tokens(masks.targets).min() > masker.min_context
    heights, widths = sides(masks.targets)
    for start in range(0, 40, masker.compat_batch or 40):
        batch = slice(start, start + (masker.compat_batch or 40))
        for shared in (heights, widths, tokens(masks.context)):
            assert len(shared[batch].unique()) == 1


def test_compat_drops_targets_from_the_last_on_where_a_context_finds_no_place():
    # targets of 6x6 and contexts of 7x7 on 8x8: beside one target there are always 13 tokens, beside several seldom
    masker = MultiBlock(target_scale=(0.6, 0.6), target_aspect=(1, 1), min_context=12, compat=True)
    masks = draw(masker, 256, (8, 8))
    assert tokens(masks.context).min() == 13
    overlapped = overlap(masks).flatten(2).any(2).sum(0)  # (M,) samples in which the context overlaps this target
    assert overlapped[0] == 0
    assert 0 < overlapped[1] < overlapped[2] <= overlapped[3] < 256


@pytest.mark.parametrize(
    ("grid", "targets", "contexts"),
    [
        (14, "66 75 75 56 65 75 65 65 65 75", [13] * 10),
        (16, "76 86 76 57 76 86 76 76 76 86", [15] * 10),
        (28, "cb eb db 9c db ea db db db db", [27, 26] * 5),
    ],
)
def test_published_sizes(grid, targets, contexts):
    sizes = torch.cat(
        [published.draw_sizes(1, *SCALES.values(), (grid, grid), generator(counter)) for counter in range(10)]
    )
    assert sizes[:, 0].tolist() == [[int(h, 16), int(w, 16)] for h, w in targets.split()]
    assert sizes[:, 1].tolist() == [[side, side] for side in contexts]


def test_published_batch():
    """Batch 4 on 14x14: sizes from counter 0, positions from a second generator with seed 0."""
    sizes = published.draw_sizes(1, *SCALES.values(), (14, 14), generator(0))
    masks = published.draw_masks(sizes.expand(4, 2, 2), 4, 10, (14, 14), generator(0))
    masks = published.truncate(masks, torch.zeros(4, dtype=torch.int64))
    context = Indices.from_maps(masks.context).values.view(4, 59)
    assert context.sum(1).tolist() == [3194, 5268, 4334, 4708]
    assert context[:, -1].tolist() == [159, 180, 173, 172]
    targets = Indices.from_maps(masks.targets.flatten(0, 1)).values.view(4, 4, 36)
    first = [[63, 72, 91, 18], [70, 63, 104, 42], [45, 84, 1, 47], [49, 4, 71, 91]]
    assert targets[:, :, 0].T.tolist() == first


def test_pairs_are_the_numbers_that_randint_takes():
    one, other = generator(5), generator(5)
    numbers = published.draw_numbers(300, one) % 13
    assert numbers.tolist() == [int(torch.randint(0, 13, (1,), generator=other)) for _ in range(300)]
    assert torch.equal(one.get_state(), other.get_state())


@pytest.mark.parametrize("side", [14, 16])
def test_published_block_sizes_are_as_frequent(side):
    uniform = (torch.arange(2**14, dtype=torch.float64) + 0.5) / 2**14
    sizes = published.block_sizes(uniform, (0.15, 0.2), (0.75, 1.5), (side, side)).long().tolist()
    found = Counter(f"{height}x{width}" for height, width in sizes)
    recorded = GOLDEN[side]["target_block_height_x_width"]
    assert found.keys() == recorded.keys()
    assert all(found[size] / 2**14 == pytest.approx(share, abs=0.006) for size, share in recorded.items())


@pytest.mark.parametrize("side", [14, 16])
def test_published_statistics(side):
    golden = GOLDEN[side]
    masks = draw(MultiBlock(compat=True, compat_batch=1), 12_000, (side, side))  # batches of one are not cut
    context, target = (tokens(maps).double() for maps in (masks.context, masks.targets))
    recorded = golden["context_tokens_per_image"]
    assert float(context.mean()) == pytest.approx(recorded["mean"], rel=0.007)
    assert float(context.std()) == pytest.approx(recorded["std"], rel=0.03)
    recorded = golden["target_block_tokens"]
    assert float(target.mean()) == pytest.approx(recorded["mean"], rel=0.005)
    assert float(target.std()) == pytest.approx(recorded["std"], rel=0.03)
    assert (target.min(), target.max()) == (recorded["min"], recorded["max"])
    cover = masks.targets.double().mean((0, 1))
    recorded = golden["chance_that_a_target_covers"]
    assert float(cover[0, 0]) == pytest.approx(recorded["corner"], abs=0.002)
    assert float(cover[side // 2, side // 2]) == pytest.approx(recorded["centre"], abs=0.01)
    assert float(cover[-1, -1]) == recorded["bottom_right"] == 0


TRUNCATED = [
    (side, int(batch), left)
    for side, golden in GOLDEN.items()
    for batch, left in golden["context_tokens_left_after_cutting_to_the_batch_minimum"].items()
]
TRUNCATED += [(14, 16, 58.4), (16, 32, 78.5), (16, 128, 68.2), (28, 16, 273.0)]  # a second recording


@pytest.mark.parametrize(("side", "batch", "recorded"), TRUNCATED)
def test_published_truncation(side, batch, recorded):
    batches = max(9600 // batch, 150)
    masks = draw(MultiBlock(compat=True, compat_batch=batch), batches * batch, (side, side))
    left = tokens(masks.context)[::batch].double()
    known_to = 2.5 * float(left.std()) / max(1000 // batch, 20) ** 0.5  # the recordings are means over few batches
    assert float(left.mean()) == pytest.approx(recorded, abs=known_to)


def test_truncation_drops_the_end_of_the_raster_order():
    context = torch.rand(6, 5, 7, generator=generator()) < 0.5
    batches = torch.tensor([0, 0, 0, 0, 1, 1])
    cut = published.truncate(Masks(context, context[:, None]), batches).context
    for rows in (slice(0, 4), slice(4, 6)):
        shortest = int(tokens(context[rows]).min())
        for whole, kept in zip(context[rows], cut[rows], strict=True):
            assert kept.flatten().nonzero().tolist() == whole.flatten().nonzero()[:shortest].tolist()


@pytest.mark.parametrize(
    ("scale", "aspect", "grid"),
    [
        ((0.15, 0.2), (0.75, 1.5), (8, 8)),
        ((0.1, 0.9), (0.2, 5.0), (9, 14)),
        ((0.3, 0.3), (1.0, 1.0), (2, 20)),
        ((0.34, 0.38), (0.75, 2.25), (12, 12)),
        ((0.26, 0.48), (0.3, 0.9), (15, 15)),
    ],
)
def test_smallest_published_block_is_what_trying_many_numbers_finds(scale, aspect, grid):
    uniform = torch.arange(2**17, dtype=torch.float64) / 2**17
    areas = published.block_sizes(uniform, scale, aspect, grid).prod(-1)
    assert published.smallest_area(scale, aspect, grid) == areas.min()


def test_settings_with_which_the_published_sampler_hangs_are_refused():
    """32-pixel images with patch 4: targets of 9 tokens never exceed the published minimum of 10."""
    with pytest.raises(ValueError, match=r"min_context=10 .* 8x8: target_scale.* blocks of 9 tokens.* below 9"):
        MultiBlock(compat=True).check((8, 8))
    with pytest.raises(ValueError, match="min_context=9"):
        MultiBlock(compat=True, min_context=9).check((8, 8))
    MultiBlock(compat=True, min_context=8).check((8, 8))
    MultiBlock().check((8, 8))
    with pytest.raises(ValueError, match="context_scale"):
        MultiBlock(compat=True, target_scale=(0.6, 0.7), context_scale=(0.1, 0.2)).check((8, 8))


# ablations ------------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(ranges(0.01, 1.0), ranges(0.1, 10.0), grids, seeds)
def test_single_block_or_refusal(scale, aspect, grid, seed):
    masker = SingleBlock(target_scale=scale, target_aspect=aspect)
    if not accepts(masker, grid):
        assert (grid[0], grid[1]) in largest_sizes(scale[1], aspect, grid)
        return
    masks = draw(masker, 8, grid, seed)
    sides(masks.targets)
    assert tokens(masks.targets).min() >= 1
    assert tokens(masks.context).min() >= 1
    assert torch.equal(masks.context, ~masks.targets[:, 0])


@settings(max_examples=50, deadline=None)
@given(grids, seeds)
def test_quadrants_or_refusal(grid, seed):
    if not accepts(Rasterized(), grid):
        assert min(grid) == 1
        return
    masks = draw(Rasterized(), 8, grid, seed)
    assert masks.targets.shape[1] == 3
    quadrants = torch.cat((masks.context[:, None], masks.targets), 1)
    assert (quadrants.sum(1) == 1).all()
    height, width = sides(quadrants)
    assert ((height - grid[0] / 2).abs() < 1).all()
    assert ((width - grid[1] / 2).abs() < 1).all()


def test_every_quadrant_is_the_context_equally_often():
    seen = draw(Rasterized(), 4000, (2, 2)).context.flatten(1).double().mean(0)
    assert (seen - 0.25).abs().max() < 0.03


@settings(max_examples=100, deadline=None)
@given(ranges(0.01, 1.0), st.integers(1, 5), grids | st.tuples(*[st.integers(1, 6)] * 3), seeds)
def test_random_patches_or_refusal(ratio, targets, grid, seed):
    masker = RandomPatches(target_ratio=ratio, targets=targets)
    if not accepts(masker, grid):
        return
    masks = draw(masker, 8, grid, seed)
    parts = torch.cat((masks.context[:, None], masks.targets), 1).flatten(2)  # (B, 1 + M, G)
    assert (parts.sum(1) == 1).all()
    sizes = parts[:, 1:].sum(2)
    assert sizes.min() >= 1
    assert (sizes.max(1).values - sizes.min(1).values).max() <= 1
    share = sizes.sum(1) / parts.shape[2]
    rounding = 0.51 / parts.shape[2]
    assert (share >= ratio[0] - rounding).all()
    assert (share <= ratio[1] + rounding).all()


def test_random_patches_reach_every_token_equally():
    cover = draw(RandomPatches(), 4000, (10, 10)).targets.double().mean((0, 1))
    assert (cover - 0.6).abs().max() < 0.04
    assert not RandomPatches(target_ratio=(0.2, 0.2)).sample(1, (2, 5), generator())[0].context.all()


def test_random_patches_refuse_an_empty_set():
    with pytest.raises(ValueError, match="target_ratio"):
        RandomPatches(targets=3).check((2, 2))
    with pytest.raises(ValueError, match="target_ratio"):
        RandomPatches(target_ratio=(0.5, 1.0)).check((8, 8))
