"""Parts that were tried on small data and did not earn a place in the package; docs/results.md has their scores."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.encoders import ViT
from jepa.interfaces import Encoder, Predictor, TargetUpdater
from jepa.model import JEPA
from jepa.nn.patch import PatchEmbed
from jepa.types import Indices, Tokens, View


class ConvPatchEmbed(PatchEmbed):
    """Convolutions within each patch before its linear embedding; no patch sees another, so what is masked is hidden.

    Args:
        in_chans: channels C of the input.
        patch_size: side of a square patch.
        dim: width D.
        width: channels of the first layer; each layer halves the sides and doubles the channels, down to 2 x 2.
    """

    def __init__(self, in_chans: int, patch_size: int, dim: int, width: int) -> None:
        super().__init__(in_chans, (patch_size, patch_size), dim)
        layers: list[nn.Module] = []
        channels, side = in_chans, patch_size
        while side > 2:
            layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.GELU()]
            channels, width, side = width, 2 * width, -(-side // 2)
        self.stem = nn.Sequential(*layers, nn.Flatten())
        self.proj = nn.Linear(channels * side * side, dim)

    def forward(self, x: Tensor, index: Indices) -> Tensor:  # (B, C, H, W) -> (N, D)
        size = self.patch_size[0]
        patches = F.unfold(x, size, stride=size).mT.flatten(0, 1).unflatten(1, (x.shape[1], size, size))
        return self.proj(self.stem(Tokens(patches, Indices.all(len(x), index.grid, x.device)).at(index)))


class VariedViT(ViT):
    """A ViT with a stem of convolutions, or with smaller positions.

    Args:
        stem_width: channels of the stem's first layer; 0: the linear embedding.
        position_scale: factor of the sin-cos positions, which are of size 1 beside patch embeddings of size .1.
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        heads: int,
        patch_size: int,
        in_chans: int = 3,
        stem_width: int = 0,
        position_scale: float = 1.0,
    ) -> None:
        super().__init__(dim=dim, depth=depth, heads=heads, patch_size=patch_size, in_chans=in_chans)
        self.position_scale = position_scale
        if stem_width:
            self.patch_embed = ConvPatchEmbed(in_chans, patch_size, dim, stem_width)

    def _embed(self, view: View) -> tuple[Tensor, Indices]:
        index = view.keep or Indices.all(view.x.shape[0], self.grid(view.x.shape[2:]), view.x.device)
        assert self.position is not None
        return self.patch_embed(view.x, index) + self.position_scale * self.position(index), index


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
