"""Positions and patches on grids of one, two and three axes."""

from __future__ import annotations

from math import cos, sin

import pytest
import torch
import torch.nn.functional as F

from jepa.nn.patch import PatchEmbed
from jepa.nn.position import LearnedPosition, SinCosPosition, axis_widths, sincos_1d, sincos_table
from jepa.types import Indices
from tests.published import relative_error
from tests.ragged import random_indices

COLUMN = [0.909297, 0.019999, -0.416147, 0.999800]  # position 2
ROW = [0.841471, 0.010000, 0.540302, 0.999950]  # position 1


@pytest.mark.parametrize(("axis_order", "expected"), [("last_first", COLUMN + ROW), ("first_first", ROW + COLUMN)])
def test_published_2d_table(axis_order, expected: list[float]) -> None:
    """Row 1, column 2 of a 3 x 3 grid: I-JEPA puts columns first, V-JEPA rows."""
    assert sincos_table(8, (3, 3), axis_order)[5].tolist() == pytest.approx(expected, abs=1e-6)


def test_published_3d_table() -> None:
    """Time 1, row 2, column 3 of a (2, 4, 4) grid at width 16: three equal shares of 6, the last two values cut."""
    time = [0.841471, 0.046399, 0.002154, 0.540302, 0.998923, 0.999998]
    row = [0.909297, 0.092699, 0.004309, -0.416147, 0.995694, 0.999991]
    column = [0.141120, 0.138798, 0.006463, -0.989992]
    table = sincos_table(16, (2, 4, 4), "first_first")
    assert table.shape == (32, 16)
    assert table[27].tolist() == pytest.approx(time + row + column, abs=1e-6)


def test_3d_table_with_half_of_the_features_for_time() -> None:
    time = [0.841471, 0.099833, 0.010000, 0.001000, 0.540302, 0.995004, 0.999950, 1.0]
    row, column = [0.909297, 0.019999, -0.416147, 0.999800], [0.141120, 0.029996, -0.989992, 0.999550]
    table = sincos_table(16, (2, 4, 4), "first_first", uniform_power=False)
    assert table[27].tolist() == pytest.approx(time + row + column, abs=1e-6)
    mirrored = sincos_table(16, (2, 4, 4), "last_first", uniform_power=False)
    assert mirrored[27].tolist() == pytest.approx(column + row + time, abs=1e-6)
    assert axis_widths(1024, 3, uniform_power=False) == [512, 256, 256]
    assert axis_widths(384, 2, uniform_power=False) == axis_widths(384, 2) == [192, 192]
    assert axis_widths(384, 1, uniform_power=False) == [384]


@pytest.mark.parametrize(
    ("dim", "axes", "share"),
    [(384, 3, 128), (768, 3, 256), (1024, 3, 342), (1280, 3, 428), (1408, 3, 470), (1280, 2, 640), (6, 2, 4)],
)
def test_shares_of_the_axes(dim: int, axes: int, share: int) -> None:
    assert axis_widths(dim, axes) == [share] * axes


def test_1d_table_is_all_sines_then_all_cosines() -> None:
    table = sincos_1d(6, torch.tensor([0, 3]))
    assert table.dtype == torch.float64
    assert table[0].tolist() == [0, 0, 0, 1, 1, 1]
    angles = [3 * 10000 ** (-k / 3) for k in range(3)]
    expected = torch.tensor([*map(sin, angles), *map(cos, angles)], dtype=torch.float64)
    assert torch.allclose(table[1], expected, rtol=1e-12)
    assert sincos_table(6, (4,)).equal(sincos_1d(6, torch.arange(4)).float())


@pytest.mark.parametrize("grid", [(7,), (3, 5), (2, 3, 4)])
@pytest.mark.parametrize("axis_order", ["last_first", "first_first"])
def test_sincos_positions_are_rows_of_the_table(grid: tuple[int, ...], axis_order) -> None:
    position, index = SinCosPosition(12, axis_order), random_indices([3, 5], grid)
    assert position(index).equal(sincos_table(12, grid, axis_order)[index.values])
    assert not position.state_dict()


def test_axis_orders_mirror_each_other() -> None:
    """Columns first on (rows, columns) is rows first on the transposed grid."""
    columns_first = sincos_table(8, (2, 5), "last_first").view(2, 5, 8)
    rows_first = sincos_table(8, (5, 2), "first_first").view(5, 2, 8)
    assert columns_first.equal(rows_first.transpose(0, 1))


def test_odd_widths_are_refused() -> None:
    for build in (lambda: sincos_table(7, (2, 2)), lambda: SinCosPosition(7)):
        with pytest.raises(ValueError, match="even width, not 7"):
            build()


@pytest.mark.parametrize("grid", [(6,), (3, 5), (2, 3, 4)])
def test_learned_positions_are_themselves_on_their_own_grid(grid: tuple[int, ...]) -> None:
    position, index = LearnedPosition(8, grid), random_indices([3, 5], grid)
    assert position(index).equal(position.table[index.values])


@pytest.mark.parametrize(
    ("grid", "other", "mode"),
    [((6,), (11,), "linear"), ((3, 5), (6, 4), "bilinear"), ((2, 3, 4), (4, 3, 6), "trilinear")],
)
def test_learned_positions_are_interpolated(grid: tuple[int, ...], other: tuple[int, ...], mode: str) -> None:
    position = LearnedPosition(8, grid)
    everywhere = position(Indices.all(1, other))
    expected = F.interpolate(position.table.T.reshape(1, 8, *grid), size=other, mode=mode, align_corners=False)
    assert relative_error(everywhere, expected[0].flatten(1).T) <= 1e-6
    some = random_indices([2, 4], other)
    assert position(some).equal(everywhere[some.values])
    everywhere.sum().backward()
    assert position.table.grad is not None


def test_a_linear_ramp_stays_a_ramp() -> None:
    """Interpolation is smooth and keeps rows and columns apart: a ramp along columns keeps its slope inside."""
    position = LearnedPosition(1, (4, 8))
    with torch.no_grad():
        position.table.copy_(torch.arange(8.0).repeat(4)[:, None])
    finer = position(Indices.all(1, (4, 16))).view(4, 16)
    assert torch.allclose(finer[:, 2:-2].diff(dim=1), torch.tensor(0.5))
    assert torch.allclose(finer.diff(dim=0), torch.tensor(0.0))


def test_learned_positions_refuse_other_axes() -> None:
    with pytest.raises(ValueError, match="cannot serve a grid"):
        LearnedPosition(8, (3, 3))(Indices.all(1, (9,)))
    with pytest.raises(ValueError, match="1 to 3 axes"):
        LearnedPosition(8, (2, 2, 2, 2))


CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@pytest.mark.parametrize(
    ("size", "patch"),
    [
        ((20,), (4,)),
        ((12, 8), (4, 2)),
        ((4, 12, 8), (2, 4, 4)),
        ((23,), (4,)),
        ((13, 11), (4, 2)),
        ((5, 15, 9), (2, 4, 4)),
    ],
)
@pytest.mark.parametrize("in_chans", [1, 4, 12])
def test_patches_equal_the_strided_convolution(size: tuple[int, ...], patch: tuple[int, ...], in_chans: int) -> None:
    """Also with a remainder at the border, which neither sees; and for kept patches only."""
    torch.manual_seed(0)
    embed, x = PatchEmbed(in_chans, patch, 6), torch.randn(2, in_chans, *size)
    weight = embed.proj.weight.view(6, in_chans, *patch)
    dense = CONVOLUTIONS[len(size)](x, weight, embed.proj.bias, stride=patch)
    grid = embed.grid(size)
    assert grid == tuple(dense.shape[2:])
    dense = dense.flatten(2).transpose(1, 2)  # (B, G, D)
    assert relative_error(embed(x, Indices.all(2, grid)), dense.flatten(0, 1)) <= 1e-6
    kept = random_indices([3, 1], grid)
    assert relative_error(embed(x, kept), dense[kept.sets, kept.values]) <= 1e-6


def test_border_remainder_is_never_seen() -> None:
    embed, x = PatchEmbed(1, (4, 4), 6), torch.randn(1, 1, 10, 9)
    spoilt = x.clone()
    spoilt[..., 8:, :] = spoilt[..., 8:] = float("nan")
    assert embed(spoilt, Indices.all(1, (2, 2))).equal(embed(x, Indices.all(1, (2, 2))))


def test_messages_name_what_does_not_fit() -> None:
    embed = PatchEmbed(3, (4, 4), 6)
    with pytest.raises(ValueError, match=r"takes 3 channels.*set encoder.in_chans=1"):
        embed(torch.zeros(1, 1, 8, 8), Indices.all(1, (2, 2)))
    for size in ((8,), (8, 8, 8), (8, 3)):
        with pytest.raises(ValueError, match="cannot be cut into patches"):
            embed.grid(size)
    with pytest.raises(ValueError, match=r"grid \(2, 2\), its mask 1 on a grid \(2, 3\)"):
        embed(torch.zeros(1, 3, 8, 8), Indices.all(1, (2, 3)))
    with pytest.raises(ValueError, match=r"2 samples .* its mask 1 on"):
        embed(torch.zeros(2, 3, 8, 8), Indices.all(1, (2, 2)))
