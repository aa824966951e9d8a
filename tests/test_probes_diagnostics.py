"""The numbers of the collapse panel, against independent formulations and data whose answer is known."""

import numpy as np
import pytest
import torch

from jepa.probes import agreement, correlation_dimension, mean_cosine, position_variance, rank_me, spread


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_rank_me_follows_its_formula():
    x = draw(40, 12) @ draw(12, 12, seed=1) + 3  # neither centred nor white
    s = np.linalg.svd(x.double().numpy(), compute_uv=False)
    p = s / s.sum() + 1e-7
    assert rank_me(x) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-5)


def test_rank_me_known_values():
    assert rank_me(torch.eye(7)) == pytest.approx(7, rel=1e-5)
    assert rank_me(torch.ones(9, 4)) == pytest.approx(1, abs=1e-4)
    assert rank_me(torch.zeros(9, 4)) == 1
    singular = torch.diag(torch.tensor([3.0, 1.0, 1.0]))
    assert rank_me(singular, eps=1e-5) == pytest.approx(2.586428, abs=2e-6)  # another library's epsilon
    assert rank_me(singular) == pytest.approx(2.586409, abs=2e-6)


def test_spread_and_mean_cosine():
    x = draw(30, 5) + 1
    assert spread(x) == pytest.approx(float(x.numpy().std(0).mean()), rel=1e-5)
    unit = (x / x.norm(dim=1, keepdim=True)).double()
    pairs = (unit @ unit.T)[~torch.eye(30, dtype=torch.bool)]
    assert mean_cosine(x) == pytest.approx(float(pairs.mean()), abs=1e-6)
    with pytest.raises(ValueError, match="two samples"):
        mean_cosine(x[:1])


def test_position_variance_is_the_between_share():
    x = draw(6, 10, 4) + 2 * draw(1, 10, 4, seed=1)
    flat = x.double().numpy()
    between = ((flat.mean(0) - flat.mean((0, 1))) ** 2).sum() * len(x)
    assert position_variance(x) == pytest.approx(between / ((flat - flat.mean((0, 1))) ** 2).sum(), rel=1e-5)


def test_position_variance_of_position_alone_and_of_content_alone():
    assert position_variance(draw(1, 16, 8).expand(32, -1, -1)) == pytest.approx(1, abs=1e-6)
    assert position_variance(draw(64, 16, 32)) == pytest.approx(1 / 64, rel=0.1)
    assert position_variance(draw(64, 1, 32).expand(-1, 16, -1)) == pytest.approx(0, abs=1e-6)
    assert position_variance(torch.ones(4, 4, 4)) == 1


def test_agreement_is_a_row_by_row_cosine():
    x = draw(20, 6)
    assert agreement(3 * x, x) == pytest.approx(1, abs=1e-6)
    assert agreement(-x, x) == pytest.approx(-1, abs=1e-6)


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_correlation_dimension_of_a_line_a_plane_and_a_cube(dimension):
    rng = torch.Generator().manual_seed(dimension)
    axes = torch.linalg.qr(draw(20, 20))[0][:dimension]
    x = torch.rand(2000, dimension, generator=rng) @ axes + 5
    assert correlation_dimension(x) == pytest.approx(dimension, abs=0.06 * dimension)
    assert correlation_dimension(1000 * x) == pytest.approx(correlation_dimension(x), abs=0.02)


def test_correlation_dimension_of_a_curve_is_not_that_of_its_space():
    t = 6 * torch.rand(3000, generator=torch.Generator().manual_seed(0))
    curve = torch.stack((t.cos(), t.sin(), (3 * t).cos(), (3 * t).sin()), 1)
    assert correlation_dimension(curve) == pytest.approx(1, abs=0.05)


def test_correlation_dimension_of_a_point_is_zero():
    assert correlation_dimension(torch.ones(200, 3)) == 0
    with pytest.raises(ValueError, match="at least 100"):
        correlation_dimension(draw(99, 3))
