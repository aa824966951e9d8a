"""Positions on n-D grids of any size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.types import Indices, JointGrid, grids_of

AxisOrder = Literal["last_first", "first_first"]


def sincos_1d(dim: int, positions: Tensor) -> Tensor:
    """All sines, then all cosines, of positions times 10000^(-k / (dim / 2)), in float64: (P,) -> (P, dim)."""
    frequencies = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angles = positions.double()[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=1)


def axis_widths(dim: int, axes: int, uniform_power: bool = True) -> list[int]:
    """Even widths that share `dim` over the axes, summing to at least `dim`.

    Equal ones; without `uniform_power` the first axis has half of the features, and the others share the other half.
    """
    if uniform_power or axes == 1:
        return [_even(dim, axes)] * axes
    return [_even(dim, 2), *[_even(dim, 2 * (axes - 1))] * (axes - 1)]


def _even(dim: int, parts: int) -> int:
    return 2 * -(-dim // (2 * parts))


def sincos_table(
    dim: int, grid: Sequence[int], axis_order: AxisOrder = "first_first", uniform_power: bool = True
) -> Tensor:
    """Fixed sin-cos positions of every cell of `grid`: (G, dim) float32.

    What an uneven division over the axes leaves over is cut from the end.

    Args:
        dim: width, even.
        grid: size along each axis.
        axis_order: which axis the first features encode: "last_first" is the published I-JEPA (columns before rows, as
            in MAE), "first_first" the published V-JEPA (rows before columns; time before both).
        uniform_power: an equal share of the features for every axis, as in all released V-JEPA models. Otherwise the
            first axis of the grid has half of them: time D/2, rows D/4, columns D/4.

    Raises:
        ValueError: `dim` is odd.
    """
    if dim % 2:
        raise ValueError(f"sin-cos positions need an even width, not {dim}")
    axes = torch.meshgrid(*(torch.arange(size) for size in grid), indexing="ij")
    widths = axis_widths(dim, len(grid), uniform_power)
    parts = [sincos_1d(width, axis.flatten()) for width, axis in zip(widths, axes, strict=True)]
    return torch.cat(parts[::-1] if axis_order == "last_first" else parts, dim=1)[:, :dim].float()


class SinCosPosition(nn.Module):
    """Fixed sin-cos positions, evaluated for whatever grid comes (Vaswani et al. 2017, per axis); of several modalities
    each has those of its own grid."""

    def __init__(self, dim: int, axis_order: AxisOrder = "last_first", uniform_power: bool = True) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"sin-cos positions need an even width, not {dim}")
        self.dim, self.axis_order, self.uniform_power = dim, axis_order, uniform_power
        self._tables: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}  # not a buffer: nothing to save or sync

    def forward(self, index: Indices) -> Tensor:  # -> (N, D)
        if torch.compiler.is_exporting():  # the program works for grids of any size
            return self._table(index.grid).to(index.values.device).index_select(0, index.values)
        place = (index.grid, index.values.device)
        if place not in self._tables:
            self._tables[place] = self._table(index.grid).to(index.values.device)
        return self._tables[place].index_select(0, index.values)

    def _table(self, grid: tuple[int, ...]) -> Tensor:
        tables = [sincos_table(self.dim, part, self.axis_order, self.uniform_power) for part in grids_of(grid)]
        return torch.cat(tables)


class ModalityEmbedding(nn.Module):
    """A learned vector for each modality, the same at all of its positions.

    Args:
        names: of the modalities.
        dim: width D.
    """

    def __init__(self, names: Sequence[str], dim: int) -> None:
        super().__init__()
        self.vectors = nn.ParameterDict({name: torch.empty(dim) for name in names})
        for vector in self.vectors.values():
            nn.init.trunc_normal_(vector, std=0.02)

    def forward(self, index: Indices) -> Tensor:  # -> (N, D)
        """Vectors at the positions of a joint grid.

        Raises:
            TypeError: it is the grid of one modality without a name.
            ValueError: it holds a modality that has no vector.
        """
        if not isinstance(index.grid, JointGrid):
            raise TypeError(f"grid {index.grid} is not one of the modalities {', '.join(self.vectors)}")
        parts = index.grid.parts
        if not parts.keys() <= set(self.vectors):
            raise ValueError(f"the grid joins {', '.join(parts)}; the modalities here are {', '.join(self.vectors)}")
        table = torch.cat([self.vectors[name].expand(prod(grid), -1) for name, grid in parts.items()])
        absent = [vector for name, vector in self.vectors.items() if name not in parts]
        return in_graph(table.index_select(0, index.values), absent)


def in_graph(x: Tensor, unused: Iterable[Tensor]) -> Tensor:
    """x as it is, with parameters that it does not depend on in its graph: their gradient is zero, not absent.
    Processes that train together wait for the gradient of every parameter."""
    for parameter in unused:
        x = x + 0.0 * parameter.sum()
    return x


class LearnedPosition(nn.Module):
    """Learned positions on `grid`, interpolated (n-linear) to any other grid of as many axes."""

    def __init__(self, dim: int, grid: Sequence[int]) -> None:
        super().__init__()
        self.grid = tuple(grid)
        if len(self.grid) > 3:
            raise ValueError(f"learned positions serve 1 to 3 axes, not {self.grid}")
        self.table = nn.Parameter(torch.empty(prod(self.grid), dim))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, index: Indices) -> Tensor:  # -> (N, D)
        if index.grid == self.grid:
            return self.table.index_select(0, index.values)
        if len(index.grid) != len(self.grid):
            raise ValueError(f"positions learned on a grid {self.grid} cannot serve a grid {index.grid}")
        mode = ("linear", "bilinear", "trilinear")[len(self.grid) - 1]
        volume = self.table.view(*self.grid, -1).movedim(-1, 0)[None]
        resized = F.interpolate(volume, size=index.grid, mode=mode, align_corners=False)
        return resized[0].flatten(1).T.index_select(0, index.values)
