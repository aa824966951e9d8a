"""Schedules at steps of the published runs."""

from __future__ import annotations

import pytest

from jepa.schedules import Cosine, Linear, LinearDecay, WarmupCosine
from jepa.targets import EMA

IJEPA_STEPS, IJEPA_WARMUP = 187_500, 25_000  # 300 and 40 epochs of 625 steps
VJEPA_STEPS, VJEPA_WARMUP = 112_500, 12_000  # 300 epochs of 300 steps, stretched by 1.25, and 40 epochs


@pytest.mark.parametrize(
    ("step", "value"),
    [
        (1, 2.00032e-4),
        (24_999, 9.99968e-4),
        (25_000, 1e-3),
        (25_001, 9.999999999067e-4),
        (100_000, 5.60708072e-4),
        (187_500, 1e-6),
    ],
)
def test_learning_rate_of_ijepa(step: int, value: float) -> None:
    assert WarmupCosine(2e-4, 1e-3, 1e-6, IJEPA_WARMUP, IJEPA_STEPS)(step) == pytest.approx(value, rel=1e-8)


@pytest.mark.parametrize(("step", "value"), [(25_000, 0.0555618176), (100_000, 0.238815123), (187_500, 0.4)])
def test_weight_decay_of_ijepa(step: int, value: float) -> None:
    assert Cosine(0.04, 0.4, IJEPA_STEPS)(step) == pytest.approx(value, rel=1e-8)


@pytest.mark.parametrize(("step", "value"), [(1, 0.996), (100_000, 0.998133312), (187_500, 0.999999979)])
def test_momentum_of_ijepa(step: int, value: float) -> None:
    assert Linear(0.996, 1.0, IJEPA_STEPS)(step) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize(
    ("step", "value"), [(1, 2.00035417e-4), (12_000, 6.25e-4), (45_000, 4.73203948e-4), (90_000, 7.50422244e-5)]
)
def test_learning_rate_of_vjepa(step: int, value: float) -> None:
    assert WarmupCosine(2e-4, 6.25e-4, 1e-6, VJEPA_WARMUP, VJEPA_STEPS)(step) == pytest.approx(value, rel=1e-8)


def test_ends_of_a_stretched_run() -> None:
    assert Cosine(0.04, 0.4, VJEPA_STEPS)(90_000) == pytest.approx(0.365623059, rel=1e-8)
    assert Linear(0.998, 1.0, VJEPA_STEPS)(90_000) == pytest.approx(0.999599982, abs=1e-9)
    assert EMA(start=0.998, end=1.0, horizon=1.25).momentum(90_000, 90_000) == pytest.approx(0.999599982, abs=1e-9)


@pytest.mark.parametrize(("step", "value"), [(1, 5.24965067e-4), (6_000, 3.154e-4), (12_000, 1.058e-4)])
def test_cooldown_of_vjepa2(step: int, value: float) -> None:
    """40 epochs of 300 steps, stretched by 1.25."""
    assert LinearDecay(5.25e-4, 1e-6, 15_000)(step) == pytest.approx(value, rel=1e-8)
    assert LinearDecay(5.25e-4, 1e-6, 15_000)(15_000 + step) == pytest.approx(1e-6)


def test_constant_rates_of_vjepa2() -> None:
    rate = WarmupCosine(1e-4, 5.25e-4, 5.25e-4, 12_000, 240_000)
    assert rate(6_000) == pytest.approx(3.125e-4)
    assert {rate(step) for step in (12_000, 12_001, 100_000, 240_000, 300_000)} == {5.25e-4}
    assert {Cosine(0.04, 0.04, 240_000)(step) for step in (1, 77_777, 240_000)} == {0.04}
    assert {EMA(start=0.99925, end=0.99925).momentum(step, 240_000) for step in (1, 77_777, 240_000)} == {0.99925}


@pytest.mark.parametrize(("start", "end"), [(0.9, 1.0), (1.0, 0.9)])
def test_momentum_stays_at_its_end(start: float, end: float) -> None:
    target = EMA(start=start, end=end, horizon=0.5)
    assert target.momentum(50, 100) == pytest.approx(start + 0.98 * (end - start))
    assert target.momentum(51, 100) == target.momentum(100, 100) == pytest.approx(end)
    with pytest.raises(ValueError, match=r"target\.horizon=0"):
        EMA(horizon=0)


@pytest.mark.parametrize("step", [100, 101, 150, 200])
def test_the_end_value_holds_after_the_end(step: int) -> None:
    assert Cosine(0.04, 0.4, 100)(step) == pytest.approx(0.4)
    assert Cosine(0.4, 0.04, 100)(step) == pytest.approx(0.04)
    assert WarmupCosine(0.1, 1.0, 0.01, 10, 100)(step) == pytest.approx(0.01)


def test_no_warmup_and_warmup_of_the_whole_run() -> None:
    assert WarmupCosine(0.1, 1.0, 0.0, 0, 10)(5) == pytest.approx(0.5)
    assert [WarmupCosine(0.0, 1.0, 0.0, 4, 4)(step) for step in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1.0]
