"""Criteria that compare predicted with target embeddings: means over tokens."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SmoothL1(nn.Module):
    """Huber-like loss: quadratic below `beta`, linear above. The published I-JEPA code uses beta = 1.

    Raises:
        ValueError: `beta` is not positive (0 would be `L1`).
    """

    def __init__(self, *, beta: float = 1.0) -> None:
        super().__init__()
        if beta <= 0:
            raise ValueError(f"criterion.beta={beta} must be positive; use jepa.losses.L1 for 0")
        self.beta = beta

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:  # (N, D), (N, D) -> ()
        return F.smooth_l1_loss(prediction, target, beta=self.beta)


class L1(nn.Module):
    """Mean absolute difference (V-JEPA, Bardes et al. 2024, equation 1)."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:  # (N, D), (N, D) -> ()
        return F.l1_loss(prediction, target)


class Lp(nn.Module):
    """Mean of |prediction - target|^p / p, as in V-JEPA's code; p = 1 is `L1`.

    Raises:
        ValueError: `p` is below 1.
    """

    def __init__(self, *, p: float = 1.0) -> None:
        super().__init__()
        if p < 1:
            raise ValueError(f"criterion.p={p} must be at least 1")
        self.p = p

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:  # (N, D), (N, D) -> ()
        return (prediction - target).abs().pow(self.p).mean() / self.p


class L2(nn.Module):
    """Mean squared difference (I-JEPA, Assran et al. 2023, section 3)."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:  # (N, D), (N, D) -> ()
        return F.mse_loss(prediction, target)


class Huber(nn.Module):
    """Quadratic below `delta`, linear with slope `delta` above: `delta` times `SmoothL1(beta=delta)`.

    Raises:
        ValueError: `delta` is not positive.
    """

    def __init__(self, *, delta: float = 1.0) -> None:
        super().__init__()
        if delta <= 0:
            raise ValueError(f"criterion.delta={delta} must be positive")
        self.delta = delta

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:  # (N, D), (N, D) -> ()
        return F.huber_loss(prediction, target, delta=self.delta)


class Cosine(nn.Module):
    """1 - cosine, mean over tokens. SimSiam's negative cosine (Chen & He 2021, equation 1) is one less; BYOL's squared
    distance of unit vectors (Grill et al. 2020, equation 2) is twice as much."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:  # (N, D), (N, D) -> ()
        return 1 - F.cosine_similarity(prediction, target, dim=-1).mean()
