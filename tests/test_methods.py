"""Every family of methods trains, stops, goes on exactly, loads and is probed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import jepa
from jepa import checkpoint, evaluate
from jepa.data import Views, two_views
from jepa.metrics import read_metrics
from jepa.report.page import ReportSettings, write_report
from jepa.types import JepaBatch, Task, View
from tests.conftest import Ran
from tests.test_distributed import STEPS, assert_same_training, torchrun
from tests.tiny import TINY, TINY_BUT_TARGET, images, losses, weights

Run = Callable[..., Ran]

SMALL = ("data.workers=0", "train.steps=2", "train.batch_size=8", "train.log_every=1", "train.checkpoint_every=1")
TERMS = {
    "saccade_tiny": {"prediction", "cycle", "variance", "covariance"},
    "simsiam_tiny": {"prediction"},
    "byol_tiny": {"prediction"},
    "vicreg_tiny": {"prediction", "variance", "covariance"},
    "barlow_tiny": {"invariance", "redundancy"},
    "lejepa_tiny": {"prediction", "sigreg"},
    "energy_tiny": {"prediction", "variance", "covariance"},
    "ajepa_tiny": {"prediction", "variance", "covariance"},
}
# the others read and normalise data as one of these; multi-class probes would take longer
PROBED = {"saccade_tiny": "regression,movement", "simsiam_tiny": "regression", "ajepa_tiny": "regression"}


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
    waves = name == "ajepa_tiny"
    x = torch.randn(3, 1, 16384) / 8 if waves else torch.randint(256, (3, 3, size, size), dtype=torch.uint8)
    features = jepa.load(tmp_path).features(x)
    assert features.shape[0] == 3
    assert features.isfinite().all()
    assert not torch.allclose(features[0], features[1])
    if name not in PROBED:
        return
    status = evaluate.main([f"run={tmp_path}", "limit=24", f"probes=[{PROBED[name]}]"])
    assert status == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "random_init" in printed
    assert ("movement cells" in printed) == ("translation" in printed) == (name == "saccade_tiny")
    page = write_report(ReportSettings(run=str(tmp_path), samples=16)).read_text()
    assert ("Nothing is hidden" in page) != waves
    assert "the truth ranks" in page


CONVNET = ("encoder.name=test_resnet", "encoder.sync_batch_norm=false", "encoder.projector=[24,16]")
VIT = ("encoder.dim=32", "encoder.heads=2", "encoder.patch_size=8", "predictor.dim=32", "predictor.depth=1")
FULL_SIZE = {
    "saccade_convnext_tiny": ("encoder.name=test_convnext", "data.transform.size=50"),
    "saccade_vit": (*VIT, "encoder.depth=1", "data.transform.size=50"),
    "simsiam_resnet50": (*CONVNET, "predictor.hidden=8"),
    "byol_resnet50": (*CONVNET, "predictor.hidden=8"),
    "vicreg_resnet50": CONVNET,
    "barlow_resnet50": CONVNET,
    "lejepa_vits16": (*CONVNET, "encoder.options={}"),
    "cjepa_vitb16": (*VIT, "encoder.depth=1", "masker.min_context=1"),
    "energy_ijepa": (*VIT, "encoder.hidden=32", "encoder.steps=2", "masker.min_context=1"),
}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_published_recipe_trains_on_small_parts(name: str, tmp_path: Path, jepa_run: Run) -> None:
    """With its own optimiser, schedules, augmentation, losses and target, and nothing but smaller numbers."""
    run_dir, root = tmp_path / "run", images(tmp_path / "pictures", 12)
    small = [*SMALL, *FULL_SIZE[name], "train.precision=fp32", "data.size=32", f"data.root={root}"]
    ran = jepa_run(f"recipe={name}", *small, f"run_dir={run_dir}")
    assert ran.status == 0, ran.err
    assert losses(run_dir).keys() == {1, 2}
    kept = checkpoint.complete(run_dir / "checkpoints")
    first, second = (checkpoint.load_file(path / checkpoint.MODEL) for path in kept)
    assert any(not value.equal(second[key]) for key, value in first.items() if key.startswith("encoder."))


@pytest.mark.parametrize(
    "optimizer",
    ["{_target_: timm.optim.Lars, momentum: 0.9}", "{_target_: timm.optim.Muon, nesterov: true}"],  # with plain numbers
)
def test_other_optimisers_go_on_exactly(optimizer: str, tmp_path: Path, jepa_run: Run) -> None:
    other = [f"+optim.optimizer={optimizer}", "optim.betas=null", "optim.eps=null", "optim.lr.peak=0.01"]
    command = ["recipe=barlow_tiny", *SMALL, *other, f"run_dir={tmp_path}"]
    ran = jepa_run(*command)
    assert ran.status == 0, ran.err
    trained = weights(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000002")
    assert jepa_run(*command).status == 0
    assert all(value.equal(trained[key]) for key, value in weights(tmp_path).items())


def test_a_frozen_teacher_is_loaded_once(tmp_path: Path, jepa_run: Run) -> None:
    teacher = tmp_path / "teacher" / "checkpoints" / "step_00000004" / "model.safetensors"
    assert jepa_run(*TINY, "train.watch_every=null", f"run_dir={tmp_path / 'teacher'}").status == 0
    salt = ["target._target_=jepa.targets.Frozen", f"target.weights={teacher}", "seed=1"]
    command = [*TINY_BUT_TARGET, *salt, f"run_dir={tmp_path / 'student'}"]
    ran = jepa_run(*command)
    assert ran.status == 0, ran.err
    taught, student = weights(tmp_path / "teacher"), weights(tmp_path / "student")
    named = [key for key in taught if key.startswith("target_encoder.")]
    assert named
    assert all(student[key].equal(taught[key]) for key in named)
    other = jepa_run(*command, "encoder.dim=64", f"run_dir={tmp_path / 'other'}")
    assert other.status == 1
    assert "is no teacher of this encoder's architecture" in other.err
    teacher.unlink()
    assert jepa_run(*command).status == 0  # the run has it now
    gone = jepa_run(*command, f"run_dir={tmp_path / 'gone'}")
    assert gone.status == 1
    assert str(teacher) in gone.err


def test_a_shared_encoder_learns_from_both_sides_and_a_pair_from_both_ways() -> None:
    """Without `both_ways` B pairs give B predictions; with it the two halves are the two directions."""
    x = torch.randint(256, (3, 2, 3, 8, 8), dtype=torch.uint8)
    batch = JepaBatch(View(x), [Task(View(x), torch.empty(3, 0))], {"y": torch.arange(3)}, torch.arange(3))
    one, both = (Views([0.5] * 3, [0.5] * 3, both_ways=b)(batch) for b in (False, True))
    first, second = one.target.x, one.tasks[0].context.x
    assert first.shape == (3, 3, 8, 8)
    torch.testing.assert_close(first, (x[:, 0] / 255 - 0.5) / 0.5)
    assert both.target.x.equal(torch.cat((first, second)))
    assert both.tasks[0].context.x.equal(torch.cat((second, first)))
    assert both.labels["y"].tolist() == both.index.tolist() == [0, 1, 2, 0, 1, 2]
    with pytest.raises(ValueError, match=r"two views \(2, C, \*size\)"):
        Views([0.5] * 3, [0.5] * 3)(JepaBatch(View(x[:, 0]), batch.tasks))


def test_two_views_are_of_one_picture_and_differ() -> None:
    picture = torch.randint(256, (3, 60, 80), dtype=torch.uint8)
    torch.manual_seed(0)
    augment = two_views(32)
    pair = augment(picture)
    assert (pair.shape, pair.dtype) == ((2, 3, 32, 32), torch.uint8)
    assert not pair[0].equal(pair[1])
    assert not augment(picture).equal(pair)
    torch.manual_seed(0)
    assert augment(picture).equal(pair)  # a function of the seed of its sample
    plain = two_views([60, 80], scale=(1, 1), flip=0, jitter_share=0, grey=0, blur=(0, 0), solarize=(0, 1))(picture)
    assert plain[0].equal(picture)
    assert plain[1].equal(torch.where(picture >= 128, 255 - picture, picture))
    with pytest.raises(ValueError, match="probabilities"):
        two_views(32, blur=(0.5, 2.0))


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
    command = ["recipe=saccade_tiny", *SMALL, "encoder._target_=own_convnet.Mine", f"run_dir={run_dir}"]
    ran = jepa_run(*command)
    assert ran.status == 0, ran.err
    ran = jepa_run(*command, "encoder.dim=24", "predictor=motion_mlp", f"run_dir={tmp_path / 'mlp'}")
    assert ran.status == 0, ran.err
    assert losses(run_dir).keys() == losses(tmp_path / "mlp").keys() == {1, 2}
    assert jepa.load(run_dir, trust=("own_convnet",)).features(torch.zeros(2, 3, 48, 48)).shape == (2, 96)
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
        (["masker.translation=0.4"], "make them at least (104, 104), or lower masker.translation"),
        (["predictor=vit", "predictor.heads=3"], "ViTPredictor answers Indices, but masker Saccade asks with Tensor"),
        (["optim.optimizer._target_=torch.optim.SGD"], "AdamW needs betas and eps; with another optimizer"),
        (["encoder=convnext_tiny", "encoder.name=resnet999"], "timm cannot make 'resnet999'"),
    ],
)
def test_parts_that_do_not_fit_are_named(arguments: list[str], message: str, tmp_path: Path, jepa_run: Run) -> None:
    recipe = () if arguments[0].startswith("recipe=") else ("recipe=saccade_tiny",)
    ran = jepa_run(*recipe, *SMALL, *arguments, f"run_dir={tmp_path}")
    assert ran.status == 1
    assert message in ran.err
    assert "Traceback" not in ran.err


def test_two_processes_train_on_moved_views_as_one(tmp_path: Path, jepa_run: Run) -> None:
    """With variance, covariance and cycle terms: the first two look at the global batch."""
    small = ["encoder.dim=32", "encoder.depth=1", "encoder.heads=2", "predictor.dim=32", "predictor.depth=1"]
    parts = ["predictor.heads=2", "data.workers=0", "train.samples=null", "train.batch_size=8"]
    command = ["recipe=saccade_tiny", *small, *parts, "train.log_every=1", *STEPS, "train.accumulate=1"]
    ran = torchrun(*command, f"run_dir={tmp_path / 'two'}")
    assert ran.returncode == 0, ran.stderr
    assert jepa_run(*command, f"run_dir={tmp_path / 'one'}").status == 0
    assert_same_training(tmp_path / "two", tmp_path / "one")
