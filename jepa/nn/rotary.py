"""Rotary positions on n-D grids: queries and keys are turned by angles that grow with their place on each axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from jepa.types import Indices, grids_of

RopeStyle = Literal["interleaved", "tiled"]
Rotary = tuple[Tensor, Tensor]


def rotary_width(head_dim: int, axes: int) -> int:
    """Channels of a head that each axis turns: an even third of them on three axes; the rest is left as it is.

    Raises:
        ValueError: the head is too narrow for that many axes, or odd.
    """
    width = 2 * (head_dim // axes // 2)
    if width == 0 or head_dim % 2:
        raise ValueError(
            f"rotary positions on {axes} axes need heads of an even width of at least {2 * axes}, not {head_dim}: "
            f"fewer heads or a wider model"
        )
    return width


def rotary_table(head_dim: int, grid: Sequence[int], style: RopeStyle = "interleaved") -> Rotary:
    """Factors (cos, sin) of every cell of `grid`, each (G, head_dim) float32, for `rotate`.

    Axis after axis takes `rotary_width` channels, with frequencies 10000^(-k / (width / 2)); positions are whole
    numbers counted from the grid's corner.

    Args:
        head_dim: width of a head.
        grid: size along each axis.
        style: "interleaved" gives the two channels of a pair one frequency, which makes it a rotation (V-JEPA 2.1);
            "tiled" repeats the whole list of frequencies instead, so that pairs mix two of them: the published
            V-JEPA 2, whose weights need it.

    Raises:
        ValueError: as `rotary_width`.
    """
    width = rotary_width(head_dim, len(grid))
    frequencies = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    frequencies = frequencies.repeat_interleave(2) if style == "interleaved" else frequencies.repeat(2)
    axes = torch.meshgrid(*(torch.arange(size, dtype=torch.float64) for size in grid), indexing="ij")
    angles = torch.cat([axis.flatten()[:, None] * frequencies for axis in axes], dim=1)
    angles = torch.nn.functional.pad(angles, (0, head_dim - angles.shape[1]))
    sign = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(head_dim // 2)  # (a, b) turns to (-b, a)
    return angles.cos().float(), (angles.sin() * sign).float()


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Turn heads x (N, ..., head_dim) by factors (N, head_dim) each, in float32 whatever the type of x."""
    cos, sin = (factor.view(factor.shape[0], *[1] * (x.ndim - 2), -1) for factor in rotary)
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (x * cos + swapped * sin).to(x.dtype)


class RotaryPosition(nn.Module):
    """Rotary positions (Su et al. 2021) per axis as in V-JEPA 2 (Assran et al. 2025), for whatever grid comes; of
    several modalities each has those of its own grid."""

    def __init__(self, head_dim: int, style: RopeStyle = "interleaved") -> None:
        super().__init__()
        rotary_width(head_dim, axes=1)
        self.head_dim, self.style = head_dim, style
        self._tables: dict[tuple[tuple[int, ...], torch.device], Rotary] = {}  # not buffers: nothing to save or sync

    def forward(self, index: Indices) -> Rotary:  # -> (N, head_dim) twice
        device = index.values.device
        if torch.compiler.is_exporting():  # the program works for grids of any size
            return _at(self._table(index.grid), index)
        if (index.grid, device) not in self._tables:
            cos, sin = self._table(index.grid)
            self._tables[index.grid, device] = cos.to(device), sin.to(device)
        return _at(self._tables[index.grid, device], index)

    def _table(self, grid: tuple[int, ...]) -> Rotary:
        tables = [rotary_table(self.head_dim, part, self.style) for part in grids_of(grid)]
        return torch.cat([cos for cos, _ in tables]), torch.cat([sin for _, sin in tables])


def _at(table: Rotary, index: Indices) -> Rotary:
    cos, sin = (factor.to(index.values.device).index_select(0, index.values) for factor in table)
    return cos, sin
