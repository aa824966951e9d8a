"""Parts that the ablations compare with: what the I-JEPA paper decided against (Assran et al. 2023, section 9)."""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.maskers import MultiBlock
from jepa.maskers.published import truncate
from jepa.model import JEPA
from jepa.predictors import ViTPredictor
from jepa.types import Indices, Masks, Task, Tokens, View


class InputMasked(JEPA):
    """Targets are masked at the input of the target encoder: it sees one target block at a time and nothing else."""

    def answer(self, target: Tokens, task: Task) -> Tensor:
        assert isinstance(task.query, Indices)
        x = task.context.x.repeat_interleave(len(task.query) // len(task.context.x), dim=0)
        return self.targets(View(x, task.query)).x


class PixelTargets(JEPA):
    """The pixels of the target patches are predicted, each patch normalised (MAE, He et al. 2022, section 3)."""

    def answer(self, target: Tokens, task: Task) -> Tensor:
        query, x = task.query, task.context.x
        assert isinstance(query, Indices)
        rows, columns = query.grid
        height, width = x.shape[-2] // rows, x.shape[-1] // columns
        patches = F.unfold(x, (height, width), stride=(height, width)).mT  # (B, G, C * height * width)
        everything = Indices.all(len(x), query.grid, x.device)
        chosen = Tokens(patches.flatten(0, 1), everything).at(query)
        return F.layer_norm(chosen, chosen.shape[-1:])


class PixelPredictor(ViTPredictor):
    """The predictor with as many outputs as a patch has values."""

    def __init__(self, *, embed_dim: int, patch: tuple[int, ...], dim: int, depth: int, heads: int) -> None:
        super().__init__(embed_dim=embed_dim, dim=dim, depth=depth, heads=heads)
        self.proj = nn.Linear(dim, prod(patch))


class Truncated(MultiBlock):
    """Multi-block masks whose contexts are cut to the shortest of the batch by dropping the end of the raster order."""

    def sample(self, batch_size: int, grid: tuple[int, ...], generator: torch.Generator) -> list[Masks]:
        (masks,) = super().sample(batch_size, grid, generator)
        return [truncate(masks, torch.zeros(batch_size, dtype=torch.int64))]
