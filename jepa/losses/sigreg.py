"""SIGReg of LeJEPA: embeddings that are standard normal along random directions."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa.interfaces import Regularizer
from jepa.losses.moments import full_precision, global_count, global_sum, upcast
from jepa.losses.regularizers import Side, as_sides, mean_over
from jepa.types import Outcome, Tokens


class SIGReg(Regularizer):
    """Sketched isotropic Gaussian regularisation (Balestriero & LeCun 2025): the Epps-Pulley statistic of random
    one-dimensional projections, with the samples of all processes.

    The directions are a function of how often it was called in training, which checkpoints keep: a resumed run goes on
    with the same ones, and all processes draw the same.

    Args:
        weight: in the loss. The statistic grows with the number of samples: weights of other implementations, some of
            which leave that factor out, do not transfer.
        slices: directions, K.
        points: nodes of the quadrature on [0, t_max], odd.
        t_max: end of the interval.
        sides: what it looks at, "context", "prediction" or "target"; the mean of several.

    Raises:
        ValueError: a number is out of its range; an unknown side.
    """

    def __init__(
        self,
        *,
        weight: float = 0.05,
        slices: int = 1024,
        points: int = 17,
        t_max: float = 3.0,
        sides: tuple[Side, ...] = ("context",),
    ) -> None:
        super().__init__()
        if slices < 1 or points < 3 or points % 2 == 0 or t_max <= 0:
            raise ValueError(f"need slices >= 1, points odd and >= 3, t_max > 0; got {slices}, {points}, {t_max}")
        self.weight, self.slices, self.points, self.t_max = weight, slices, points, t_max
        self.sides = as_sides(sides)
        self.calls = 0

    def get_extra_state(self) -> Tensor:
        """The number of calls so far, for the checkpoint: on the host, where reading it waits for no device."""
        return torch.tensor(self.calls)

    def set_extra_state(self, state: Tensor) -> None:
        self.calls = int(state)

    def forward(self, outcome: Outcome) -> dict[str, Tensor]:
        """The weighted scalar "sigreg"."""
        found = mean_over(self.sides, outcome, lambda tokens: {"sigreg": self.weight * self.statistic(tokens)})
        self.calls += self.training
        return found

    def statistic(self, tokens: Tokens) -> Tensor:
        """Mean over the slices of tokens (N, D)."""
        x = upcast(tokens.x)
        generator = torch.Generator(x.device).manual_seed(self.calls)
        directions = torch.randn(x.shape[1], self.slices, generator=generator, device=x.device, dtype=torch.float32)
        with full_precision(x):
            along = x @ (directions / directions.norm(dim=0)).to(x.dtype)
            return epps_pulley(along, self.points, self.t_max).mean()


def epps_pulley(x: Tensor, points: int = 17, t_max: float = 3.0) -> Tensor:
    """N times the squared distance of the empirical characteristic function from the standard normal's, weighted by
    the latter and integrated over [-t_max, t_max] by the trapezoid rule: (N, K) -> (K,).

    The samples are those of all processes, and they are not standardised: mean 0 and variance 1 are part of the
    hypothesis. Both sides being even in t, only half of the interval is evaluated.
    """
    count = global_count(x)
    t = torch.linspace(0, t_max, points, device=x.device, dtype=x.dtype)
    weight = torch.full_like(t, 2 * t_max / (points - 1))
    weight[[0, -1]] /= 2
    normal = (-t.square() / 2).exp()
    angles = x[..., None] * t  # (N, K, points)
    real, imaginary = global_sum(torch.stack((angles.cos().sum(0), angles.sin().sum(0)))) / count
    return count * ((real - normal).square() + imaginary.square()) @ (weight * normal)
