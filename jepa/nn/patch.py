"""From an n-D signal to patches on a grid."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from jepa.types import Indices


class PatchEmbed(nn.Module):
    """Linear embedding of non-overlapping patches; only the patches that are kept are computed.

    Equal to a convolution whose stride is its kernel: the weight is the convolution's, flattened from (D, C, *patch).

    Args:
        in_chans: channels C of the input.
        patch_size: size of a patch along each axis of the input.
        dim: width D.
    """

    def __init__(self, in_chans: int, patch_size: Sequence[int], dim: int) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.patch_size = tuple(patch_size)
        self.proj = nn.Linear(in_chans * prod(self.patch_size), dim)

    def grid(self, input_size: Sequence[int]) -> tuple[int, ...]:
        """Patches along each axis; a remainder at the end of an axis is not seen, as with a strided convolution.

        Raises:
            ValueError: the input has another number of axes, or is smaller than a patch.
        """
        if len(input_size) != len(self.patch_size) or any(
            s < p for s, p in zip(input_size, self.patch_size, strict=True)
        ):
            raise ValueError(f"input size {tuple(input_size)} cannot be cut into patches of {self.patch_size}")
        return tuple(s // p for s, p in zip(input_size, self.patch_size, strict=True))

    def forward(self, x: Tensor, index: Indices) -> Tensor:  # (B, C, *size) -> (N, D)
        """Embeddings of the patches at `index`.

        Raises:
            ValueError: the input has other channels, or does not fit the index.
        """
        if index.lengths.shape[0] != x.shape[0] or index.grid != self.grid(x.shape[2:]):
            raise ValueError(
                f"an input {tuple(x.shape)} has {len(x)} samples on a grid {self.grid(x.shape[2:])}, "
                f"its mask {len(index)} on a grid {index.grid}"
            )
        return self.at(x, None if index.complete else index.sets * prod(index.grid) + index.values)

    def at(self, x: Tensor, rows: Tensor | None) -> Tensor:  # (B, C, *size), (N,) -> (N, D)
        """Embeddings of the patches number `rows`, counted through the grid of one sample after the other; None: all.

        Raises:
            ValueError: the input has other channels.
        """
        if x.shape[1] != self.in_chans:
            raise ValueError(
                f"the encoder takes {self.in_chans} channels, the input {tuple(x.shape)} has {x.shape[1]}: "
                f"set encoder.in_chans={x.shape[1]}"
            )
        grid = self.grid(x.shape[2:])
        for axis, (g, p) in enumerate(zip(grid, self.patch_size, strict=True), start=2):
            x = x.narrow(axis, 0, g * p)
        cells = cut(x, grid).flatten(1)
        return self.proj(cells if rows is None else cells.index_select(0, rows))


def cut(x: Tensor, grid: Sequence[int]) -> Tensor:
    """(B, C, *size) into the cells of a grid that divides it: (B * G, C, values of a cell)."""
    axes = len(grid)
    sizes = [side for g, s in zip(grid, x.shape[2:], strict=True) for side in (g, s // g)]
    x = x.reshape(*x.shape[:2], *sizes)  # (B, C, g0, p0, g1, p1, ...)
    order = [0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2)]
    return x.permute(order).reshape(x.shape[0] * prod(grid), x.shape[1], -1)  # of (B, *grid, C, *patch)
