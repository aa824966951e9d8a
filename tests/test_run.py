"""Training as users meet it: what a run leaves behind, parts of one's own, precision, clipping, trackers."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from jepa import recipe as recipes
from jepa.assemble import assemble
from jepa.metrics import MetricsError, MetricsFile, read_metrics
from jepa.run import make_accelerator
from jepa.trainer import Trainer
from tests.conftest import Ran, forget_accelerate
from tests.tiny import TINY, images, losses, steps_kept, weights

Run = Callable[..., Ran]

MINE = '''
import torch
from torch import nn
from jepa import Encoder, Masker, Masks, Tokens
from jepa.types import Indices


class Halves(Masker):
    """Sees the left half, predicts the right one."""

    def __init__(self, *, swap: bool = False) -> None:
        self.swap = swap

    def sample(self, batch_size, grid, generator):
        left = torch.zeros(batch_size, *grid, dtype=torch.bool)
        left[..., : grid[-1] // 2] = True
        return [Masks(~left, left[:, None]) if self.swap else Masks(left, ~left[:, None])]


class Means(Encoder):
    """One linear map of each patch's mean colour."""

    def __init__(self, *, dim: int, patch_size: int, in_chans: int = 3) -> None:
        super().__init__()
        self.embed_dim, self.patch = dim, patch_size
        self.map, self.unused = nn.Linear(in_chans, dim), nn.Linear(1, 1)

    def grid(self, input_size):
        return tuple(side // self.patch for side in input_size)

    def forward(self, view):
        index = view.keep or Indices.all(len(view.x), self.grid(view.x.shape[2:]), view.x.device)
        means = nn.functional.avg_pool2d(view.x, self.patch).flatten(2).mT
        flat = index.sets * means.shape[1] + index.values
        return Tokens(self.map(means.flatten(0, 1)[flat]), index)


class Cosine(nn.Module):
    """No constructor of its own."""

    def forward(self, prediction, target):
        return 1 - nn.functional.cosine_similarity(prediction, target).mean()


class Constant:
    """A schedule without a total."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, step: int) -> float:
        return self.value
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("mine", None)


def test_a_run_leaves_what_is_promised(tmp_path: Path, jepa_run: Run) -> None:
    run_dir = tmp_path / "deep" / "run"
    ran = jepa_run(*TINY, f"run_dir={run_dir}", "train.steps=5", "train.log_every=2", "train.checkpoint_every=3")
    assert ran.status == 0
    recipe = recipes.read(run_dir / "recipe.yaml")
    recipes.check(recipe)
    assert "${" not in (run_dir / "recipe.yaml").read_text()
    assert recipe["data"]["dataset"]["size"] == 32
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 4, 5]
    assert [row["samples"] for row in rows] == [8, 16, 32, 40]
    for row in rows:
        assert all(math.isfinite(row[key]) for key in ("loss", "lr", "weight_decay", "momentum"))
    assert rows[0]["momentum"] == 0.996
    assert rows[-1]["lr"] == pytest.approx(1e-6)
    assert rows[-1]["weight_decay"] == pytest.approx(0.4)
    assert steps_kept(run_dir) == [3, 5]
    for path in (run_dir / "checkpoints").iterdir():
        names = {file.name for file in path.iterdir()}
        assert names == {"model.safetensors", "optimizer.safetensors", "probe.safetensors", "state.json"}
    assert " MB)" in ran.log
    assert Image.open(run_dir / "masks.png").width > 100
    for shown in ("finished", "recipe.yaml", "metrics.jsonl", "step_00000005", "jepa.load("):
        assert shown in ran.out
    assert not [path.name for path in run_dir.rglob("*") if "draft" in path.name or "unfinished" in path.name]


def test_weights_move_and_the_target_follows(tmp_path: Path, jepa_run: Run) -> None:
    assert jepa_run(*TINY, f"run_dir={tmp_path / 'a'}", "train.steps=1").status == 0
    assert jepa_run(*TINY, f"run_dir={tmp_path / 'b'}", "train.steps=1", "target.start=1.0").status == 0
    moved, still = weights(tmp_path / "a"), weights(tmp_path / "b")
    name = "transformer.blocks.0.mlp.fc1.weight"
    first, encoder = still[f"target_encoder.{name}"], moved[f"encoder.{name}"]
    assert not torch.equal(encoder, first)
    torch.testing.assert_close(moved[f"target_encoder.{name}"], first.lerp(encoder, 1 - 0.996))


@pytest.mark.parametrize(
    "arguments",
    [
        ["masker._target_=mine.Halves", "masker.swap=true"],
        ["encoder._target_=mine.Means", "predictor.heads=2"],
        ["criterion._target_=mine.Cosine"],
        ["optim.weight_decay._target_=mine.Constant", "+optim.weight_decay.value=0.1"],
        ["target._target_=jepa.targets.StopGradient"],
        ["target._target_=jepa.targets.Frozen"],
    ],
    ids=lambda arguments: arguments[0].split("=")[1],
)
def test_parts_of_ones_own_need_no_registration(
    arguments: list[str], tmp_path: Path, mine: None, jepa_run: Run
) -> None:
    replaced = ("encoder.depth", "encoder.heads", "masker", "target")
    kept = [argument for argument in TINY if not argument.startswith(replaced)]
    command = [*kept, "encoder.depth=1", "encoder.heads=2"] if "encoder" not in arguments[0] else kept
    command = [*command, *arguments, f"run_dir={tmp_path / 'run'}", "train.checkpoint_every=2", "train.keep_last=9"]
    assert jepa_run(*command).status == 0
    whole = losses(tmp_path / "run")
    assert len(whole) == 4
    forget(tmp_path / "run", after=2)
    assert jepa_run(*command).status == 0  # their state is found again
    assert losses(tmp_path / "run") == whole


def forget(run_dir: Path, after: int) -> None:
    for path in (run_dir / "checkpoints").iterdir():
        if int(path.name.removeprefix("step_")) > after:
            for file in path.iterdir():
                file.unlink()
            path.rmdir()


@pytest.mark.parametrize(("given", "steps"), [("train.epochs=2", 4), ("train.samples=26", 3), ("train.steps=2", 2)])
def test_length_of_the_run(given: str, steps: int, tmp_path: Path, jepa_run: Run) -> None:
    kept = [argument for argument in TINY if not argument.startswith("train.steps")]
    ran = jepa_run(*kept, given, "data.dataset.count=16", f"run_dir={tmp_path}")
    assert ran.status == 0
    assert list(losses(tmp_path))[-1] == steps
    assert f"{steps} steps of 8 samples" in ran.log


def test_rates_stated_for_another_batch_are_scaled(tmp_path: Path, jepa_run: Run) -> None:
    assert jepa_run(*TINY, "train.steps=2", f"run_dir={tmp_path}/as_it_is", "optim.reference_batch=null").status == 0
    assert jepa_run(*TINY, "train.steps=2", f"run_dir={tmp_path}/scaled", "optim.reference_batch=32").status == 0
    stated, scaled = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("as_it_is", "scaled"))
    assert [row["lr"] for row in scaled] == pytest.approx([row["lr"] / 2 for row in stated])


def test_warmup_in_epochs_reaches_its_peak_there(tmp_path: Path, jepa_run: Run) -> None:
    lengths = ["train.steps=6", "data.dataset.count=16", "optim.lr.warmup='1.5 epochs'", "optim.lr.peak=0.5e-3"]
    assert jepa_run(*TINY, *lengths, f"run_dir={tmp_path}").status == 0
    rates = [row["lr"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert max(rates) == rates[3 - 1] == 0.5e-3


def test_a_folder_of_pictures_with_bad_ones(tmp_path: Path, jepa_run: Run) -> None:
    root = images(tmp_path / "my (odd), pictures", 14)
    whole = (root / "some" / "00.jpg").read_bytes()
    (root / "some" / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "some" / "empty.jpg").touch()
    (root / "some" / "words.jpg").write_text("not a picture")
    ran = jepa_run(*TINY, "data=images", f"data.root={root}", "train.steps=6", f"run_dir={tmp_path / 'run'}")
    assert ran.status == 0, ran.err
    for name in ("truncated.jpg", "empty.jpg", "words.jpg"):
        assert f"skipped some/{name}" in ran.log
    skipped = [row["skipped"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert skipped == sorted(skipped)
    assert skipped[-1] >= 3
    assert f"{skipped[-1]} samples could not be read" in ran.out


def test_dry_run_with_data_whose_first_picture_is_bad(tmp_path: Path, jepa_run: Run) -> None:
    root = images(tmp_path / "pictures", 3)
    (root / "some" / "!.jpg").write_text("not a picture")
    kept = [argument for argument in TINY if not argument.startswith("train.steps")]
    planned = ["dry_run=true", "train.epochs=8", f"run_dir={tmp_path / 'run'}"]
    ran = jepa_run(*kept, *planned, "data=images", f"data.root={root}")
    assert ran.status == 0
    assert "= 8.0 epochs of 4" in ran.out
    assert not (tmp_path / "run").exists()


def trainer(tmp_path: Path, *arguments: str) -> Trainer:
    recipe = recipes.load_recipe([*TINY, f"run_dir={tmp_path}", *arguments])
    settings = recipes.train_settings(recipe)
    tmp_path.mkdir(exist_ok=True)
    return assemble(recipe, settings, make_accelerator(settings, tmp_path))


def gradient_norms(tmp_path: Path, *arguments: str) -> list[float]:
    """Norm of the gradient as the optimiser saw it at each step."""
    training, seen = trainer(tmp_path, *arguments), []
    training.optimizer.register_step_pre_hook(
        lambda optimizer, args, kwargs: seen.append(
            torch.nn.utils.get_total_norm([p.grad for g in optimizer.param_groups for p in g["params"]]).item()
        )
    )
    assert training.fit()
    return seen


def test_gradients_are_clipped(tmp_path: Path, fresh_accelerate: None) -> None:
    free = gradient_norms(tmp_path / "free")
    bound = min(free) / 2
    assert gradient_norms(tmp_path / "clipped", f"train.clip_norm={bound}") == pytest.approx([bound] * 4, rel=1e-3)
    assert gradient_norms(tmp_path / "loose", "train.clip_norm=1e9")[0] == pytest.approx(free[0])


def test_parts_are_clipped_by_their_own_norms_after_a_while(tmp_path: Path, fresh_accelerate: None) -> None:
    def norms(folder: str, *arguments: str) -> list[tuple[float, float]]:
        """Of the encoder's and of the predictor's gradient at each step."""
        training, seen = trainer(tmp_path / folder, *arguments), []

        def look(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            parts = (training.jepa.encoder, training.jepa.predictor)
            seen.append(tuple(torch.nn.utils.get_total_norm([p.grad for p in m.parameters()]).item() for m in parts))

        training.optimizer.register_step_pre_hook(look)
        assert training.fit()
        return seen

    still = ["optim.lr.start=0", "optim.lr.peak=0", "optim.lr.end=0"]  # so that steps are the same clipped or not
    free = norms("free", *still)
    bound = min(min(pair) for pair in free) / 2
    clipped = norms("clipped", *still, f"train.clip_norm={bound}", "train.clip_parts=true", "train.clip_after=50 %")
    assert clipped[:2] == free[:2]
    for pair in clipped[2:]:
        assert pair == pytest.approx((bound, bound), rel=1e-3)


def test_the_launcher_does_not_scale_gradients(
    tmp_path: Path, fresh_accelerate: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = gradient_norms(tmp_path / "alone")
    forget_accelerate()
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert gradient_norms(tmp_path / "launched") == expected


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path, jepa_run: Run) -> None:
    for accumulate in (1, 4):
        command = [*TINY, "~regularizers.vicreg", f"train.accumulate={accumulate}"]
        assert jepa_run(*command, f"run_dir={tmp_path / str(accumulate)}").status == 0
    assert losses(tmp_path / "4") == pytest.approx(losses(tmp_path / "1"), rel=1e-6)
    whole, parts = weights(tmp_path / "1"), weights(tmp_path / "4")
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-5, atol=1e-6)


def test_bfloat16_computes_coarsely_and_stores_finely(tmp_path: Path, jepa_run: Run) -> None:
    results = {}
    for precision in ("fp32", "bf16"):
        assert jepa_run(*TINY, f"train.precision={precision}", f"run_dir={tmp_path / precision}").status == 0
        results[precision] = losses(tmp_path / precision)
    assert results["bf16"] != results["fp32"]
    assert results["bf16"] == pytest.approx(results["fp32"], rel=0.02)
    assert {tensor.dtype for tensor in weights(tmp_path / "bf16").values()} == {torch.float32}


def test_compiled_run_has_the_same_losses(tmp_path: Path, jepa_run: Run) -> None:
    for compile in ("false", "true"):
        arguments = ["train.steps=2", f"train.compile={compile}", f"run_dir={tmp_path / compile}"]
        assert jepa_run(*TINY, *arguments).status == 0
    assert losses(tmp_path / "true") == pytest.approx(losses(tmp_path / "false"), rel=1e-5)
    assert weights(tmp_path / "true").keys() == weights(tmp_path / "false").keys()


def test_tensorboard_receives_the_numbers(tmp_path: Path, jepa_run: Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert jepa_run(*TINY, "train.trackers=[tensorboard]", f"run_dir={tmp_path}").status == 0
    (events,) = (tmp_path / "jepa").glob("events.out.tfevents.*")
    log: Any = EventAccumulator(str(events))
    log.Reload()
    found = {event.step: event.value for event in log.Scalars("loss")}
    assert found == pytest.approx(losses(tmp_path), rel=1e-6)
    assert {"lr", "weight_decay", "momentum", "samples"} <= set(log.Tags()["scalars"])


def test_metrics_file_survives_a_torn_line_only_at_its_end(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for step in range(1, 5):
        file.append({"step": step, "loss": 0.1 + 0.2 * step})
    with file.path.open("ab") as handle:
        handle.write(b'{"step": 5, "lo\xff\x00')
    assert [row["step"] for row in read_metrics(file.path)] == [1, 2, 3, 4]
    file.truncate(3)
    rows = read_metrics(file.path)
    assert [row["loss"] for row in rows] == [0.1 + 0.2 * step for step in (1, 2, 3)]
    MetricsFile(file.path, write=False).append({"step": 4})
    assert read_metrics(file.path) == rows
    file.path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(MetricsError, match="line 2"):
        read_metrics(file.path)
