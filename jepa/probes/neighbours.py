"""Nearest neighbours by content: what is left of embeddings once what all samples share is taken away."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK = 2**25  # numbers in the largest temporary


def centred(bank: Tensor) -> tuple[Tensor, Tensor]:
    """`bank` (N, ...) less its mean over the N samples, and that mean (...).

    Embeddings of a small or a collapsing run share most of their length, and tokens know their position: without
    this, the cosine of any two is near 1, and the nearest token is the one at the same place.
    """
    mean = bank.mean(0)
    return bank - mean, mean


def nearest(
    bank: Tensor, x: Tensor, k: int, *, bank_sample: Tensor | None = None, sample: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k rows of `bank` (N, D) with the largest cosine to each of `x` (Q, D).

    Args:
        bank: where to look.
        x: what to look for.
        k: how many; at most as many as are left.
        bank_sample: (N,) which sample each row of the bank comes from.
        sample: (Q,) which sample each of `x` comes from: its own rows are left out. None: nothing is left out.

    Returns:
        cosines (Q, k), descending, and rows (Q, k).

    Raises:
        ValueError: the bank holds fewer than k rows of other samples.
    """
    unit = F.normalize(bank.float(), dim=-1)
    cosines, rows = [], []
    step = max(1, _CHUNK // len(bank))
    for start in range(0, len(x), step):
        cosine = F.normalize(x[start : start + step].float(), dim=-1) @ unit.T
        if sample is not None and bank_sample is not None:
            own = sample[start : start + step, None] == bank_sample[None]
            cosine = cosine.masked_fill(own, -torch.inf)
        if k > cosine.shape[1]:
            raise ValueError(f"there are {cosine.shape[1]} rows, not {k}")
        near = cosine.topk(k)
        if (near.values == -torch.inf).any():
            raise ValueError(f"there are fewer than {k} rows from other samples")
        cosines.append(near.values)
        rows.append(near.indices)
    return torch.cat(cosines), torch.cat(rows)
