"""Terms that keep embeddings from collapsing, beside the prediction loss."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from jepa.types import Tokens


class VarianceCovariance(nn.Module):
    """Variance and covariance terms of VICReg (Bardes et al. 2022, equations 1 to 4) over tokens, as in C-JEPA.

    Every token is a sample. Moments are those of all processes' tokens; as DDP averages gradients, the gradient is that
    of the global batch.

    Args:
        variance: weight of mean_d max(0, margin - std_d).
        covariance: weight of the squared off-diagonal covariances, summed and divided by D.
        margin: standard deviation that is enough.
        eps: added to the variance under the root.

    Raises:
        ValueError: a weight is negative, or both are zero.
    """

    def __init__(
        self, *, variance: float = 1.0, covariance: float = 0.04, margin: float = 1.0, eps: float = 1e-4
    ) -> None:
        super().__init__()
        if min(variance, covariance) < 0 or variance == covariance == 0:
            raise ValueError(f"variance={variance}, covariance={covariance}: weights must be positive, one may be 0")
        self.variance, self.covariance, self.margin, self.eps = variance, covariance, margin, eps

    def forward(self, tokens: Tokens) -> dict[str, Tensor]:
        """Weighted scalars "variance" and "covariance" of tokens (N, D)."""
        covariance = global_covariance(tokens.x.float())
        std = (covariance.diagonal() + self.eps).sqrt()
        off_diagonal = covariance - covariance.diagonal().diag()
        return {
            "variance": self.variance * (self.margin - std).relu().mean(),
            "covariance": self.covariance * off_diagonal.square().sum() / len(covariance),
        }


def global_covariance(x: Tensor) -> Tensor:
    """Unbiased covariance (D, D) of the rows of all processes' x (N, D), differentiable.

    The gradient that each process gets is its own, times the number of processes: what DDP's average asks for.
    """
    count = x.new_tensor(float(len(x)))
    mean = x.detach().sum(0)  # centring by a constant changes neither the value nor the gradient of the result
    parallel = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if parallel:
        dist.all_reduce(count)
        dist.all_reduce(mean)
    x = x - mean / count
    moments = torch.cat((x.T @ x, x.sum(0, keepdim=True)))
    if parallel:
        moments = all_reduce(moments)
    second, first = moments[:-1], moments[-1]
    return (second - first[:, None] * first / count) / (count - 1)
