"""Losses against independent formulations in float64, published values, and two processes against one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from jepa.interfaces import Predictor, Regularizer
from jepa.losses import (
    L1,
    L2,
    BarlowTwins,
    Cosine,
    CycleConsistency,
    Huber,
    Lp,
    MeanInvariance,
    PredictionVariance,
    SIGReg,
    SmoothL1,
    VarianceCovariance,
)
from jepa.losses.moments import global_covariance, standardized
from jepa.losses.sigreg import epps_pulley
from jepa.nn import motion
from jepa.types import Indices, Outcome, Tokens


def tokens(x: Tensor, per_sample: int = 1) -> Tokens:
    return Tokens(x, Indices.all(len(x) // per_sample, (per_sample,)))


def outcome(context: Tensor, prediction: Tensor | None = None, target: Tensor | None = None) -> Outcome:
    prediction, target = (context if x is None else x for x in (prediction, target))
    code = torch.zeros(len(context), 0)
    return Outcome(tokens(context), tokens(prediction), tokens(target), code, lambda context, _: context)


def sample(rows: int, width: int, seed: int = 0) -> Tensor:
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x @ mixing + torch.arange(width)


def test_absolute_and_squared_differences() -> None:
    a, b = sample(7, 3), sample(7, 3, 1)
    error = [abs(x - y) for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)]
    assert L1()(a, b).item() == pytest.approx(sum(error) / 21)
    assert L2()(a, b).item() == pytest.approx(sum(e**2 for e in error) / 21)
    assert Lp(p=1.5)(a, b).item() == pytest.approx(sum(e**1.5 for e in error) / 21 / 1.5)
    smooth = [e**2 / 2 / 0.7 if e < 0.7 else e - 0.35 for e in error]
    assert SmoothL1(beta=0.7)(a, b).item() == pytest.approx(sum(smooth) / 21)


def test_published_values_of_a_normalised_target() -> None:
    target = torch.nn.functional.layer_norm(torch.tensor([[1.0, 2, 4, 8]]), (4,))
    prediction = torch.tensor([[0.0, 0, 0, 3]])
    assert SmoothL1(beta=1.0)(prediction, target).item() == pytest.approx(0.41447213)
    assert L1()(prediction, target).item() == pytest.approx(0.79662521)


def test_predictions_of_a_set_must_differ() -> None:
    """Two sets of two tokens: deviations over each, and the mean over tasks before the hinge."""
    x = torch.tensor([[0.0, 1], [1, 1], [3, 0], [3, 4]])
    told = Outcome(tokens(x, 2), tokens(x, 2), tokens(x, 2), torch.zeros(2, 0), lambda context, _: context)
    found = PredictionVariance(weight=2.0, margin=1.0, eps=0.0)([told, told])["prediction_variance"]
    assert found.item() == pytest.approx(2 * (1 - 0.5**0.5 + 1 + 1 + 0) / 4)


def test_means_of_predictions_are_those_of_their_targets() -> None:
    """Two samples of six tokens; of each two sets are asked for, of one and of three tokens."""
    target, said = sample(12, 5), sample(8, 5, seed=1).requires_grad_()
    query = Indices.of(torch.tensor([4, 0, 1, 5, 2, 1, 3, 4]), torch.tensor([1, 3, 1, 3]), (6,))
    context = tokens(sample(2, 5))
    term = MeanInvariance(weight=0.5)(
        Outcome(context, Tokens(said, query), tokens(target, 6), query, lambda context, _: context)
    )
    wanted = [target[[4]], target[[0, 1, 5]], target[[8]], target[[7, 9, 10]]]
    found = [said[:1], said[1:4], said[4:5], said[5:]]
    means = [(a.mean(0) - b.mean(0)).square().mean() for a, b in zip(wanted, found, strict=True)]
    torch.testing.assert_close(term, {"invariance": 0.5 * torch.stack(means).mean()})
    assert MeanInvariance()(outcome(target, target[:, [1, 0, 2, 3, 4]]))["invariance"] > 0  # nothing hidden: one each
    with pytest.raises(ValueError, match="leave the term out"):
        MeanInvariance(weight=0)


def test_huber_and_cosine() -> None:
    a, b = sample(7, 3), sample(7, 3, 1)
    error = (a - b).abs()
    by_hand = torch.where(error < 0.5, error.square() / 2, 0.5 * (error - 0.25)).mean()
    assert Huber(delta=0.5)(a, b).item() == pytest.approx(by_hand.item())
    assert Huber(delta=0.5)(a, b).item() == pytest.approx(0.5 * SmoothL1(beta=0.5)(a, b).item())
    unit = [x / x.square().sum(1, keepdim=True).sqrt() for x in (a, b)]
    byol = (unit[0] - unit[1]).square().sum(1).mean()
    assert 2 * Cosine()(a, b).item() == pytest.approx(byol.item())
    assert Cosine()(a, b).item() - 1 == pytest.approx(-(unit[0] * unit[1]).sum(1).mean().item())
    with pytest.raises(ValueError, match=r"criterion\.delta=0"):
        Huber(delta=0)


def test_variance_and_covariance_spelled_out() -> None:
    """Four dimensions: below the margin, just below it, just below it but for eps, and above."""
    rows, width, margin, eps = 11, 4, 1.2, 1e-4
    x = sample(rows, width)
    x = x / x.std(0) * margin * torch.tensor([0.25, 0.95, 1 - 2e-5, 2.0], dtype=torch.float64).sqrt()
    mean = [sum(row[i] for row in x.tolist()) / rows for i in range(width)]

    def covariance(i: int, j: int) -> float:
        return sum((row[i] - mean[i]) * (row[j] - mean[j]) for row in x.tolist()) / (rows - 1)

    missing = [max(0.0, margin - (covariance(i, i) + eps) ** 0.5) for i in range(width)]
    assert [m > 0 for m in missing] == [True, True, False, False]
    assert covariance(2, 2) < margin**2
    crossed = sum(covariance(i, j) ** 2 for i in range(width) for j in range(width) if i != j)
    found = VarianceCovariance(variance=1.5, covariance=0.7, margin=margin, eps=eps)(outcome(x))
    assert found["variance"].item() == pytest.approx(1.5 * sum(missing) / width, rel=1e-12)
    assert found["covariance"].item() == pytest.approx(0.7 * crossed / width, rel=1e-12)


def test_half_precision_alone_is_raised() -> None:
    """Moments of float64 tokens are float64, those of half precision float32."""
    code = torch.zeros(6, 5)
    for given, expected in ((torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, None)):
        x = sample(6, 3).to(given)
        told = Outcome(tokens(x), tokens(x), tokens(x), code, lambda context, _: context)
        for term in (VarianceCovariance(), SIGReg(slices=4), CycleConsistency(), PredictionVariance()):
            found = term([told] if isinstance(term, PredictionVariance) else told)
            assert {value.dtype for value in found.values()} == {expected or torch.float32}, type(term).__name__


def test_sigreg_spelled_out() -> None:
    x, weight, nodes = sample(5, 3) / 3, 0.3, [3 / 16 * j for j in range(17)]
    directions = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    directions = (directions / directions.norm(dim=0)).double()
    total = 0.0
    for along in (x @ directions).T.tolist():
        for number, t in enumerate(nodes):
            normal = math.exp(-t * t / 2)
            real, imaginary = sum(math.cos(a * t) for a in along) / 5, sum(math.sin(a * t) for a in along) / 5
            step = 3 / 16 * (1 if number in (0, 16) else 2)
            total += 5 * step * normal * ((real - normal) ** 2 + imaginary**2)
    assert SIGReg(weight=weight, slices=4)(outcome(x))["sigreg"].item() == pytest.approx(weight * total / 4, rel=1e-10)


def test_covariance_is_that_of_torch() -> None:
    x = sample(11, 4)
    torch.testing.assert_close(global_covariance(x), torch.cov(x.T))
    torch.testing.assert_close(
        standardized(x, 1e-5), torch.nn.functional.batch_norm(x, None, None, training=True, eps=1e-5)
    )


def test_sides_are_averaged_and_tokens_pooled() -> None:
    a, b, c = (sample(12, 3, seed).float() for seed in range(3))
    alone = [VarianceCovariance()(outcome(x))["covariance"] for x in (a, b, c)]
    both = VarianceCovariance(sides=("context", "target"))(outcome(a, b, c))["covariance"]
    assert both.item() == pytest.approx((alone[0] + alone[2]).item() / 2)
    assert VarianceCovariance(sides=("prediction",))(outcome(a, b, c))["covariance"].equal(alone[1])
    grid = Outcome(tokens(a, 4), tokens(a, 4), tokens(a, 4), torch.zeros(3, 0), lambda context, _: context)
    pooled = VarianceCovariance(pool=True)(grid)["covariance"]
    assert pooled.item() == pytest.approx(VarianceCovariance()(outcome(a.view(3, 4, 3).mean(1)))["covariance"].item())
    for sides in ((), ("context", "context"), ("sideways",)):
        with pytest.raises(ValueError, match="some of context, prediction, target"):
            VarianceCovariance(sides=sides)


def test_barlow_twins_in_float64() -> None:
    a, b = sample(20, 5), sample(20, 5) + 0.3 * sample(20, 5, 1)
    za, zb = ((x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt() for x in (a, b))
    diagonal = off = 0.0
    for i in range(5):
        for j in range(5):
            c = (za[:, i] * zb[:, j]).mean().item()
            diagonal, off = (diagonal + (1 - c) ** 2, off) if i == j else (diagonal, off + c**2)
    found = BarlowTwins(redundancy=0.01)(a, b)
    assert found["invariance"].item() == pytest.approx(diagonal)
    assert found["redundancy"].item() == pytest.approx(0.01 * off)


@pytest.mark.parametrize(("x", "value"), [([-1.0, 0, 1], 0.03294650), ([0.0] * 4, 1.60819032), ([2.0, 2], 5.28570479)])
def test_epps_pulley_of_published_code(x: list[float], value: float) -> None:
    assert epps_pulley(torch.tensor(x)[:, None]).item() == pytest.approx(value, rel=1e-6)


def test_epps_pulley_is_the_weighted_distance_of_characteristic_functions() -> None:
    x = sample(6, 1)[:, 0] / 2
    nodes = torch.linspace(-3, 3, 2001, dtype=torch.float64)
    empirical = torch.exp(1j * nodes[:, None] * x).mean(1)
    density = (empirical - torch.exp(-nodes.square() / 2)).abs().square() * torch.exp(-nodes.square() / 2)
    whole = 6 * torch.trapezoid(density, nodes)
    assert epps_pulley(x[:, None], points=2001).item() == pytest.approx(whole.item(), rel=1e-4)


def test_sigreg_of_published_code_and_its_count_of_calls() -> None:
    """The values of the first two steps with 64 slices; a resumed run goes on with the third."""
    x = torch.arange(12.0).view(4, 3) / 6 - 1
    sigreg = SIGReg(weight=1.0, slices=64)
    assert sigreg(outcome(x))["sigreg"].item() == pytest.approx(0.80033946, rel=1e-6)
    assert sigreg(outcome(x))["sigreg"].item() == pytest.approx(0.70489854, rel=1e-6)
    resumed = SIGReg(weight=1.0, slices=64)
    resumed.load_state_dict(sigreg.state_dict())
    assert resumed(outcome(x))["sigreg"].equal(sigreg(outcome(x))["sigreg"])
    calls = sigreg.calls
    sigreg.eval()(outcome(x))
    assert sigreg.calls == calls
    with pytest.raises(ValueError, match="points odd"):
        SIGReg(points=16)


class Shift(Predictor):
    """Adds how far the eye moves, so that there and back is exactly nothing only for the true inverse."""

    def forward(self, context: Tokens, query: Tensor) -> Tokens:
        return Tokens(context.x + query[:, 1:3], context.index)


def test_cycle_asks_the_predictor_for_the_inverse_movement() -> None:
    x, still = torch.randn(4, 2), torch.zeros(4, 5)
    move = still.clone()
    move[:, 1:3] = 0.5
    predictor = Shift()

    def cycle(query: Tensor) -> float:
        context = tokens(x)
        told = Outcome(context, predictor(context, query), context, query, predictor)
        return CycleConsistency(weight=2.0)(told)["cycle"].item()

    assert cycle(move) == pytest.approx(0, abs=1e-12)
    turned = move.clone()
    turned[:, 0] = 90
    there_and_back = turned[:, 1:3] + motion.inverse(turned)[:, 1:3]  # this toy knows nothing of turning
    assert cycle(turned) == pytest.approx(2 * there_and_back.square().mean().item())
    assert cycle(turned) > 0.1
    with pytest.raises(TypeError, match=r"jepa\.maskers\.Saccade"):
        CycleConsistency()(Outcome(tokens(x), tokens(x), tokens(x), Indices.all(4, (1,)), predictor))


TERMS: dict[str, Regularizer] = {
    "vicreg": VarianceCovariance(margin=3.0),
    "vicreg of every side": VarianceCovariance(margin=3.0, sides=("context", "prediction", "target")),
    "sigreg": SIGReg(slices=16),
}


def gradients(a: Tensor, b: Tensor) -> list[Tensor]:
    """Of each loss, with respect to both sides."""
    losses = [
        *(sum(term(outcome(a, b, b)).values()) for term in TERMS.values()),
        sum(BarlowTwins()(a, b).values()),
        SIGReg(slices=16, sides=("prediction",))(outcome(a, b, b))["sigreg"],
    ]
    found = []
    for loss in losses:
        grads = torch.autograd.grad(loss, (a, b), allow_unused=True)
        found.append(torch.cat([torch.zeros_like(a) if g is None else g for g in grads], 1))
    return [*found, torch.stack(losses).detach()]


def work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    rows = slice(0, 5) if rank == 0 else slice(5, 12)  # unequal shares
    torch.save(gradients(*(x[rows].requires_grad_() for x in both())), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def both() -> tuple[Tensor, Tensor]:
    return sample(12, 4).float() / 3, sample(12, 4, 1).float() / 3


def test_two_processes_have_the_gradients_of_the_global_batch(tmp_path: Path) -> None:
    """Each process is handed its own share, times two: DDP halves it."""
    mp.start_processes(work, (str(tmp_path),), nprocs=2, start_method="spawn")  # autograd cannot be forked
    shares = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    whole = gradients(*(x.requires_grad_() for x in both()))
    for number, expected in enumerate(whole[:-1]):
        assert expected.norm() > 1e-3
        found = torch.cat([share[number] for share in shares]) / 2
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    for share in shares:
        torch.testing.assert_close(share[-1], whole[-1], rtol=1e-5, atol=1e-6)
