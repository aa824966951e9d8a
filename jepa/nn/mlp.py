"""Multi-layer perceptrons of projectors and predictors: every layer has weights of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


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


def by_view(net: Callable[[Tensor], Tensor], x: Tensor, views: int, training: bool) -> Tensor:
    """`net` of a batch; in training of each of its equal parts in turn, so that batch norm sees one view of the samples
    alone.

    Raises:
        ValueError: the batch does not divide.
    """
    if views == 1 or not training:
        return net(x)
    if len(x) % views:
        raise ValueError(f"{len(x)} samples are not {views} views each: set views=1, or data.batch_transform.both_ways")
    return torch.cat([net(part) for part in x.chunk(views)])
