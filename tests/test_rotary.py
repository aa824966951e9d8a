"""Rotary positions: the published values, what makes them rotations, and precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jepa.encoders import ViT
from jepa.nn.attention import Attention, Layout
from jepa.nn.rotary import RopeStyle, RotaryPosition, rotary_table, rotary_width, rotate
from jepa.types import Indices, View
from tests.published import relative_error
from tests.ragged import random_indices


def turned(x: Tensor, place: int, grid: tuple[int, ...], style: RopeStyle) -> Tensor:
    cos, sin = rotary_table(x.shape[-1], grid, style)
    return rotate(x[None], (cos[place : place + 1], sin[place : place + 1]))[0]


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("tiled", [-1.272233, 2.029096, -3.534458, 4.088187]),
        ("interleaved", [-1.272233, -1.838865, 2.878668, 4.088187]),
    ],
)
def test_published_values_on_one_axis(style: RopeStyle, expected: list[float]) -> None:
    assert turned(torch.tensor([1.0, 2, 3, 4]), 3, (5,), style).tolist() == pytest.approx(expected, abs=1e-5)


def test_published_values_on_three_axes() -> None:
    """Time 1, row 2, column 3; two of the 14 channels are left over."""
    expected = [-1.142640, 2.009900, -1.744977, 4.029800, -7.536519, 6.098793, -10.187407]
    expected += [8.138391, -10.321133, 10.265460, -12.583358, 12.324551, 13, 14]
    place = 1 * 16 + 2 * 4 + 3
    found = turned(torch.arange(1.0, 15), place, (2, 4, 4), "tiled")
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("head_dim", "axes", "width"), [(64, 3, 20), (80, 3, 26), (88, 3, 28), (32, 3, 10), (24, 3, 8), (64, 2, 32)]
)
def test_channels_of_an_axis(head_dim: int, axes: int, width: int) -> None:
    assert rotary_width(head_dim, axes) == width


@pytest.mark.parametrize(("style", "rotation"), [("interleaved", True), ("tiled", False)])
def test_only_interleaved_frequencies_are_rotations(style: RopeStyle, rotation: bool) -> None:
    """Lengths stay, and products depend on the offset alone."""
    grid, (q, k) = (4, 5, 6), torch.randn(2, 24, generator=torch.Generator().manual_seed(0))
    here, there = (0 * 30 + 1 * 6 + 2, 2 * 30 + 2 * 6 + 1), (1 * 30 + 3 * 6 + 4, 3 * 30 + 4 * 6 + 3)
    products = [float(turned(q, a, grid, style) @ turned(k, b, grid, style)) for a, b in (here, there)]
    norms = [float(turned(q, place, grid, style).norm()) for place in (0, 57, 119)]
    assert (abs(products[0] - products[1]) < 1e-4) == rotation
    assert (max(norms) - min(norms) < 1e-4) == rotation


def test_factors_follow_the_tokens_on_any_grid() -> None:
    position, index = RotaryPosition(12), random_indices([3, 1, 5], (2, 3, 5))
    for own, table in zip(position(index), rotary_table(12, (2, 3, 5)), strict=True):
        assert own.equal(table[index.values])
    assert not position.state_dict()


@pytest.mark.parametrize(("head_dim", "axes"), [(4, 3), (13, 1), (6, 4)])
def test_heads_that_are_too_narrow_are_refused(head_dim: int, axes: int) -> None:
    with pytest.raises(ValueError, match=f"on {axes} axes need heads of an even width .* not {head_dim}"):
        rotary_width(head_dim, axes)
    with pytest.raises(ValueError, match="rotary positions on 3 axes"):
        ViT(dim=8, depth=1, heads=2, patch_size=(2, 4, 4), position="rope")


def test_attention_turns_queries_and_keys_only() -> None:
    torch.manual_seed(0)
    attention, index, x = Attention(24, 2), random_indices([4, 6], (3, 5)), torch.randn(10, 24)
    rotary = RotaryPosition(12)(index)
    q, k, v = attention.project(x, Layout.of(index, rotary))
    plain_q, plain_k, plain_v = attention.project(x, Layout.of(index))
    assert v.equal(plain_v)
    for token in range(10):
        for own, plain in ((q, plain_q), (k, plain_k)):
            expected = turned(plain[token], int(index.values[token]), (3, 5), "interleaved")
            assert torch.allclose(own[token], expected, atol=1e-6)


def test_angles_and_the_residual_stream_are_exact_under_autocast() -> None:
    """In bfloat16 the position 255 itself would be off by one."""
    torch.manual_seed(0)
    encoder = ViT(dim=24, depth=1, heads=2, patch_size=(1,), in_chans=2, position="rope")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x, layout, _ = encoder._embed(View(torch.randn(1, 2, 257)))
        q, k, _ = encoder.transformer.blocks[0].attn.project(x, layout)
    assert x.dtype == torch.float32
    assert q.dtype == k.dtype == torch.bfloat16
    assert layout.rotary is not None
    for own, exact in zip(layout.rotary, rotary_table(12, (257,)), strict=True):
        assert own.equal(exact)


def test_one_set_of_factors_serves_every_backend() -> None:
    torch.manual_seed(0)
    attention, x = Attention(24, 2), torch.randn(12, 24)
    index = Indices.all(3, (2, 2))
    equal = Layout.of(index, RotaryPosition(12)(index))
    padded = Layout(index.lengths, index.total, 1, 6, equal.rotary)  # loose bounds: the padded backend
    assert relative_error(attention(x, padded), attention(x, equal)) <= 1e-6
