"""The Energy Transformer descends on the energy that it says it does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jepa.encoders import EnergyTransformer
from jepa.encoders.energy import Energy
from jepa.nn.attention import Layout
from jepa.types import Indices, View

RAGGED = Indices.of(torch.tensor([0, 3, 5, 1, 2, 4, 7, 8, 6]), torch.tensor([3, 5, 1]), (3, 3))


def encoder(**options: int | float) -> EnergyTransformer:
    torch.manual_seed(0)
    made = EnergyTransformer(**{"dim": 16, "heads": 2, "hidden": 24, "steps": 6, "patch_size": 4, **options})
    with torch.no_grad():
        for layer in (made.energy.query, made.energy.key, made.energy.patterns):
            layer.weight.mul_(5)  # as after training: larger than at the start, heads of different temperature
        made.energy.log_beta.add_(torch.tensor([1.5, 7.5]).log())
    return made


def by_hand(energy: Energy, g: Tensor) -> Tensor:
    """Of one sequence, head by head and token by token."""
    total = -torch.relu(energy.patterns(g)).square().sum() / 2
    q, k = energy.query(g).chunk(2, 1), energy.key(g).chunk(2, 1)
    for head in range(2):
        beta = energy.beta[head]
        for token in q[head]:
            total = total - (beta * k[head] @ token).exp().sum().log() / beta
    return total


def test_energy_and_its_gradient_of_ragged_sequences() -> None:
    energy = encoder().energy.double()
    g = torch.randn(9, 16, dtype=torch.float64, requires_grad=True)
    layout = Layout.of(RAGGED)
    found = energy(g, layout)
    expected = torch.stack([by_hand(energy, part) for part in g.split([3, 5, 1])])
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found.sum(), g)
    torch.testing.assert_close(energy.gradient(g, layout), gradient)


@pytest.mark.parametrize("size", [(12, 12), (8, 16)])
def test_the_energy_never_rises_along_the_steps(size: tuple[int, int]) -> None:
    model = encoder(steps=12).double()
    with torch.no_grad():
        model.log_gamma.fill_(0.5)
        model.delta.normal_()
    x = torch.randn(5, 3, *size, dtype=torch.float64)
    path, index = model.descend(View(x))
    energies = torch.stack([model.energy(g, Layout.of(index)) for g in path])
    assert energies.shape == (13, 5)
    assert (energies.diff(dim=0) <= 0).all()
    assert (energies[-1] < energies[0] - 0.1).all()
    assert model.grid(size) == index.grid == (size[0] // 4, size[1] // 4)


LOSSES = {"along": lambda y: y @ PULL, "against": lambda y: -y @ PULL, "to nothing": Tensor.square}
PULL = torch.randn(16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_energy_never_rises_after_training_steps(loss: str) -> None:
    """Whichever way its temperatures and scale are pulled: they stay positive."""
    model = encoder(steps=12).double()
    few, many = ([p for p in model.parameters() if (p.ndim < 2) == one] for one in (True, False))
    optimizer = torch.optim.Adam([{"params": few, "lr": 0.2}, {"params": many, "lr": 1e-3}])
    x = torch.randn(5, 3, 12, 12, dtype=torch.float64)
    first = model.energy.beta.detach(), model.descend(View(x))[0][0].detach().std()
    for _ in range(10):
        optimizer.zero_grad()
        LOSSES[loss](model(View(x)).x).mean().backward()
        optimizer.step()
        with torch.no_grad():
            path, index = model.descend(View(x))
            energies = torch.stack([model.energy(g, Layout.of(index)) for g in path])
        assert (energies.diff(dim=0) <= 0).all()
        assert (model.energy.beta > 0).all()
    assert ((model.energy.beta - first[0]).abs() > 0.1).any()
    assert abs(path[0].std() - first[1]) > 0.1


def test_ragged_views_are_seen_as_each_on_its_own() -> None:
    model, x = encoder(), torch.randn(3, 3, 12, 12)
    together = model(View(x, RAGGED)).x.split([3, 5, 1])
    start = 0
    for number, length in enumerate([3, 5, 1]):
        alone = Indices.of(RAGGED.values[start : start + length], torch.tensor([length]), (3, 3))
        torch.testing.assert_close(model(View(x[number : number + 1], alone)).x, together[number])
        start += length


def test_layers_are_steps_and_everything_learns() -> None:
    model, view = encoder(), View(torch.randn(2, 3, 12, 12))
    path, _ = model.descend(view)
    first, last = model.features(view, (0, -1))
    assert first.x.equal(path[1])
    assert last.x.equal(path[-1])
    assert model(view).x.equal(last.x)
    model(view).x.square().mul(torch.randn(16)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    with pytest.raises(ValueError, match="there are 6 steps"):
        model.features(view, (6,))
    with pytest.raises(ValueError, match="rate=0"):
        encoder(rate=0)
