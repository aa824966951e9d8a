"""Multi-layer perceptrons of projectors and predictors: every layer has weights of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn


def mlp(
    widths: Sequence[int],
    activation: Callable[[], nn.Module],
    *,
    batch_norm: bool = False,
    last_norm: bool = False,
) -> nn.Sequential:
    """Linear layers from each width to the next, with an activation between them.

    Args:
        widths: of the input, the hidden layers and the output.
        activation: makes one.
        batch_norm: normalise hidden layers over the batch, before the activation; their Linear then has no bias.
        last_norm: normalise the output over the batch, without affine parameters.
    """
    layers: list[nn.Module] = []
    for number, (wide, narrow) in enumerate(pairwise(widths), start=1):
        hidden = number < len(widths) - 1
        norm = batch_norm if hidden else last_norm
        layers.append(nn.Linear(wide, narrow, bias=not norm))
        if norm:
            layers.append(nn.BatchNorm1d(narrow, affine=hidden))
        if hidden:
            layers.append(activation())
    return nn.Sequential(*layers)
