"""Convolutional predictor that fills in the whole grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import torch
from torch import Tensor, nn

from jepa.interfaces import Predictor
from jepa.nn.blocks import Mlp
from jepa.predictors.vit import sets_each
from jepa.types import Indices, JointGrid, Tokens

CONVOLUTIONS: Mapping[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class ConvBlock(nn.Module):
    """x + MLP(LN(DepthwiseConv(x))), a block of ConvNeXt (Liu et al. 2022, section 2) without layer scale."""

    def __init__(self, dim: int, kernel: Sequence[int], mlp_ratio: float, norm_eps: float) -> None:
        super().__init__()
        padding = tuple(size // 2 for size in kernel)
        self.conv = CONVOLUTIONS[len(kernel)](dim, dim, tuple(kernel), padding=padding, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:  # (B, *grid, D) -> (B, *grid, D)
        near = self.conv(x.movedim(-1, 1)).movedim(1, -1)
        return x + self.mlp(self.norm(near))


class ConvPredictor(Predictor):
    """Depthwise separable convolutions over the grid, where a mask token stands at every place that is not seen
    (CNN-JEPA, Kalapos & Gyires-Toth 2024).

    What stands beside what needs no learning here, so it predicts well after far fewer steps than a transformer, which
    must first learn to tell neighbours by their positions. It sees as far as its kernels reach, `depth * (kernel // 2)`
    tokens, and one pass answers all target sets of a sample.

    Args:
        embed_dim: the encoder's width, in and out.
        dim, depth, mlp_ratio: its own width, number of blocks, and hidden width of their MLPs over `dim`.
        kernel: sizes of the convolutions along each axis of the grid, odd.
        norm_eps: epsilon of the LayerNorms.

    Raises:
        ValueError: `kernel` has even sizes, or not one to three.
    """

    answers = Indices

    def __init__(
        self,
        *,
        embed_dim: int,
        dim: int = 384,
        depth: int = 4,
        kernel: Sequence[int] = (3, 3),
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        if len(kernel) not in CONVOLUTIONS or any(size < 1 or size % 2 == 0 for size in kernel):
            raise ValueError(f"kernel={list(kernel)} must be one to three odd sizes, one for each axis of the grid")
        self.axes = len(kernel)
        self.embed = nn.Linear(embed_dim, dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))  # 3-D as other predictors', so that it is decayed
        self.blocks = nn.Sequential(*(ConvBlock(dim, kernel, mlp_ratio, norm_eps) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.proj = nn.Linear(dim, embed_dim)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, context: Tokens, query: Indices | Tensor) -> Tokens:
        """As `Predictor.forward`.

        Raises:
            TypeError: the query is a motion or an action.
            ValueError: the grid has other axes than `kernel`, or the query's sets do not belong to the context's.
        """
        if not isinstance(query, Indices):
            raise TypeError("ConvPredictor answers positions on a grid, not motions or actions")
        index = context.index
        if isinstance(index.grid, JointGrid) or len(index.grid) != self.axes:
            raise ValueError(
                f"ConvPredictor has kernels along {self.axes} axes, the encoder's grid is "
                f"{getattr(index.grid, 'parts', tuple(index.grid))}: set predictor.kernel, or use predictor=vit"
            )
        cells, times = prod(index.grid), sets_each(index, query)
        seen = self.embed(context.x)
        whole = self.mask_token[0].to(seen.dtype).expand(len(index) * cells, -1)
        whole = whole.index_copy(0, index.sets * cells + index.values, seen).unflatten(0, (-1, *index.grid))
        filled = self.blocks(whole).flatten(0, -2)
        asked = filled.index_select(0, query.sets // times * cells + query.values)
        return Tokens(self.proj(self.norm(asked)), query)
