"""Multi-label probe: logistic regression of each class on frozen features, scored by mean average precision."""

from __future__ import annotations

from math import isfinite, nan

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.probes.base import Labelled, Score, check_widths
from jepa.probes.linear import _standardise
from jepa.probes.splits import random_split

WEIGHT_DECAYS = (1e-1, 1e-2, 1e-3, 1e-4)  # w of w / 2 |W|^2 beside the mean cross-entropy of a class
HELD_OUT = 0.2
STEPS = 100  # of L-BFGS: it stops earlier where it has converged


def average_precision(scores: Tensor, truth: Tensor) -> Tensor:
    """(K,) average precision of each class, as scikit-learn's: precision at every true sample that is reached, equal
    scores reached together. NaN for a class without a true sample.

    Args:
        scores: (N, K), higher is surer.
        truth: (N, K), zeros and ones.
    """
    found = []
    for score, true in zip(scores.double().T, truth.double().T, strict=True):
        order = score.argsort(descending=True, stable=True)
        score, true = score[order], true[order]
        last = torch.cat((score.diff() != 0, score.new_ones(1).bool()))  # of equal scores
        hits = true.cumsum(0)[last]
        reached = (torch.arange(len(score), device=score.device) + 1)[last]
        gained = torch.diff(hits, prepend=hits.new_zeros(1))
        found.append((gained * hits / reached).sum() / true.sum())  # 0 / 0 is NaN
    return torch.stack(found)


def mean_average_precision(scores: Tensor, truth: Tensor) -> float:
    """Mean over the classes that have a true sample; NaN where none has."""
    return float(average_precision(scores, truth).nanmean())


def check_several(y: Tensor) -> None:
    """Refuse labels that do not say of each class whether a sample has it.

    Raises:
        ValueError: they are not zeros and ones (N, K).
    """
    if y.ndim != 2 or not ((y == 0) | (y == 1)).all():
        raise ValueError(f"need zeros and ones (N, K) as labels, got {y.dtype} {tuple(y.shape)}")


def scored_map(scores: Tensor, truth: Tensor) -> float:
    """Mean average precision on test samples.

    Raises:
        ValueError: none of them has a class, or their labels are not zeros and ones.
    """
    check_several(truth)
    score = mean_average_precision(scores, truth)
    if not isfinite(score):
        raise ValueError(f"none of {len(truth)} test samples has a class")
    return score


def multilabel_probe(
    train: Labelled, test: Labelled, *, seed: int = 0, device: torch.device | str | None = None
) -> Score:
    """Logistic regression of each class; the weight decay is chosen on held-out training samples.

    Args:
        train, test: features (N, D) with zeros and ones (N, K) as labels.
        seed: of the held-out part.
        device: where it is fitted; by default where the features are.

    Returns:
        The score "map"; its predictions are the probabilities (test samples, K), its details those of each class.

    Raises:
        ValueError: unusable features or labels, or test samples of no class at all.
    """
    check_widths(train, test)
    for part in (train, test):
        check_several(part.y)
        if part.x.ndim != 2:
            raise ValueError(f"need features (N, D), got {tuple(part.x.shape)}")
    place = torch.device(device) if device is not None else train.x.device
    kept, held = random_split(len(train), HELD_OUT, seed)
    chosen = dict.fromkeys(WEIGHT_DECAYS, nan)
    if len(held):
        fitted, rest = train.take(kept), train.take(held)
        chosen = {w: mean_average_precision(_predict(fitted, rest.x, w, place), rest.y) for w in WEIGHT_DECAYS}
    best = max(chosen, key=lambda w: (chosen[w] if isfinite(chosen[w]) else 0.0, w))
    logits = _predict(train, test.x, best, place)
    return Score("map", scored_map(logits, test.y), chosen[best], {"weight_decay": best}, logits.sigmoid(), {})


def _predict(train: Labelled, x: Tensor, weight_decay: float, device: torch.device) -> Tensor:
    """Logits (n, K), on the CPU, of features `x` (n, D)."""
    mean, basis = (t.to(device) for t in _standardise(train.x))
    z, y = (train.x.to(mean) - mean) @ basis, train.y.to(mean)
    weight = torch.zeros(z.shape[1], y.shape[1], device=device, requires_grad=True)
    bias = torch.zeros(y.shape[1], device=device, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.binary_cross_entropy_with_logits(z @ weight + bias, y, reduction="sum") / len(y)
        value = value + weight_decay / 2 * weight.square().sum()
        value.backward()
        return value

    solver.step(loss)
    return (((x.to(mean) - mean) @ basis) @ weight + bias).detach().cpu()
