"""Terms that keep embeddings from collapsing, beside the prediction loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.interfaces import JointRegularizer, Regularizer
from jepa.losses.moments import full_precision, global_covariance, upcast
from jepa.nn import motion
from jepa.types import Indices, Outcome, Tokens

Side = Literal["context", "prediction", "target"]


def as_sides(given: Sequence[Side]) -> tuple[Side, ...]:
    """The setting `sides` of a regulariser.

    Raises:
        ValueError: it names none, one twice, or something else.
    """
    sides = tuple(given)
    if not sides or len(set(sides)) < len(sides) or not set(sides) <= set(get_args(Side)):
        raise ValueError(f"sides={list(given)}: some of {', '.join(get_args(Side))}, each once")
    return sides


def mean_over(
    sides: tuple[Side, ...], outcome: Outcome, terms: Callable[[Tokens], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Named terms of each of these sides, averaged."""
    found = [terms(getattr(outcome, side)) for side in sides]
    return {name: torch.stack([one[name] for one in found]).mean() for name in found[0]}


class VarianceCovariance(Regularizer):
    """Variance and covariance terms of VICReg (Bardes et al. 2022, equations 1 to 4), on tokens as in C-JEPA.

    Every token is a sample. Moments are those of all processes' tokens; as DDP averages gradients, the gradient is that
    of the global batch.

    Args:
        variance: weight of mean_d max(0, margin - std_d).
        covariance: weight of the squared off-diagonal covariances, summed and divided by D.
        margin: standard deviation that is enough.
        eps: added to the variance under the root.
        sides: what it looks at, "context", "prediction" or "target"; the mean of several. Without a gradient through
            the targets (`jepa.targets.Shared` has it) a term on them moves nothing.
        pool: look at the mean of each set's tokens instead.

    Raises:
        ValueError: a weight is negative, or both are zero; an unknown side.
    """

    def __init__(
        self,
        *,
        variance: float = 1.0,
        covariance: float = 0.04,
        margin: float = 1.0,
        eps: float = 1e-4,
        sides: tuple[Side, ...] = ("context",),
        pool: bool = False,
    ) -> None:
        super().__init__()
        if min(variance, covariance) < 0 or variance == covariance == 0:
            raise ValueError(f"variance={variance}, covariance={covariance}: weights must be positive, one may be 0")
        self.variance, self.covariance, self.margin, self.eps = variance, covariance, margin, eps
        self.sides, self.pool = as_sides(sides), pool

    def forward(self, outcome: Outcome) -> dict[str, Tensor]:
        """Weighted scalars "variance" and "covariance"."""
        return mean_over(self.sides, outcome, self.terms)

    def terms(self, tokens: Tokens) -> dict[str, Tensor]:
        """Of tokens (N, D)."""
        with full_precision(tokens.x):
            covariance = global_covariance(upcast(tokens.pooled() if self.pool else tokens.x))
        std = (covariance.diagonal() + self.eps).sqrt()
        off_diagonal = covariance - covariance.diagonal().diag()
        return {
            "variance": self.variance * (self.margin - std).relu().mean(),
            "covariance": self.covariance * off_diagonal.square().sum() / len(covariance),
        }


class PredictionVariance(JointRegularizer):
    """Predictions of one target set must differ from each other: max(0, margin - std), the mean over sets and features.

    The standard deviation of a set is over its tokens, and the mean over the tasks of a batch, as in V-JEPA's code. Its
    released models give this term no weight.

    Args:
        weight: of the term.
        margin: standard deviation that is enough.
        eps: added to the variance under the root.

    Raises:
        ValueError: `weight` is not positive.
    """

    def __init__(self, *, weight: float = 1.0, margin: float = 1.0, eps: float = 1e-4) -> None:
        super().__init__()
        if weight <= 0:
            raise ValueError(f"weight={weight} must be positive; leave the term out instead")
        self.weight, self.margin, self.eps = weight, margin, eps

    def forward(self, outcomes: Sequence[Outcome]) -> dict[str, Tensor]:
        """Weighted scalar "prediction_variance" of tasks with equally many target sets."""
        std = torch.stack([(variance_of_sets(one.prediction) + self.eps).sqrt() for one in outcomes]).mean(0)  # (S, D)
        return {"prediction_variance": self.weight * (self.margin - std).relu().mean()}


class MeanInvariance(Regularizer):
    """The mean of a set's predictions must be that of its targets: VICReg's invariance (Bardes et al. 2022, equation 5)
    between means of tokens, as in C-JEPA (Mo & Tong 2024).

    Args:
        weight: of the squared difference, the mean over sets and features.

    Raises:
        ValueError: `weight` is not positive.
    """

    def __init__(self, *, weight: float = 0.025) -> None:
        super().__init__()
        if weight <= 0:
            raise ValueError(f"weight={weight} must be positive; leave the term out instead")
        self.weight = weight

    def forward(self, outcome: Outcome) -> dict[str, Tensor]:
        """The weighted scalar "invariance"."""
        said, query = outcome.prediction, outcome.query
        wanted = Tokens(outcome.target.at(query), query) if isinstance(query, Indices) else outcome.target
        means, true = (Tokens(upcast(side.x), side.index).pooled() for side in (said, wanted))
        return {"invariance": self.weight * F.mse_loss(means, true)}


def variance_of_sets(tokens: Tokens) -> Tensor:
    """Unbiased variance (S, D) over the tokens of each set; of a single token: 0."""
    x, index = upcast(tokens.x), tokens.index
    lengths = index.lengths[:, None]
    mean = x.new_zeros(len(index), x.shape[1]).index_add(0, index.sets, x) / lengths
    spread = (x - mean[index.sets]).square()
    return x.new_zeros(mean.shape).index_add(0, index.sets, spread) / (lengths - 1).clamp(min=1)


class CycleConsistency(Regularizer):
    """There and back gives the start: the prediction, moved back by the inverse movement, is the context.

    Only for predictors that are told a movement (`jepa.nn.motion`), with targets in the context's own range
    (`model.normalize_targets: false`). From LumenPallidium/jepa, which negated the code of the movement instead: its
    cosines are even, so that was not the code of any movement.

    Args:
        weight: of the mean squared difference.
    """

    def __init__(self, *, weight: float = 0.25) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, outcome: Outcome) -> dict[str, Tensor]:
        """The weighted scalar "cycle".

        Raises:
            TypeError: the query is not a movement.
        """
        if isinstance(outcome.query, Indices):
            raise TypeError("CycleConsistency needs a masker that moves views, as jepa.maskers.Saccade")
        back = outcome.predictor(outcome.prediction, motion.inverse(outcome.query))
        return {"cycle": self.weight * F.mse_loss(upcast(back.x), upcast(outcome.context.x))}
