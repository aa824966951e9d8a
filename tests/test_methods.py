"""Every family of methods trains, stops, goes on exactly, loads and is probed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import jepa
from jepa import evaluate
from jepa.metrics import read_metrics
from tests.conftest import Ran
from tests.tiny import losses, weights

Run = Callable[..., Ran]

SMALL = ("data.workers=0", "train.steps=2", "train.batch_size=8", "train.log_every=1", "train.checkpoint_every=1")
TERMS = {
    "saccade_tiny": {"prediction", "cycle", "variance", "covariance"},
}


@pytest.mark.parametrize("name", TERMS)
def test_a_method_trains_goes_on_exactly_loads_and_is_probed(
    name: str, tmp_path: Path, jepa_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [f"recipe={name}", *SMALL, f"run_dir={tmp_path}"]
    ran = jepa_run(*command)
    assert ran.status == 0, ran.err
    expected, trained = losses(tmp_path), weights(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000002")
    ran = jepa_run(*command)
    assert ran.status == 0, ran.err
    assert "resumed after step 1" in ran.log
    assert losses(tmp_path) == expected
    assert all(value.equal(trained[key]) for key, value in weights(tmp_path).items())
    rows = read_metrics(tmp_path / "metrics.jsonl")
    named = {key.removeprefix("loss_"): value for key, value in rows[0].items() if key.startswith("loss_")}
    assert (named.keys() or {"prediction"}) == TERMS[name]
    assert sum(named.values()) == pytest.approx(rows[0]["loss"]) or not named
    assert rows[1]["loss"] != rows[0]["loss"]

    size = jepa.load(tmp_path).recipe["data"]["size"]
    x = torch.randint(256, (3, 3, size, size), dtype=torch.uint8)
    features = jepa.load(tmp_path).features(x)
    assert features.shape[0] == 3
    assert features.isfinite().all()
    assert not torch.allclose(features[0], features[1])
    status = evaluate.main([f"run={tmp_path}", "limit=24", "probes=[regression]"])
    assert status == 0, capsys.readouterr().err
    assert "random_init" in capsys.readouterr().out


OWN = """
from torch import nn
from jepa import Encoder, Indices, Tokens

class Mine(Encoder):
    hides = False
    def __init__(self, *, dim: int = 32) -> None:
        super().__init__()
        self.embed_dim = dim
        self.net = nn.Sequential(nn.Conv2d(3, dim, 8, 8), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    def grid(self, input_size):
        return (1,)
    def forward(self, view):
        return Tokens(self.net(view.x), Indices.all(len(view.x), (1,), view.x.device))
"""


def test_an_encoder_of_ones_own_makes_saccades(tmp_path: Path, jepa_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_convnet.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    run_dir = tmp_path / "run"
    ran = jepa_run("recipe=saccade_tiny", *SMALL, "encoder._target_=own_convnet.Mine", f"run_dir={run_dir}")
    assert ran.status == 0, ran.err
    assert losses(run_dir).keys() == {1, 2}
    assert jepa.load(run_dir, trust=("own_convnet",)).features(torch.zeros(2, 3, 48, 48)).shape == (2, 32)
    del sys.modules["own_convnet"]


TOKENS_OF_A_CONVNET = (
    "recipe=ijepa_tiny",
    "encoder._target_=jepa.encoders.Timm",
    "encoder.name=test_convnext",
    "encoder.pool=false",
    "data.size=128",
    "predictor.heads=3",
    "masker=random_patches",
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*TOKENS_OF_A_CONVNET], "RandomPatches hides tokens, but encoder Timm sees whole inputs only"),
        (["masker.translation=0.4"], "make them at least (97, 97), or lower masker.translation"),
        (["predictor=vit", "predictor.heads=3"], "ViTPredictor answers Indices, but masker Saccade asks with Tensor"),
        (["optim.optimizer._target_=torch.optim.SGD"], "AdamW needs betas and eps; with another optimizer"),
        (["encoder.name=resnet999"], "timm cannot make 'resnet999'"),
    ],
)
def test_parts_that_do_not_fit_are_named(arguments: list[str], message: str, tmp_path: Path, jepa_run: Run) -> None:
    recipe = () if arguments[0].startswith("recipe=") else ("recipe=saccade_tiny",)
    ran = jepa_run(*recipe, *SMALL, *arguments, f"run_dir={tmp_path}")
    assert ran.status == 1
    assert message in ran.err
    assert "Traceback" not in ran.err
