"""Nearest neighbours by cosine, votes weighted by exp(cosine / temperature) (Wu et al. 2018; Caron et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.probes.base import Labelled, Score, accuracy, check_features, check_widths, class_codes
from jepa.probes.splits import held_out_split

TEMPERATURE = 0.07
_SPARE = 32  # candidates beyond k that are ranked again in float64, against rounding in float32 or TF32
_CHUNK = 2**26  # numbers in the largest temporary


def _neighbours(bank: Tensor, x: Tensor, k: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cosines (n, k), descending, and rows (n, k) of the nearest in `bank` (N, D), for `x` (Q, D) chunk by chunk.

    Candidates come from a float32 product and are ranked in float64, so that the answer does not depend on the device;
    of two equally near the earlier in the bank comes first.
    """
    unit = F.normalize(bank.float(), dim=-1)
    lengths = torch.cat([part.double().norm(dim=-1) for part in bank.split(2**16)]).clamp_min(1e-12)
    candidates = min(len(bank), k + _SPARE)
    for part in x.split(max(1, _CHUNK // max(candidates * bank.shape[1], len(bank)))):
        rows = (F.normalize(part.float(), dim=-1) @ unit.T).topk(candidates).indices.sort().values
        sought = F.normalize(part.double(), dim=-1)
        cosine = (bank[rows].double() @ sought[..., None]).squeeze(-1) / lengths[rows]
        cosine, order = cosine.sort(dim=-1, descending=True, stable=True)
        yield cosine[:, :k], rows.gather(1, order[:, :k])


def knn_predict(bank: Labelled, x: Tensor, *, ks: Sequence[int], temperature: float = TEMPERATURE) -> dict[int, Tensor]:
    """Classes (Q,) of `x` (Q, D) by the votes of its nearest neighbours in `bank`, for each k.

    Equal votes go to the lower class.

    Raises:
        ValueError: unusable features or labels, one class, or fewer samples than k.
    """
    check_features(x)
    classes, codes = class_codes(bank.y.to(bank.x.device))
    if not ks or min(ks) < 1 or max(ks) > len(bank):
        raise ValueError(f"k={list(ks)} but the bank holds {len(bank)} samples: choose k between 1 and that")
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} must be positive")
    found: dict[int, list[Tensor]] = {k: [] for k in ks}
    for cosine, rows in _neighbours(bank.x, x.to(bank.x.device), max(ks)):
        weight = ((cosine - cosine[:, :1]) / temperature).exp()
        for k in ks:
            votes = weight.new_zeros(len(rows), len(classes)).scatter_add_(1, codes[rows[:, :k]], weight[:, :k])
            found[k].append(classes[votes.argmax(1)])
    return {k: torch.cat(parts) for k, parts in found.items()}


def knn_probe(
    train: Labelled,
    test: Labelled,
    *,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = TEMPERATURE,
    held_out: float = 0.2,
    seed: int = 0,
) -> Score:
    """kNN accuracy on `test`; k is the one that classifies a held-out part of `train` best, the smallest of equals.

    The details give the test accuracy at every k.

    Raises:
        ValueError: unusable features or labels, one class, or fewer samples than k.
    """
    check_widths(train, test)
    fit, held = (train.take(rows) for rows in held_out_split(train.y, held_out, seed))
    validation = {k: accuracy(p, held.y) for k, p in knn_predict(fit, held.x, ks=ks, temperature=temperature).items()}
    best = min(validation, key=lambda k: (-validation[k], k))
    predictions = knn_predict(train, test.x, ks=ks, temperature=temperature)
    return Score(
        metric="accuracy",
        score=accuracy(predictions[best], test.y),
        validation=validation[best],
        chosen={"k": best, "temperature": temperature},
        predictions=predictions[best],
        details={f"accuracy_k{k}": accuracy(p, test.y) for k, p in predictions.items()},
    )
