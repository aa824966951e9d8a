"""Barlow Twins: predictions and targets agree in each dimension and in no other."""

from __future__ import annotations

from torch import Tensor, nn

from jepa.losses.moments import full_precision, global_count, global_sum, standardized


class BarlowTwins(nn.Module):
    """Cross-correlation of predictions and targets against the identity (Zbontar et al. 2021, equation 1).

    Both are standardised over all processes' samples, as by batch norm without affine parameters.

    Args:
        redundancy: weight of the squared off-diagonal correlations, lambda.
        eps: added to the variance.
    """

    def __init__(self, *, redundancy: float = 0.0051, eps: float = 1e-5) -> None:
        super().__init__()
        self.redundancy, self.eps = redundancy, eps

    def forward(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:  # (N, D), (N, D)
        """Scalars "invariance", sum_d (1 - c_dd)^2, and "redundancy", weighted."""
        with full_precision(prediction):
            crossed = standardized(prediction, self.eps).T @ standardized(target, self.eps)
            correlation = global_sum(crossed) / global_count(prediction)
        diagonal = correlation.diagonal()
        return {
            "invariance": (1 - diagonal).square().sum(),
            "redundancy": self.redundancy * (correlation.square().sum() - diagonal.square().sum()),
        }
