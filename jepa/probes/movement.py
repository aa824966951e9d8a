"""Movement probe: how much of an eye movement a linear map reads from the embeddings of the two views.

Ridge regression on the pair's embeddings side by side can only add up what it reads from either view. Of a scene that
looks as likely one way up as another neither view alone tells anything about a turn, so a sum of both tells nothing
either, whatever the encoder: a turn can only be read where scenes have an upright, as photographs do.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.interfaces import Encoder
from jepa.nn import motion
from jepa.probes.base import Labelled, Score
from jepa.probes.ridge import ridge_probe
from jepa.types import JepaBatch, Task, View

Encode = Callable[[Tensor], dict[str, Tensor]]

MOVEMENT = "movement"  # the kind of features that holds the answers
CELLS = 3  # along each axis that grids of tokens are averaged down to
COMPONENTS = {"rotation": [0], "translation": [1, 2], "zoom": [3], "mirror": [4]}  # columns of a movement


def token_features(encoder: Encoder, views: Tensor) -> dict[str, Tensor]:
    """Embeddings of views (B, C, *size), of the last block: "last", the mean of all tokens, and "cells", the means of
    parts of the view, one after the other. An encoder of one token has no cells."""
    tokens = encoder.features(View(views), (-1,))[0]
    grid = tokens.index.grid
    x = tokens.dense()
    found = {"last": x.mean(1)}
    if len(grid) == 2 and x.shape[1] > 1:
        cells = F.adaptive_avg_pool2d(x.mT.unflatten(2, grid), (min(CELLS, grid[0]), min(CELLS, grid[1])))
        found["cells"] = cells.flatten(1)
    return found


def pair_features(
    cut: Callable[[JepaBatch], JepaBatch], encode: Encode, sample: Callable[[int], Tensor], device: str = "cpu"
) -> Encode:
    """`encode` of whole pictures: features of the view and of the moved view side by side, and the movement (B, 5).

    Args:
        cut: makes the views of a batch, as `jepa.data.Saccades`.
        encode: features of a batch of views, by kind.
        sample: movements (B, 5) of so many pictures.
        device: that `encode` runs on.
    """

    def both(x: Tensor) -> dict[str, Tensor]:
        moved, whole = sample(len(x)).to(device), View(x.to(device))
        batch = cut(JepaBatch(whole, [Task(whole, moved)]))
        before, after = encode(batch.tasks[0].context.signal), encode(batch.target.signal)
        pairs = {kind: torch.cat((before[kind], after[kind]), 1) for kind in before}
        return pairs | {MOVEMENT: moved}

    return both


def movement_probe(train: Labelled, test: Labelled, *, seed: int = 0) -> dict[str, Score]:
    """R^2 of each component that moves at all, averaged over the two axes of a translation.

    Args:
        train, test: features of pairs (N, D) with movements (N, 5).
        seed: of the split that the penalty is chosen on.
    """
    found = {}
    for name, columns in COMPONENTS.items():
        if (train.y[:, columns] != train.y[0, columns]).any():
            parts = (Labelled(part.x, part.y[:, columns]) for part in (train, test))
            found[name] = ridge_probe(*parts, names=[motion.NAMES[i] for i in columns], seed=seed)
    return found
