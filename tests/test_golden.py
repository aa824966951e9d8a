"""Twelve steps of the published I-JEPA code, replayed: tokens, predictions, gradients, schedules and losses."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from torch import nn

from jepa.encoders import ViT
from jepa.model import JEPA
from tests import replay_golden

GOLDEN = str(Path(__file__).parent / "golden" / "ijepa")


def test_published_training_is_reproduced() -> None:
    errors = replay_golden.replay(GOLDEN)
    assert len(errors) > 100
    assert {name: error for name, error in errors.items() if not error <= replay_golden.TOLERANCE} == {}


def test_wrong_axis_order_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_golden, "ViT", partial(ViT, axis_order="first_first"))
    errors = replay_golden.replay(GOLDEN)
    assert errors["step 1 loss"] > replay_golden.TOLERANCE
    assert errors["step 1 target_tokens"] > 100 * replay_golden.TOLERANCE


def test_wrong_epsilon_is_noticed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    build = replay_golden.build

    def build_with_default_epsilon(args: dict, ema: list[float]) -> JEPA:
        model = build(args, ema)
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-5
        return model

    monkeypatch.setattr(replay_golden, "build", build_with_default_epsilon)
    monkeypatch.setattr("sys.argv", ["replay_golden", GOLDEN])
    assert replay_golden.main() == 1
    assert "BAD" in capsys.readouterr().out
