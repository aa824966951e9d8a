"""What every probe is given and answers, and the refusals they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Labelled:
    """Frozen features with their labels.

    Attributes:
        x: (N, D) features; for the attentive probe (N, L, D) tokens, or (N, V, L, D) those of V views.
        y: (N,) integer classes; (N, T) numbers for regression, or zeros and ones of several classes at once.

    Raises:
        ValueError: the lengths differ, there is no sample, or a feature is NaN or infinite.
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        check_features(self.x)
        if len(self.x) != len(self.y):
            raise ValueError(f"{len(self.x)} features but {len(self.y)} labels")

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: Tensor) -> Labelled:
        """The samples at `rows` (n,)."""
        return Labelled(self.x[rows.to(self.x.device)], self.y[rows.to(self.y.device)])


@dataclass(frozen=True, eq=False)
class Score:
    """A probe's answer.

    Attributes:
        metric: what `score` is: "accuracy", "r2" or "map" (mean average precision).
        score: on the test samples.
        validation: the same metric on the held-out part of the training samples that settings were chosen by; NaN
            where nothing could be held out.
        chosen: the chosen settings.
        predictions: (test samples,) predicted classes, or (test samples, T) predicted numbers.
        details: further numbers on the test samples.
    """

    metric: str
    score: float
    validation: float
    chosen: Mapping[str, float]
    predictions: Tensor
    details: Mapping[str, float]


def check_features(x: Tensor) -> None:
    """Refuse features that no probe can use.

    Raises:
        ValueError: `x` is not (N, D), (N, L, D) or (N, V, L, D), is empty, or holds NaN or infinity.
    """
    if x.ndim not in (2, 3, 4) or x.numel() == 0:
        raise ValueError(f"expected features (N, D) or tokens (N, L, D) or (N, V, L, D), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"features must be floating point, got {x.dtype}")
    bad = ~torch.isfinite(x).flatten(1).all(1)
    if bad.any():
        first = int(bad.nonzero()[0])
        raise ValueError(f"{int(bad.sum())} of {len(x)} feature rows hold NaN or infinity, the first is row {first}")


def check_widths(train: Labelled, test: Labelled) -> None:
    """Refuse a test set whose features are not of the training set's shape.

    Raises:
        ValueError: all but the number of samples must agree.
    """
    if train.x.shape[1:] != test.x.shape[1:]:
        raise ValueError(f"training features are {tuple(train.x.shape[1:])}, test features {tuple(test.x.shape[1:])}")


def class_codes(y: Tensor) -> tuple[Tensor, Tensor]:
    """Classes (K,), ascending, and the place of each label among them (N,).

    Raises:
        ValueError: the labels are not a vector of integers, or all of one class.
    """
    if y.ndim != 1 or y.is_floating_point() or y.is_complex():
        raise ValueError(f"classes must be a vector of integers, got {y.dtype} {tuple(y.shape)}")
    classes, codes = torch.unique(y.long(), return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"all {len(y)} samples have class {int(classes[0])}: a probe needs at least two classes")
    return classes, codes


def accuracy(predictions: Tensor, y: Tensor) -> float:
    """Share of `predictions` (N,) that equal `y` (N,)."""
    return float((predictions.cpu() == y.cpu()).double().mean())


def best_setting(accuracies: Sequence[float], losses: Sequence[float]) -> int:
    """The setting with the highest held-out accuracy; of equals, the lowest held-out loss. Diverged ones come last."""

    def worth(i: int) -> tuple[bool, float, float]:
        return not isfinite(losses[i]), -accuracies[i], losses[i]

    return min(range(len(losses)), key=worth)
