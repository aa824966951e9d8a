"""Movements: their group, what they do to pixels, what predictors are told of them, and who is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from jepa.data import Batches, DataError, Normalize, Saccades, Shapes
from jepa.data.views import room, warp
from jepa.maskers import Saccade
from jepa.nn import motion
from jepa.predictors import MotionMLP, MotionTransformer
from jepa.types import Indices, JepaBatch, Motions, Task, Tokens, View

STILL = torch.zeros(1, 5)
MIRRORED = torch.tensor([[0.0, 0, 0, 0, 1]])


def movements(count: int, seed: int = 0) -> Tensor:
    masker = Saccade(rotation=170, translation=0.7, scale=2.0, mirror=0.5)
    return masker.sample(count, (1,), torch.Generator().manual_seed(seed))[0].motion.double()


def act(movement: Tensor, p: Tensor) -> Tensor:
    """M(p), written out."""
    out = []
    for (rotation, right, down, zoom, mirror), (x, y) in zip(movement.tolist(), p.tolist(), strict=True):
        x = -x if mirror else x
        c, s = math.cos(math.radians(rotation)), math.sin(math.radians(rotation))
        out.append([math.exp(zoom) * (c * x - s * y) + right, math.exp(zoom) * (s * x + c * y) + down])
    return torch.tensor(out, dtype=torch.float64)


def test_movements_form_a_group() -> None:
    a, b, p = movements(50), movements(50, 1), torch.randn(50, 2, dtype=torch.float64)
    assert set(a[:, 4].tolist()) == {0, 1}
    torch.testing.assert_close(act(motion.compose(a, b), p), act(a, act(b, p)))
    torch.testing.assert_close(act(motion.inverse(a), act(a, p)), p)
    for there_and_back in (motion.compose(a, motion.inverse(a)), motion.compose(motion.inverse(a), a)):
        torch.testing.assert_close(there_and_back, torch.zeros(50, 5, dtype=torch.float64))
    assert not torch.allclose(motion.inverse(a)[:, :4], -a[:, :4], atol=0.1)


def test_code_of_published_features_and_of_the_inverse() -> None:
    expected = torch.tensor([[0.707107, 1, 0, 0, 0.707107, 0, -1, 1]])
    torch.testing.assert_close(motion.sincos(torch.tensor([0.25]), 4), expected, rtol=0, atol=1e-6)
    code = motion.features(movements(9))
    assert code.shape == (9, motion.FEATURES)
    negated = -code
    back = motion.features(motion.inverse(movements(9)))
    assert not torch.allclose(back, negated, atol=0.5)
    turns = torch.tensor([[180.0, 0, 0, 0, 0], [-180.0, 0, 0, 0, 0]])
    torch.testing.assert_close(*motion.features(turns).split(1), rtol=0, atol=1e-3)  # one and the same movement


@pytest.mark.parametrize("size", [(32, 32), (32, 48)])
@pytest.mark.parametrize(("right", "down"), [(5, 0), (-5, 0), (0, 5), (3, -7)])
def test_a_shift_of_five_pixels_moves_a_dot_by_five(size: tuple[int, int], right: int, down: int) -> None:
    x = torch.zeros(1, 1, size[0] + 20, size[1] + 20)
    x[0, 0, size[0] // 2 + 10, size[1] // 2 + 10] = 1.0
    before = warp(x, STILL, size)[0, 0]
    torch.testing.assert_close(before, x[0, 0, 10:-10, 10:-10])  # the middle, pixel by pixel
    move = torch.tensor([[0.0, right / 32, down / 32, 0, 0]])
    after = warp(x, move, size)[0, 0]
    (row, column), (moved_row, moved_column) = ((v > 0.99).nonzero()[0].tolist() for v in (before, after))
    assert (moved_row - row, moved_column - column) == (-down, -right)  # the eye moves one way, the picture the other


def test_turns_are_degrees_mirrors_mirror_and_scales_scale() -> None:
    x = torch.randn(1, 2, 32, 32)
    torch.testing.assert_close(
        warp(x, torch.tensor([[90.0, 0, 0, 0, 0]]), (32, 32)), x.rot90(1, (2, 3)), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(warp(x, MIRRORED, (32, 32)), x.flip(-1), atol=1e-5, rtol=0)
    zoomed = warp(x, torch.tensor([[0.0, 0, 0, math.log(2), 0]]), (16, 16))
    torch.testing.assert_close(zoomed, torch.nn.functional.avg_pool2d(x, 2), atol=1e-4, rtol=0)


def smooth(size: int) -> Tensor:
    """A picture of long waves: what interpolation loses of it is little."""
    y, x = torch.meshgrid(torch.arange(size) / size, torch.arange(size) / size, indexing="ij")
    return torch.stack([(2 * math.pi * (2 * x + y)).sin(), (2 * math.pi * (x - 2 * y)).cos()])[None]


def thirds(movement: Tensor) -> Tensor:
    """A movement told in sides of 96 pixels, told in sides of 32."""
    return movement * torch.tensor([1.0, 3, 3, 1, 1])


def test_there_and_back_returns_the_picture_and_composed_movements_are_one() -> None:
    x = smooth(128).expand(20, -1, -1, -1)
    masker = Saccade(rotation=30, translation=0.05, scale=1.2, mirror=0.5)
    first, then = (masker.sample(20, (1,), torch.Generator().manual_seed(seed))[0].motion for seed in (0, 1))
    there = warp(x, first, (96, 96))
    still = warp(x, STILL.expand(20, -1), (32, 32))
    back = warp(there, thirds(motion.inverse(first)), (32, 32))
    torch.testing.assert_close(back, still, rtol=0, atol=0.02)
    assert (warp(there, thirds(-first.abs()), (32, 32)) - still).abs().max() > 0.2
    both = warp(there, thirds(then), (32, 32))
    torch.testing.assert_close(warp(x, thirds(motion.compose(first, then)), (32, 32)), both, rtol=0, atol=0.02)
    assert (warp(x, thirds(motion.compose(then, first)), (32, 32)) - both).abs().max() > 0.2


@pytest.mark.parametrize("size", [(24, 24), (24, 40)])
@pytest.mark.parametrize("limits", [(0, 0.3, 1.0), (20, 0.1, 1.0), (180, 0.05, 1.3), (90, 0.0, 1.0)])
def test_no_border_appears_in_the_smallest_allowed_picture(size: tuple[int, int], limits: tuple) -> None:
    rotation, translation, scale = limits
    height, width = room(size, *limits)
    masker = Saccade(rotation=rotation, translation=translation, scale=scale, mirror=0.5)
    move = masker.sample(1000, (1,), torch.Generator().manual_seed(0))[0].motion
    inside = warp(torch.ones(1, 1, height, width).expand(1000, -1, -1, -1), move, size)
    assert inside.min() > 1 - 1e-5
    angle = math.degrees(min(math.radians(rotation), math.atan2(size[0] - 1, size[1] - 1)))
    furthest = torch.tensor([[turn, translation, 0, math.log(scale), 0] for turn in (angle, -angle)])
    assert warp(torch.ones(2, 1, height, width - 2), furthest, size).min() < 1 - 1e-3  # no larger than needed


def batch(size: int, count: int = 3) -> JepaBatch:
    x = torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    move = torch.tensor([[0.0, 0.25, 0, 0, 0]]).repeat(count, 1)
    return JepaBatch(View(x), [Task(View(x), move)])


def test_views_are_cut_from_the_larger_picture() -> None:
    views = Saccades(mean=[0.5] * 3, std=[0.5] * 3, size=16, translation=0.25)
    assert views.raw_shape((3, 16, 16)) == (3, 24, 24)
    out = views(batch(24))
    whole = Normalize([0.5] * 3, [0.5] * 3).normalize(batch(24).target.x)
    torch.testing.assert_close(out.tasks[0].context.x, whole[:, :, 4:20, 4:20])
    torch.testing.assert_close(out.target.x, whole[:, :, 4:20, 8:24])
    with pytest.raises(ValueError, match=r"make them at least \(24, 24\), or lower masker\.translation"):
        views(batch(23))
    x = batch(24).target.x
    with pytest.raises(TypeError, match=r"jepa\.maskers\.Saccade"):
        views(JepaBatch(View(x), [Task(View(x), Indices.all(3, (1,)))]))


def test_movements_stay_within_their_limits_and_fill_them() -> None:
    (drawn,) = Saccade(rotation=10, translation=0.2, scale=1.5, mirror=0.25).sample(4000, (1,), torch.Generator())
    low, high = drawn.motion.min(0).values, drawn.motion.max(0).values
    limits = torch.tensor([10, 0.2, 0.2, math.log(1.5)])
    torch.testing.assert_close(high[:4], limits, rtol=0.01, atol=0)
    torch.testing.assert_close(low[:4], -limits, rtol=0.01, atol=0)
    assert drawn.motion[:, 4].mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.corrcoef(drawn.motion.T).sub(torch.eye(5)).abs().max() < 0.06
    for wrong in ({"rotation": 181}, {"translation": -1}, {"scale": 0.9}, {"mirror": 2}, {}):
        with pytest.raises(ValueError, match="rotation"):
            Saccade(**wrong)


def test_movements_depend_on_the_step_alone_and_shares_add_up() -> None:
    """Two processes with two micro-batches each see the movements that one process sees."""

    def items(rank: int, world_size: int, accumulate: int) -> list[JepaBatch]:
        batches = Batches(
            dataset=Shapes(count=16, size=16),
            transform=None,
            masker=Saccade(rotation=10),
            grid=(1,),
            seed=3,
            batch_size=8,
            rank=rank,
            world_size=world_size,
            accumulate=accumulate,
        )
        return [batches[k] for k in range(2 * accumulate)]

    whole = items(0, 1, 1)
    parts = [items(rank, 2, 2) for rank in (0, 1)]
    for step in (0, 1):
        mine = [parts[rank][2 * step + number] for number in (0, 1) for rank in (0, 1)]
        assert torch.cat([part.tasks[0].query for part in mine]).equal(whole[step].tasks[0].query)
        assert torch.cat([part.target.x for part in mine]).equal(whole[step].target.x)
        assert [part.tasks[0].share for part in mine] == [0.5] * 4  # two micro-batches, averaged over processes
        assert whole[step].tasks[0].share == 1
    assert not whole[0].tasks[0].query.equal(whole[1].tasks[0].query)


class Wrong(Saccade):
    def sample(self, batch_size: int, grid: tuple[int, ...], generator: torch.Generator) -> list[Motions]:
        return [Motions(torch.zeros(batch_size - 1, 5))]


def test_motions_of_another_shape_are_refused() -> None:
    batches = Batches(
        dataset=Shapes(count=4, size=16), transform=None, masker=Wrong(rotation=1), grid=(1,), seed=0, batch_size=4
    )
    with pytest.raises(DataError, match=r"Wrong, task 0 of step 1: expected motions \(4, A\)"):
        batches[0]


@pytest.mark.parametrize("kind", [MotionMLP, MotionTransformer])
def test_predictors_use_the_movement_of_each_sample(kind: type) -> None:
    torch.manual_seed(0)
    options = {"dim": 24, "depth": 2, "heads": 2} if kind is MotionTransformer else {"hidden": 20, "depth": 3}
    predictor = kind(embed_dim=12, **options)
    context = Tokens(torch.randn(3 * 4, 12), Indices.all(3, (2, 2)))
    move = movements(3).float()
    first = predictor(context, move)
    assert first.x.shape == (12, 12)
    assert first.index is context.index
    other = move.clone()
    other[1, 1] += 0.3
    changed = (predictor(context, other).x - first.x).abs().view(3, -1).amax(1)
    assert (changed > 1e-5).tolist() == [False, True, False]
    weights = [p.data_ptr() for p in predictor.parameters()]
    assert len(weights) == len(set(weights))
    predictor(context, move).x.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in predictor.parameters())
    with pytest.raises(TypeError, match=r"movements \(3, 5\)"):
        predictor(context, move[:2])
    with pytest.raises(TypeError, match="movements"):
        predictor(context, context.index)
