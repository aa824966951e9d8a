"""Twelve steps of the published I-JEPA and V-JEPA code, replayed: tokens, predictions, gradients, schedules, losses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from jepa.model import JEPA
from tests import replay_golden

FOLDER = Path(__file__).parent / "golden"
GOLDEN = str(FOLDER / "ijepa")


@pytest.mark.parametrize("method", ["ijepa", "vjepa"])
def test_published_training_is_reproduced(method: str) -> None:
    errors = replay_golden.replay(str(FOLDER / method))
    assert len(errors) > 100
    assert {name: error for name, error in errors.items() if not error <= replay_golden.TOLERANCE} == {}


def test_wrong_axis_order_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = replace(replay_golden.RECORDED["ijepa"], encoder={"axis_order": "first_first"})
    monkeypatch.setitem(replay_golden.RECORDED, "ijepa", wrong)
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
