"""Whatever is wrong is said in one clear line, before anything is built where that is possible."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jepa import bench, checkpoint
from tests.conftest import Ran
from tests.tiny import TINY, losses, steps_kept

Run = Callable[..., Ran]


def only_line(ran: Ran) -> str:
    """The one error; a traceback or a second line is none."""
    assert ran.status == 1, (ran.out, ran.err)
    lines = [line for line in ran.err.replace("\r", "\n").splitlines() if line and "step/s" not in line]
    assert len(lines) == 1, ran.err
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("sede=1", r"unknown key 'sede': did you mean 'seed'\?"),
        ("train.batchsize=4", r"unknown key 'train.batchsize': did you mean 'batch_size'\?"),
        ("encoder.dept=2", r"unknown key 'encoder.dept': did you mean 'depth'\?"),
        ("+encoder.dept=2", r"unknown key 'encoder.dept': did you mean 'depth'\?"),
        ("data.dataset.cuont=5", r"unknown key 'data.dataset.cuont': did you mean 'count'\?"),
        ("optim.lr.paek=1", r"unknown key 'optim.lr.paek': did you mean 'peak'\?"),
        ("optim.betta=1", r"unknown key 'optim.betta'"),
        ("model.normalise_targets=true", r"did you mean 'normalize_targets'\?"),
        ("masker=multiblok", r"there is no such masker; did you mean 'multiblock'\?"),
        ("encoder=vit_hug", r"did you mean 'vit_huge'\?"),
        ("data=shape", r"did you mean 'shapes'\?"),
        ("masker._target_=jepa.maskers.MultBlock", r"does not exist: did you mean 'MultiBlock'\?"),
        ("masker._target_=nowhere.Masker", r"no module 'nowhere' on the Python path"),
        ("masker._target_=jepa.command_line.KEYS", r"is a tuple, not a class or function"),
        ("masker._target_=5", r"masker needs _target_"),
        ("masker._target_=builtins.int", r"cannot be used in a recipe"),
        ("seed=abc", r"seed='abc': Input should be a valid integer"),
        ("seed=-1", r"seed=-1: Input should be greater than or equal to 0"),
        ("run_dir=null", r"run_dir=None"),
        ("dry_run=perhaps", r"dry_run='perhaps'"),
        ("encoder.dim=wide", r"encoder.dim='wide': Input should be a valid integer"),
        ("encoder.dim=32.5", r"encoder.dim=32.5"),
        ("encoder.position=rotary", r"encoder.position='rotary': Input should be 'sincos', 'learned' or 'rope'"),
        ("encoder.heads=[2]", r"encoder.heads=\[2\]"),
        ("encoder.drop_path=2", r"drop_path=2.0 must lie in \[0, 1\)"),
        ("masker.target_scale=large", r"masker.target_scale='large'"),
        ("target.start=1.5", r"target.start=1.5: a momentum lies in \[0, 1\]"),
        ("criterion.beta=x", r"criterion.beta='x'"),
        ("train.precision=fp64", r"train.precision='fp64': Input should be 'fp32' or 'bf16'"),
        ("train.batch_size=0", r"train.batch_size=0: Input should be greater than or equal to 1"),
        ("train.steps=0", r"train.steps=0"),
        ("train.steps=many", r"train.steps='many'"),
        ("train.epochs=-1", r"exactly one of train.steps|train.epochs=-1"),
        ("train.clip_norm=0", r"train.clip_norm=0"),
        ("train.trackers=tensorboard", r"train.trackers='tensorboard': Input should be a valid tuple"),
        ("train.trackers=[tensorbord]", r"did you mean 'tensorboard'\?"),
        ("train.trackers=[aim]", r"'aim' is not installed"),
        ("train=5", r"train=5 is a section"),
        ("optim=adam", r"optim='adam' is a section"),
        ("optim.lr=0.001", r"a schedule has keys of its own, as in optim.lr.peak=0.001"),
        ("optim.betas=[0.9]", r"optim.betas=\(nothing\)|optim.betas="),
        ("optim.betas=[0.9,1.5]", r"optim.betas=1.5: Input should be less than 1"),
        ("optim.lr.warmup=soon", r'optim.lr.warmup=.soon.: give steps, or "40 epochs"'),
        ("optim.lr.warmup=-3", r"optim.lr.warmup=-3"),
        ("optim.lr.total=0", r"optim.lr.total is 0 steps"),
        ("data.workers=-1", r"data.workers=-1"),
        ("data.workers=some", r"data.workers='some'"),
        ("data.size=0", r"data.size=0"),
        ("data.size=[32,32,32]", r"size|dataset"),
        ("data.size=4", r"size"),
        ("regularizers=5", r"regularizers=5"),
        ("regularizers={var: 5}", r"regularizers"),
        ("encoder=", r"there is no such encoder"),
        ("target=5", r"target needs _target_"),
        ("model=null", r"model needs _target_"),
        ("~masker", r"masker needs _target_"),
        ("justaword", r"'justaword' is not of the form key=value"),
        ("train.steps.x=3", r"train"),
        ("encoder.heads=5", r"heads"),
        ("encoder.in_chans=5", r"set encoder.in_chans=3"),
        ("encoder.patch_size=64", r"input size \(32, 32\) cannot be cut into patches of \(64, 64\)"),
        ("encoder.patch_size=[2,8,8]", r"cannot be cut into patches"),
        ("masker.min_context=17", r"masker"),
        ("masker.target_scale=[0.9,1.5]", r"masker"),
        ("train.accumulate=3", r"nearest batch sizes: 6 or 9"),
        ("data.batch_transform.mean=[0.5]", r"mean and std need one number per channel"),
        ("data.batch_transform={_target_: jepa.data.Normalize, mean: [0.5], std: [0.5]}", r"statistics|channel"),
        ("data.dataset.count=0", r"need count >= 1"),
    ],
)
def test_mistakes_are_named(argument: str, said: str, tmp_path: Path, jepa_run: Run) -> None:
    ran = jepa_run(*TINY, f"run_dir={tmp_path / 'run'}", argument)
    assert re.search(said, only_line(ran)), ran.err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("ijepa_tny", r"recipe='ijepa_tny' does not exist: did you mean 'ijepa_tiny'\?"),
        ("base", r"does not exist"),
        ("", r"does not exist: valid: .*ijepa_tiny"),
        ("mine.yaml", r"no such file"),
        ("../elsewhere/mine", r"no such file"),
    ],
)
def test_recipes_that_do_not_exist(recipe: str, said: str, jepa_run: Run) -> None:
    assert re.search(said, only_line(jepa_run(f"recipe={recipe}")))


@pytest.mark.parametrize("arguments", [[], ["train.steps=3"], ["recipe=ijepa_tiny", "recipe=ijepa_vith14"]])
def test_one_recipe_must_be_named(arguments: list[str], jepa_run: Run) -> None:
    assert "name one recipe, as in recipe=ijepa_tiny" in only_line(jepa_run(*arguments))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("defaults: [ijepa_tniy, _self_]", r"ijepa_tniy"),
        ("defaults: [ijepa_tiny, _self_]\nencoder: {dim: 32", r"not valid YAML"),
        ("defaults: [ijepa_tiny, _self_]\nencoder: {dmi: 32}", r"unknown key 'encoder.dmi': did you mean 'dim'\?"),
        ("defaults: [ijepa_tiny, _self_]\ntrain: {steps: 3, epochs: 2}", r"exactly one of"),
        ("defaults: [base, _self_]\n", r"train.batch_size must be given"),
        ("defaults: [base, _self_]\ntrain: {steps: 3, batch_size: 4}\n", r"the recipe lacks 'data'"),
        ("defaults: [ijepa_tiny, _self_]\nseed: ${nothing}", r"nothing"),
        ("- a\n- b\n", r"mine.yaml"),
        ("", r"lacks"),
    ],
)
def test_recipes_of_ones_own_with_mistakes(text: str, said: str, tmp_path: Path, jepa_run: Run) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    assert re.search(said, only_line(jepa_run(f"recipe={tmp_path / 'mine.yaml'}", f"run_dir={tmp_path / 'run'}")))


def test_recipe_files_end_in_yaml(tmp_path: Path, jepa_run: Run) -> None:
    (tmp_path / "mine.yml").write_text("defaults: [ijepa_tiny, _self_]")
    assert "ends in .yaml" in only_line(jepa_run(f"recipe={tmp_path / 'mine.yml'}"))


def test_folders_without_pictures(tmp_path: Path, jepa_run: Run) -> None:
    command = [*TINY, "data=images", f"run_dir={tmp_path / 'run'}"]
    assert "data.root must be given, as in data.root=VALUE" in only_line(jepa_run(*command))
    assert "is missing: set data.root" in only_line(jepa_run(*command, f"data.root={tmp_path / 'none'}"))
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "notes.txt").write_text("no picture")
    said = only_line(jepa_run(*command, f"data.root={tmp_path / 'some'}"))
    assert "no pictures below" in said
    assert ".jpg" in said
    assert "1 other files (1 x .txt)" in said
    assert "not a folder" in only_line(jepa_run(*command, f"data.root={tmp_path / 'some' / 'notes.txt'}"))


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_that_are_all_bad(workers: int, tmp_path: Path, jepa_run: Run) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_text("not a picture")
    command = [*TINY, "data=images", f"data.root={tmp_path}", f"data.workers={workers}"]
    said = only_line(jepa_run(*command, f"run_dir={tmp_path / 'run'}"))
    assert "2 samples in a row are unreadable (the whole dataset): " in said


def test_pictures_that_turn_bad_in_a_worker(tmp_path: Path, jepa_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from jepa.data import DataError
    from jepa.data.batches import Batches

    original = Batches.__getitem__

    def failing(self: Batches, k: int) -> object:
        if k == 2:
            raise DataError("the pictures are gone")
        return original(self, k)

    monkeypatch.setattr(Batches, "__getitem__", failing)
    ran = jepa_run(*TINY, "data.workers=1", f"run_dir={tmp_path}")
    assert only_line(ran) == "error: the pictures are gone"


@pytest.mark.parametrize("place", ["file/below", "file", "/proc/nothing/here", "/dev/null"])
def test_run_directories_that_cannot_be(place: str, tmp_path: Path, jepa_run: Run) -> None:
    (tmp_path / "file").touch()
    run_dir = tmp_path / place
    said = only_line(jepa_run(*TINY, f"run_dir={run_dir}"))
    assert f"run_dir={run_dir} cannot be written: " in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_run_directory(tmp_path: Path, jepa_run: Run) -> None:
    tmp_path.chmod(0o500)
    assert "cannot be written: Permission denied" in only_line(jepa_run(*TINY, f"run_dir={tmp_path}"))


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[None]:
    """Another process that trains in tmp_path."""
    code = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", code, str(tmp_path / ".lock")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "\n"
    yield
    process.communicate("\n", timeout=10)


def test_a_second_process_is_kept_out(tmp_path: Path, elsewhere: None, jepa_run: Run) -> None:
    assert f"another process trains in {tmp_path}" in only_line(jepa_run(*TINY, f"run_dir={tmp_path}"))
    assert not (tmp_path / "recipe.yaml").exists()


def test_a_run_keeps_others_out(tmp_path: Path, jepa_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    statuses = []

    def other_process(*arguments: object) -> None:
        statuses.append(
            subprocess.run([sys.executable, "-c", code, tmp_path / ".lock"], stderr=subprocess.DEVNULL).returncode
        )

    monkeypatch.setattr("jepa.run.introduce", other_process)
    assert jepa_run(*TINY, f"run_dir={tmp_path}").status == 0
    other_process()
    assert statuses == [1, 0]


@pytest.fixture
def broken_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "broken.py").write_text(
        """
from torch import nn
from jepa.losses import SmoothL1

class Nan(SmoothL1):
    calls = 0
    def forward(self, prediction, target):
        Nan.calls += 1
        return super().forward(prediction, target) * (float("nan") if Nan.calls in (3, 4) else 1.0)

class BadGradient(SmoothL1):
    calls = 0
    def forward(self, prediction, target):
        BadGradient.calls += 1
        loss = super().forward(prediction, target)
        if BadGradient.calls == 4:
            loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss
"""
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("broken", None)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, broken_losses: None, jepa_run: Run) -> None:
    run_dir = tmp_path / "run"
    command = [*TINY, f"run_dir={run_dir}", "train.steps=20", "train.log_every=5", "train.checkpoint_every=2"]
    said = only_line(jepa_run(*command, "criterion._target_=broken.Nan"))
    assert "the loss is not finite at step 3" in said  # seen at step 4, which was to be saved
    assert f"the last good checkpoint is {run_dir / 'checkpoints' / 'step_00000002'}" in said
    for advice in ("optim.lr.peak", "optim.lr.warmup", "train.clip_norm", "train.precision=fp32"):
        assert advice in said
    assert steps_kept(run_dir) == [2]
    assert list(losses(run_dir)) == [1]


def test_weights_that_are_no_numbers_are_never_saved(tmp_path: Path, broken_losses: None, jepa_run: Run) -> None:
    run_dir = tmp_path / "run"
    command = [*TINY, f"run_dir={run_dir}", "train.steps=20", "train.checkpoint_every=2"]
    said = only_line(jepa_run(*command, "criterion._target_=broken.BadGradient"))
    assert re.search(r"step 4; the last good checkpoint is .*step_00000002", said)
    assert steps_kept(run_dir) == [2]


def test_a_rate_far_too_high_stops_the_run(tmp_path: Path, jepa_run: Run) -> None:
    rates = ["optim.lr.start=1e30", "optim.lr.peak=1e30", "train.checkpoint_every=1"]
    said = only_line(jepa_run(*TINY, *rates, f"run_dir={tmp_path}"))
    assert re.search(r"not finite at step \d; there is no checkpoint yet", said)
    assert checkpoint.complete(tmp_path / "checkpoints") == []


@pytest.mark.parametrize("argument", ["bench.steps=0", "bench.steps=few", "bench.warmup=-1", "encoder.dept=3"])
def test_bench_with_mistakes(argument: str, fresh_accelerate: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main([*TINY, argument]) == 1
    assert capsys.readouterr().err.startswith("error: ")
