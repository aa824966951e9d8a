"""Parts that were tried on small data and did not earn a place in the package; docs/results.md has their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.encoders import ViT
from jepa.interfaces import Encoder, Predictor, TargetUpdater
from jepa.losses import VarianceCovariance
from jepa.model import JEPA
from jepa.nn.init import init_weights
from jepa.nn.patch import PatchEmbed, cut
from jepa.nn.position import AxisOrder, SinCosPosition
from jepa.types import Indices, Tokens, View


class ConvPatchEmbed(PatchEmbed):
    """Convolutions within each patch before its linear embedding; no patch sees another, so what is masked is hidden.

    Args:
        in_chans: channels C of the input.
        patch_size: sides of a square patch.
        dim: width D.
        width: channels of the first layer; each layer halves the sides and doubles the channels, down to 2 x 2.
    """

    def __init__(self, in_chans: int, patch_size: Sequence[int], dim: int, width: int = 32) -> None:
        super().__init__(in_chans, patch_size, dim)
        layers: list[nn.Module] = []
        channels, side = in_chans, patch_size[0]
        while side > 2:
            layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.GELU()]
            channels, width, side = width, 2 * width, -(-side // 2)
        self.stem = nn.Sequential(*layers, nn.Flatten())
        self.proj = nn.Linear(channels * side * side, dim)

    def at(self, x: Tensor, rows: Tensor | None) -> Tensor:  # (B, C, H, W) -> (N, D)
        patches = cut(x, self.grid(x.shape[2:]))
        patches = patches if rows is None else patches.index_select(0, rows)
        return self.proj(self.stem(patches.unflatten(2, self.patch_size)))


class OverlappingStem(PatchEmbed):
    """Overlapping strided convolutions with batch norm and GELU, then a linear layer (Xiao et al. 2021, "Early
    convolutions help transformers see better"; there with ReLU).

    What is hidden stays so: hidden patches are zero before every convolution and no part of the batch's statistics, as
    in a sparse convolution (SparK, Tian et al. 2023). Each layer halves an axis; channels double up to D.

    Args:
        in_chans, dim: as in `PatchEmbed`.
        patch_size: of a patch along two or three axes, powers of 2.
    """

    def __init__(self, in_chans: int, patch_size: Sequence[int], dim: int) -> None:
        super().__init__(in_chans, patch_size, dim)
        convolution = nn.Conv3d if len(patch_size) == 3 else nn.Conv2d
        depth = max(patch_size).bit_length() - 1
        widths = [in_chans, *(dim >> halvings for halvings in reversed(range(depth)))]
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for left, (wide, narrow) in zip(reversed(range(depth)), pairwise(widths), strict=True):
            stride = tuple(2 if side > 2**left else 1 for side in patch_size)  # the shorter sides last
            conv = convolution(wide, narrow, 3, stride, 1, bias=False)
            nn.init.kaiming_normal_(conv.weight)
            self.convs.append(conv)
            self.norms.append(nn.Sequential(nn.BatchNorm1d(narrow), nn.GELU()))
        self.proj = nn.Linear(dim, dim)

    def at(self, x: Tensor, rows: Tensor | None) -> Tensor:  # (B, C, *size) -> (N, D)
        grid = self.grid(x.shape[2:])
        if rows is not None:
            x = where_kept(nn.Identity(), x, grid, rows)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = where_kept(norm, conv(x), grid, rows)
        tokens = cut(x, grid).flatten(1)
        return self.proj(tokens if rows is None else tokens.index_select(0, rows))


def join(cells: Tensor, grid: Sequence[int], size: Sequence[int]) -> Tensor:
    """The inverse of `cut`."""
    axes = len(grid)
    x = cells.view(-1, *grid, cells.shape[1], *(s // g for g, s in zip(grid, size, strict=True)))
    order = [0, axes + 1, *(axis for i in range(axes) for axis in (1 + i, axes + 2 + i))]  # (B, C, g0, c0, g1, c1, ...)
    return x.permute(order).reshape(-1, cells.shape[1], *size)


def where_kept(change: nn.Module, x: Tensor, grid: tuple[int, ...], rows: Tensor | None) -> Tensor:
    """(B, C, *size): `change`, of (cells, C, values), applied to the cells `rows`; the others are zero."""
    if rows is None:
        return change(x.flatten(2)).view(x.shape)
    cells = cut(x, grid)
    seen = change(cells.index_select(0, rows))
    return join(seen.new_zeros(cells.shape).index_copy(0, rows, seen), grid, x.shape[2:])


STEMS = {"linear": PatchEmbed, "within": ConvPatchEmbed, "overlapping": OverlappingStem}


class ScaledPosition(SinCosPosition):
    """Sin-cos positions times a factor."""

    def __init__(self, dim: int, axis_order: AxisOrder, scale: float) -> None:
        super().__init__(dim, axis_order)
        self.scale = scale

    def forward(self, index: Indices) -> Tensor:
        return self.scale * super().forward(index)


class VariedViT(ViT):
    """A ViT with convolutions, or with smaller positions.

    Args:
        dim, depth, heads, patch_size, in_chans, axis_order: as in `ViT`.
        stem: "linear", convolutions "within" patches, or "overlapping" ones.
        position_scale: factor of the sin-cos positions, which are of size 1 beside patch embeddings of size .1.
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        heads: int,
        patch_size: int | Sequence[int],
        in_chans: int = 3,
        axis_order: AxisOrder = "last_first",
        stem: Literal["linear", "within", "overlapping"] = "linear",
        position_scale: float = 1.0,
    ) -> None:
        super().__init__(
            dim=dim, depth=depth, heads=heads, patch_size=patch_size, in_chans=in_chans, axis_order=axis_order
        )
        self.patch_embed = STEMS[stem](in_chans, self.patch_embed.patch_size, dim)
        self.patch_embed.proj.apply(init_weights)
        self.position = ScaledPosition(dim, axis_order, position_scale)


class PerPosition(VarianceCovariance):
    """The terms on what differs from the batch's mean at each position: position alone is no variance."""

    def terms(self, tokens: Tokens) -> dict[str, Tensor]:
        x, places = tokens.x.float(), tokens.index.values
        totals = x.new_zeros(prod(tokens.index.grid), x.shape[1]).index_add(0, places, x)
        counts = places.bincount(minlength=len(totals)).clamp(min=1)
        return super().terms(Tokens(x - (totals / counts[:, None])[places], tokens.index))


class OtherTargets(JEPA):
    """Targets averaged over blocks, centred per position over the batch, or standardised per dimension.

    Args:
        layers: last blocks whose normalised outputs are averaged (data2vec, Baevski et al. 2022, section 3.3).
        centre: subtract each position's mean over the batch: what is left is content.
        standardise: over the batch's tokens, instead of normalising each token.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        predictor: Predictor,
        target: TargetUpdater,
        criterion: nn.Module,
        regularizers: Mapping[str, nn.Module] | None = None,
        layers: int = 1,
        centre: bool = False,
        standardise: bool = False,
    ) -> None:
        super().__init__(
            encoder=encoder, predictor=predictor, target=target, criterion=criterion, regularizers=regularizers
        )
        self.layers, self.centre, self.standardise = layers, centre, standardise

    @torch.no_grad()
    def targets(self, view: View) -> Tokens:
        found = self.teacher.features(view, range(-self.layers, 0))
        index = found[0].index
        x = torch.stack([F.layer_norm(tokens.x.float(), tokens.x.shape[-1:]) for tokens in found]).mean(0)
        if self.centre:
            by_sample = x.view(len(index), -1, x.shape[-1])
            x = (by_sample - by_sample.mean(0)).flatten(0, 1)
        x = (x - x.mean(0)) / (x.std(0) + 1e-4) if self.standardise else F.layer_norm(x, x.shape[-1:])
        return Tokens(x, index)
