"""How target encoders follow, and where gradients flow."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jepa.interfaces import Encoder, Predictor, TargetUpdater
from jepa.losses import L1, L2, Lp, PredictionVariance, SmoothL1, VarianceCovariance
from jepa.model import JEPA
from jepa.targets import EMA, Frozen, Shared, StopGradient
from jepa.types import Indices, JepaBatch, Outcome, Task, Tokens, View

GRID = (4,)


class ToyEncoder(Encoder):
    """One token per input position; batch norm brings floating and integer buffers."""

    embed_dim = 3

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 3)
        self.norm = nn.BatchNorm1d(3)
        self.drop = nn.Dropout(0.5)

    def grid(self, input_size: Sequence[int]) -> tuple[int, ...]:
        return tuple(input_size)

    def forward(self, view: View) -> Tokens:
        x = self.drop(self.norm(self.linear(view.x.reshape(-1, 1))))
        return Tokens(x, Indices.all(len(view.x), self.grid(view.x.shape[2:])))


class ToyPredictor(Predictor):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, context: Tokens, query: Indices | torch.Tensor) -> Tokens:
        return Tokens(self.linear(context.at(query)), query)


def toy(updater: TargetUpdater, **options) -> JEPA:
    torch.manual_seed(0)
    return JEPA(encoder=ToyEncoder(), predictor=ToyPredictor(), target=updater, criterion=SmoothL1(), **options)


def toy_batch() -> JepaBatch:
    x = torch.randn(5, 1, 4, generator=torch.Generator().manual_seed(1))
    return JepaBatch(View(x), [Task(View(x), Indices.all(5, GRID))])


def train_a_step(model: JEPA, momentum: float) -> None:
    model.train()
    model(toy_batch()).loss.backward()
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.sub_(parameter.grad + 0.1)
    model.update_target(momentum)


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.996, 1.0])
def test_ema_averages_parameters_and_buffers(momentum: float) -> None:
    model = toy(EMA())
    before = {name: value.clone() for name, value in model.target_encoder.state_dict().items()}
    train_a_step(model, momentum)
    new, after = model.encoder.state_dict(), model.target_encoder.state_dict()
    assert "norm.running_var" in before
    for name, old in before.items():
        if old.is_floating_point():
            assert torch.allclose(after[name], momentum * old + (1 - momentum) * new[name], rtol=1e-6, atol=1e-7), name
            assert not new[name].equal(old), f"{name} did not train: this would show nothing"
        else:
            assert after[name].equal(new[name]), name
    assert after["norm.num_batches_tracked"] == 1


def test_ema_reaches_every_tensor_of_a_new_dtype_mix() -> None:
    model = toy(EMA())
    for encoder in (model.encoder, model.target_encoder):
        encoder.register_buffer("low", torch.zeros(2, dtype=torch.bfloat16))
        encoder.register_buffer("hidden", torch.zeros(2), persistent=False)
    model.encoder.low.fill_(1)
    model.encoder.hidden.fill_(1)
    model.update_target(0.5)
    assert model.target_encoder.low.tolist() == [0.5, 0.5]
    assert model.target_encoder.hidden.tolist() == [0.5, 0.5]


def test_momentum_rises_linearly() -> None:
    ema = EMA(start=0.9, end=1.0)
    assert [ema.momentum(step, 10) for step in (1, 6, 10)] == pytest.approx([0.9, 0.95, 0.99])
    assert Frozen().momentum(3, 10) == 1.0
    assert StopGradient().momentum(3, 10) == 0.0


def test_momentum_rises_along_a_cosine() -> None:
    """BYOL's 1 - (1 - tau) (cos(pi k / K) + 1) / 2 with k updates before this one (Grill et al. 2020, section 3.2)."""
    ema, tau, steps = EMA(start=0.99, end=1.0, shape="cosine"), 0.99, 8
    published = [1 - (1 - tau) * (cos(pi * k / steps) + 1) / 2 for k in range(steps)]
    assert [ema.momentum(k + 1, steps) for k in range(steps)] == pytest.approx(published, abs=1e-12)
    assert ema.momentum(1, steps) == tau
    assert ema.momentum(5, steps) == pytest.approx(0.995)
    half = EMA(start=0.99, end=1.0, shape="cosine", horizon=2.0)
    assert half.momentum(5, steps) == pytest.approx(1 - 0.01 * (cos(pi / 4) + 1) / 2)


def test_half_of_the_first_weights_is_forgotten_after_a_half_life() -> None:
    assert EMA(half_life=100, end=1.0).momentum(1, 10**9) ** 100 == pytest.approx(0.5)
    assert EMA().momentum(1, 10) == 0.996


@pytest.mark.parametrize(
    "options",
    [{"start": -0.1}, {"end": 1.01}, {"half_life": 0}, {"half_life": 100, "start": 0.996}, {"shape": "square"}],
)
def test_impossible_momentum_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"target\.{next(iter(options))}="):
        EMA(**options)


@pytest.mark.parametrize("updater", [EMA(), Frozen()])
def test_a_target_encoder_of_its_own_is_a_frozen_copy(updater: TargetUpdater) -> None:
    model = toy(updater)
    model.train()
    own, copy = dict(model.encoder.named_parameters()), dict(model.target_encoder.named_parameters())
    assert own.keys() == copy.keys()
    for name, parameter in copy.items():
        assert parameter.equal(own[name])
        assert parameter.data_ptr() != own[name].data_ptr()
        assert not parameter.requires_grad
    assert model.training
    assert model.encoder.drop.training
    assert not any(module.training for module in model.target_encoder.modules())
    batch = toy_batch()
    assert model.targets(batch.target).x.equal(model.targets(batch.target).x)  # nothing is dropped out
    model(batch).loss.backward()
    assert all(parameter.grad is None for parameter in copy.values())
    assert all(parameter.grad is not None for parameter in own.values())


def test_a_frozen_target_never_moves() -> None:
    model = toy(Frozen())
    before = {name: value.clone() for name, value in model.target_encoder.state_dict().items()}
    train_a_step(model, 0.0)
    assert all(value.equal(before[name]) for name, value in model.target_encoder.state_dict().items())


def test_which_encoder_learned() -> None:
    for updater in (EMA(), StopGradient(), Shared()):
        model = toy(updater)
        assert model.learned is model.teacher
    student = toy(Frozen())
    assert student.learned is student.encoder is not student.teacher


@pytest.mark.parametrize("updater", [StopGradient(), Shared()])
def test_the_encoder_as_its_own_target(updater: TargetUpdater) -> None:
    model = toy(updater)
    assert model.target_encoder is None
    assert model.teacher is model.encoder
    assert model.targets(toy_batch().target).x.requires_grad == updater.gradient
    with torch.no_grad():
        assert not model.targets(toy_batch().target).x.requires_grad
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.update_target(0.5)
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())


def test_shared_targets_pull_on_the_encoder_and_stopped_ones_do_not() -> None:
    """The gradient of a shared target is that through the context plus that through the target."""

    def gradient(updater: TargetUpdater, detach_context: bool) -> torch.Tensor:
        model, batch = toy(updater).eval(), toy_batch()
        context = model.encoder(batch.target)
        if detach_context:
            context = Tokens(context.x.detach(), context.index)
        prediction = model.predictor(context, batch.tasks[0].query)
        loss = model.criterion(prediction.x, model.targets(batch.target).at(batch.tasks[0].query))
        if not loss.requires_grad:
            return torch.zeros(3, 1)
        return torch.autograd.grad(loss, model.encoder.linear.weight, allow_unused=True)[0]

    through_context, whole = gradient(StopGradient(), False), gradient(Shared(), False)
    through_target = gradient(Shared(), True)
    assert gradient(StopGradient(), True) is None
    assert float(through_target.norm()) > 1e-3
    assert torch.allclose(whole, through_context + through_target, atol=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
def test_targets_are_normalised_without_affine(normalize: bool) -> None:
    model = toy(EMA(), normalize_targets=normalize)
    view = toy_batch().target
    raw = model.target_encoder(view).x
    expected = (raw - raw.mean(1, keepdim=True)) / (raw.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(model.targets(view).x, expected if normalize else raw, atol=1e-6)


def test_a_step_returns_detached_intermediates() -> None:
    model, batch = toy(EMA()), toy_batch()
    out = model(batch)
    assert out.loss.requires_grad
    assert out.terms["prediction"].equal(out.loss.detach())
    seen = out.intermediates["tasks"][0]
    assert seen["query"] is batch.tasks[0].query
    for tokens in (out.intermediates["target"], seen["context"], seen["prediction"]):
        assert tokens.x.shape == (20, 3)
        assert not tokens.x.requires_grad


def test_tasks_share_the_loss_and_weigh_micro_batches() -> None:
    model, batch = toy(EMA()).eval(), toy_batch()
    task = batch.tasks[0]
    alone = model(batch).loss
    assert torch.allclose(model(JepaBatch(batch.target, [task, task])).loss, alone)
    half = Task(task.context, task.query, share=0.5)
    assert torch.allclose(model(JepaBatch(batch.target, [half])).loss, alone / 2)


NORMALISED = torch.tensor([-1.025755, -0.652753, 0.093250, 1.585257])
PREDICTED = torch.tensor([0.0, 0.0, 0.0, 3.0])


def test_toy_values_of_normalisation_and_criteria() -> None:
    assert torch.allclose(torch.nn.functional.layer_norm(torch.tensor([1.0, 2, 4, 8]), (4,)), NORMALISED, atol=1e-6)
    assert SmoothL1()(PREDICTED, NORMALISED).item() == pytest.approx(0.41447213, rel=1e-6)
    assert L1()(PREDICTED, NORMALISED).item() == pytest.approx(0.79662521, rel=1e-6)
    assert L2()(PREDICTED, NORMALISED).item() == pytest.approx((PREDICTED - NORMALISED).square().mean().item())


def test_beta_of_smooth_l1() -> None:
    """Quadratic up to beta, then linear with slope one."""
    errors = torch.tensor([0.1, 0.5, 2.0])
    expected = torch.tensor([0.1**2 / (2 * 0.5), 0.25, 2.0 - 0.25]).mean()
    assert SmoothL1(beta=0.5)(errors, torch.zeros(3)).item() == pytest.approx(expected.item())
    with pytest.raises(ValueError, match=r"criterion\.beta=0"):
        SmoothL1(beta=0)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0])
def test_criterion_with_an_exponent(p: float) -> None:
    prediction, target = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(0)).unbind(0)
    expected = sum(abs(float(a - b)) ** p for a, b in zip(prediction.flatten(), target.flatten(), strict=True)) / 21 / p
    assert float(Lp(p=p)(prediction, target)) == pytest.approx(expected, rel=1e-5)
    if p == 1:
        assert Lp()(prediction, target) == L1()(prediction, target)
    with pytest.raises(ValueError, match=r"criterion\.p=0\.5"):
        Lp(p=0.5)


def ragged(values: list[list[list[float]]]) -> Tokens:
    lengths = torch.tensor([len(one) for one in values])
    places = torch.cat([torch.arange(len(one)) for one in values])
    return Tokens(torch.tensor([row for one in values for row in one]), Indices.of(places, lengths, (9,)))


def outcome(prediction: Tokens) -> Outcome:
    return Outcome(prediction, prediction, prediction, prediction.index, ToyPredictor())


def test_variance_of_predictions_spelled_out() -> None:
    """Two tasks of two sets: the mean of their standard deviations, then the hinge; a single token has none."""
    first = ragged([[[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]], [[5.0, 0.0]]])
    second = ragged([[[0.0, 0.0], [0.2, 2.0]], [[1.0, 0.0], [1.0, 4.0]]])
    eps = 1e-4

    def std(variance: float) -> float:
        return (variance + eps) ** 0.5

    means = [(std(4) + std(0.02)) / 2, (std(0) + std(2)) / 2, std(0), (std(0) + std(8)) / 2]
    expected = sum(max(0.0, 1 - mean) for mean in means) / 4
    found = PredictionVariance(weight=3.0, eps=eps)([outcome(first), outcome(second)])
    assert {name: float(term) for name, term in found.items()} == pytest.approx({"prediction_variance": 3 * expected})
    with pytest.raises(ValueError, match="weight=0"):
        PredictionVariance(weight=0)


def test_joint_regularizers_see_all_tasks_and_others_each() -> None:
    terms = {"vicreg": VarianceCovariance(), "spread": PredictionVariance(weight=2.0)}
    model, batch = toy(EMA(), regularizers=terms).eval(), toy_batch()
    twice = JepaBatch(batch.target, batch.tasks * 2)
    seen = model(batch).intermediates["tasks"][0]
    expected = terms["vicreg"].terms(seen["context"]) | terms["spread"]([outcome(seen["prediction"])])
    for one in (batch, twice):
        found = dict(model(one).terms)
        del found["prediction"]
        assert {n: float(t) for n, t in found.items()} == pytest.approx({n: float(t) for n, t in expected.items()})
    half = model(JepaBatch(batch.target, batch.tasks, share=0.5)).terms
    assert float(half["variance"]) == pytest.approx(float(expected["variance"]) / 2)
    assert float(half["prediction_variance"]) == pytest.approx(float(expected["prediction_variance"]) / 2)


class Scaled(VarianceCovariance):
    """A term of the criterion's name, and one of no other."""

    def forward(self, outcome: Outcome) -> dict[str, Tensor]:
        return {"prediction": super().forward(outcome)["variance"], "own": outcome.context.x.mean()}


def test_terms_of_one_name_are_told_apart() -> None:
    of_both = {"context": VarianceCovariance(), "target": VarianceCovariance(covariance=0.0, sides=("target",))}
    model, batch = toy(EMA(), regularizers={**of_both, "scaled": Scaled()}).eval(), toy_batch()
    out = model(JepaBatch(batch.target, batch.tasks * 2))  # a term of two tasks is one term
    assert list(out.terms) == [
        "prediction",
        "context/variance",
        "context/covariance",
        "target/variance",
        "target/covariance",
        "scaled/prediction",
        "own",
    ]
    seen = out.intermediates["tasks"][0]
    assert out.terms["context/variance"].equal(of_both["context"].terms(seen["context"])["variance"])
    assert out.terms["target/covariance"] == 0
    assert out.loss.item() == pytest.approx(sum(map(float, out.terms.values())))
    alone = toy(EMA(), regularizers={"context": of_both["context"]}).eval()(batch).terms
    assert list(alone) == ["prediction", "variance", "covariance"]
