"""Low-shot evaluation: the linear probe on a small share of the labels, several times."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

import torch

from jepa.probes.base import Labelled, Score
from jepa.probes.linear import LinearSettings, linear_probe
from jepa.probes.splits import label_draw

# the few samples that can be held out say little: choose on five splits
SETTINGS = LinearSettings(min_steps=500, splits=5)


@dataclass(frozen=True, eq=False)
class LowShot:
    """Scores of several draws of labels.

    Attributes:
        fraction: share of the labels drawn.
        samples: labelled samples in each draw.
        mean: of the test accuracies.
        spread: their standard deviation (n - 1); NaN for a single draw.
        scores: one for each draw.
    """

    fraction: float
    samples: int
    mean: float
    spread: float
    scores: tuple[Score, ...]


def low_shot(
    train: Labelled,
    test: Labelled,
    *,
    fraction: float,
    draws: int = 5,
    settings: LinearSettings = SETTINGS,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> LowShot:
    """Linear probe on `fraction` of the training labels, in proportion to the classes and at least one of each.

    The draws depend on the labels, the seed and the draw's number alone, so that encoders are compared on equal draws.
    Settings are chosen within each draw; the labels that were not drawn are not looked at.

    Raises:
        ValueError: as `linear_probe`; no draw; or a fraction that is not between 0 and 1.
    """
    if draws < 1:
        raise ValueError(f"draws={draws} must be at least 1")
    rows = [label_draw(train.y, fraction, seed, number) for number in range(draws)]
    scores = tuple(linear_probe(train.take(drawn), test, settings, seed=seed, device=device) for drawn in rows)
    values = torch.tensor([score.score for score in scores], dtype=torch.float64)
    spread = float(values.std()) if draws > 1 else nan
    return LowShot(fraction, len(rows[0]), float(values.mean()), spread, scores)
