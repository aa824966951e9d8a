"""The convolutional predictor on ragged batches."""

from __future__ import annotations

from math import prod

import pytest
import torch

from jepa.predictors import ConvPredictor
from jepa.types import Indices, JointGrid, Tokens
from tests.ragged import pick, random_indices

D = 12


def predictor(kernel: tuple[int, ...], depth: int = 2) -> ConvPredictor:
    torch.manual_seed(0)
    return ConvPredictor(embed_dim=D, dim=8, depth=depth, kernel=kernel)


def context(lengths: list[int], grid: tuple[int, ...]) -> Tokens:
    index = random_indices(lengths, grid, seed=1)
    return Tokens(torch.randn(index.total, D, generator=torch.Generator().manual_seed(2)), index)


@pytest.mark.parametrize(("grid", "kernel"), [((9,), (3,)), ((4, 5), (3, 3)), ((2, 4, 3), (1, 3, 3))])
def test_answers_are_those_of_the_dense_grid(grid: tuple[int, ...], kernel: tuple[int, ...]) -> None:
    """What is predicted at a place is the value there of the whole grid, whatever else is asked, and for each sample
    what it gets alone."""
    net, seen = predictor(kernel), context([3, 6], grid)
    query = random_indices([2, 5, 1, 4], grid, seed=3)  # two sets of each sample
    found = net(seen, query)
    assert found.index is query
    for sample in range(2):
        own = pick(seen.index, sample)
        rows = slice(int(seen.index.offsets[sample]), int(seen.index.offsets[sample + 1]))
        whole = net.mask_token.detach().view(1, -1).repeat(prod(grid), 1)
        whole[own.values] = net.embed(seen.x[rows])
        x = whole.view(1, *grid, -1)
        for block in net.blocks:
            near = block.conv(x.movedim(-1, 1)).movedim(1, -1)
            x = x + block.mlp(block.norm(near))
        dense = net.proj(net.norm(x)).view(prod(grid), D)
        for number in (2 * sample, 2 * sample + 1):
            asked = pick(query, number)
            rows = slice(int(query.offsets[number]), int(query.offsets[number + 1]))
            torch.testing.assert_close(found.x[rows], dense[asked.values], atol=1e-6, rtol=1e-5)


def test_sees_as_far_as_its_kernels_reach() -> None:
    """Two blocks of kernels of three: two cells, not three."""
    grid, net = (9,), predictor((3,))
    seen = context([9], grid)
    changed = Tokens(seen.x.clone(), seen.index)
    changed.x[4] += 1
    everywhere = Indices.all(1, grid)
    moved = (net(seen, everywhere).x - net(changed, everywhere).x).abs().amax(1) > 1e-7
    assert moved.tolist() == [False, False, True, True, True, True, True, False, False]


def test_any_grid_and_every_parameter_learns() -> None:
    net = predictor((3, 3))
    for grid in ((4, 4), (3, 7)):
        seen = context([5, 2], grid)
        net(seen, random_indices([3, 3], grid)).x.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_what_it_cannot_answer_is_said() -> None:
    net, seen = predictor((3, 3)), context([3], (4, 5))
    with pytest.raises(TypeError, match="motions"):
        net(seen, torch.zeros(1, 5))
    with pytest.raises(ValueError, match=r"2 axes.*predictor\.kernel"):
        net(context([3], (2, 4, 5)), random_indices([2], (2, 4, 5)))
    joint = JointGrid({"clip": (2, 2), "sound": (4,)})
    index = Indices.of(torch.tensor([0, 1]), torch.tensor([2]), joint)
    with pytest.raises(ValueError, match="predictor=vit"):
        net(Tokens(torch.zeros(2, D), index), index)
    with pytest.raises(ValueError, match="do not belong"):
        net(context([3, 2], (4, 5)), random_indices([2, 2, 2], (4, 5)))
    for kernel in ((2, 3), (), (3, 3, 3, 3)):
        with pytest.raises(ValueError, match="odd sizes"):
            predictor(kernel)
