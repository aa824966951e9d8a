"""Numbers that tell a learned representation from a collapsed one.

Inputs may live on any device and have any floating dtype; all arithmetic is in float32 or better. Each function reads
its result back to the host.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.seeding import Stream, generator

LEAST_SAMPLES = 100  # of which the correlation dimension can be told


def rank_me(x: Tensor, eps: float = 1e-7) -> float:
    """Effective rank of `x` (N, D): exp of the entropy of its singular values.

    RankMe (Garrido et al. 2023, equation 1): p_k = s_k / |s|_1 + eps over the min(N, D) singular values of the
    embeddings as they are, neither centred nor normalised; eps 1e-7, as published for float32. Other libraries take
    other values (1e-5), and differ in the fourth decimal.

    Raises:
        ValueError: `x` is not a matrix.
    """
    if x.ndim != 2 or x.numel() == 0:
        raise ValueError(f"expected (N, D), got {tuple(x.shape)}")
    values = torch.linalg.svdvals(x.float())
    total = values.sum()
    if total == 0:
        return 1.0  # all embeddings are zero: the entropy of one direction
    p = values / total + eps
    return float(torch.exp(-(p * p.log()).sum()))


def spread(x: Tensor) -> float:
    """Standard deviation over the samples of `x` (N, D), averaged over dimensions."""
    return float(x.float().std(0, unbiased=False).mean())


def mean_cosine(x: Tensor) -> float:
    """Mean cosine between two different samples of `x` (N, D): 1 when all point one way.

    Raises:
        ValueError: fewer than two samples.
    """
    if len(x) < 2:
        raise ValueError("a mean over pairs needs at least two samples")
    unit = F.normalize(x.float(), dim=-1).double()
    squares = unit.square().sum()  # number of samples, less those that are zero
    return float((unit.sum(0).square().sum() - squares) / (len(x) * (len(x) - 1)))


def position_variance(x: Tensor) -> float:
    """Share of the variance of tokens `x` (B, G, D) that their position alone explains.

    The variance of the G positions' means over the total variance, summed over dimensions (eta squared). 1: the
    samples cannot be told apart. Tokens that know nothing of their position give about 1 / B, not 0. Constant tokens
    give 1.
    """
    if x.ndim != 3:
        raise ValueError(f"expected tokens (B, G, D), got {tuple(x.shape)}")
    means = x.mean(0, dtype=torch.float32)  # (G, D)
    between = (means - means.mean(0)).square().sum()
    within = torch.stack([(sample.float() - means).square().sum() for sample in x]).mean()  # no copy of all tokens
    total = between + within
    return float(between / total) if total > 0 else 1.0


def agreement(prediction: Tensor, target: Tensor) -> float:
    """Mean cosine between `prediction` (N, D) and `target` (N, D), row by row."""
    return float(F.cosine_similarity(prediction.float(), target.float(), dim=-1).mean())


def correlation_dimension(x: Tensor, *, max_samples: int = 2000, seed: int = 0) -> float:
    """Intrinsic dimension of the samples `x` (N, D) (Grassberger & Procaccia 1983).

    C(r) is the share of the pairs nearer than r; the dimension is the slope of ln C(r) against ln r, both natural
    logarithms, at small r. Here r runs over 10 values, evenly spaced in logarithm, between the distances that 0.1 % and
    1 % of the pairs stay under; the slope is the least-squares one. Borders and sparseness pull the estimate down, the
    more the higher the dimension: 2,000 samples of a cube give 2.95, of a 5-cube 4.6, of an 8-cube 6.9.

    Args:
        x: samples; duplicates of each other count as pairs at distance 0.
        max_samples: at most so many are used, drawn by `seed`: the cost is quadratic.
        seed: which samples.

    Returns:
        The dimension; 0.0 when so many samples coincide that the smaller distance is 0.

    Raises:
        ValueError: `x` is not a matrix of at least 100 samples.
    """
    if x.ndim != 2 or len(x) < LEAST_SAMPLES:
        raise ValueError(f"expected at least {LEAST_SAMPLES} samples (N, D), got {tuple(x.shape)}")
    if len(x) > max_samples:
        rows = torch.randperm(len(x), generator=generator(seed, Stream.PROBE, len(x)))[:max_samples]
        x = x[rows.to(x.device)]
    distances = torch.pdist(x.double()).sort().values
    low, high = (distances[int(share * len(distances))] for share in (1e-3, 1e-2))
    if low == 0 or low == high:
        return 0.0
    radii = torch.logspace(float(low.log10()), float(high.log10()), 10, dtype=torch.float64, device=x.device)
    counts = torch.searchsorted(distances, radii)
    log_r, log_c = radii.log(), (counts / len(distances)).log()
    log_r = log_r - log_r.mean()
    return float((log_r * log_c).sum() / log_r.square().sum())
