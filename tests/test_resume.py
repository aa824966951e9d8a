"""A run that was stopped, by whatever, goes on as if nothing had happened."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from jepa import checkpoint
from jepa.metrics import read_metrics
from jepa.trainer import Trainer
from tests.conftest import Ran
from tests.tiny import TINY, images, losses, steps_kept, weights

Run = Callable[..., Ran]

TIMES = ("samples_per_second", "data_wait")
NOISY = ("encoder.depth=2", "encoder.drop_path=0.3", "predictor.drop_path=0.3", "predictor.depth=2")


def numbers(run_dir: Path) -> list[dict[str, Any]]:
    """Rows of the metrics without what a clock says."""
    return [
        {key: value for key, value in row.items() if key not in TIMES}
        for row in read_metrics(run_dir / "metrics.jsonl")
    ]


def assert_same_weights(first: Path, second: Path) -> None:
    ours, theirs = weights(first), weights(second)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def start(*arguments: str) -> subprocess.Popen[str]:
    """The command in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "jepa.run", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for_rows(run_dir: Path, count: int, process: subprocess.Popen[str]) -> None:
    path, deadline = run_dir / "metrics.jsonl", time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def during_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Let something happen while a run in this process is in the given step."""

    def arrange(step: int, event: Callable[[], None]) -> None:
        train_step = Trainer._train_step

        def interrupted(self: Trainer, *arguments: Any) -> Any:
            if self.step == step:
                event()
            return train_step(self, *arguments)

        monkeypatch.setattr(Trainer, "_train_step", interrupted)

    return arrange


def test_killed_at_a_random_step_the_losses_are_the_same(tmp_path: Path, jepa_run: Run) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print("seed", seed)
    rows = random.Random(seed).randint(8, 38)
    command = [*TINY, *NOISY, "train.steps=60", "train.accumulate=2", "train.checkpoint_every=6", "train.watch_every=5"]
    process = start(*command, "data.workers=1", f"run_dir={tmp_path / 'killed'}")
    wait_for_rows(tmp_path / "killed", rows, process)
    process.kill()
    process.wait()
    assert len(read_metrics(tmp_path / "killed" / "metrics.jsonl")) < 60
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 61, "lo')
    ran = jepa_run(*command, "data.workers=1", f"run_dir={tmp_path / 'killed'}")  # at once: its worker may still live
    assert ran.status == 0, ran.err
    assert re.search(r"resumed after step [1-9]\d* of 60", ran.log)
    assert jepa_run(*command, f"run_dir={tmp_path / 'whole'}").status == 0
    assert len(losses(tmp_path / "whole")) == 60
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert numbers(tmp_path / "killed") == numbers(tmp_path / "whole")
    assert_same_weights(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_reaches_every_process_leaves_a_checkpoint(
    signum: signal.Signals, tmp_path: Path, jepa_run: Run
) -> None:
    command = [*TINY, "train.steps=4000", "data.workers=1", "train.accumulate=2", f"run_dir={tmp_path}"]
    process = start(*command)
    wait_for_rows(tmp_path, 3, process)
    os.killpg(process.pid, signum)
    os.killpg(process.pid, signum)  # a launcher passes it on
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    (step,) = steps_kept(tmp_path)
    assert f"stopped after step {step} ({signum.name})" in out
    assert f"{signum.name}: writing a checkpoint, then stopping" in err
    assert "Traceback" not in err
    assert max(losses(tmp_path)) == step


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_a_signal_writes_a_checkpoint_and_ends_well(
    signum: signal.Signals, stop_at: int, tmp_path: Path, jepa_run: Run, during_step: Any, monkeypatch: Any
) -> None:
    command = [*TINY, "train.steps=6", "train.log_every=2", "train.watch_every=2"]
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with monkeypatch.context():
        during_step(stop_at, lambda: os.kill(os.getpid(), signum))
        ran = jepa_run(*command, f"run_dir={tmp_path / 'stopped'}")
    assert ran.status == 0
    assert f"stopped after step {stop_at} ({signum.name})" in ran.out
    assert steps_kept(tmp_path / "stopped") == [stop_at]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    monkeypatch.undo()
    assert jepa_run(*command, f"run_dir={tmp_path / 'stopped'}").status == 0
    assert jepa_run(*command, f"run_dir={tmp_path / 'whole'}").status == 0
    assert numbers(tmp_path / "stopped") == numbers(tmp_path / "whole")
    assert_same_weights(tmp_path / "stopped", tmp_path / "whole")


def test_a_second_signal_ends_at_once(
    tmp_path: Path, jepa_run: Run, during_step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jepa.stop.ECHO_SECONDS", -1.0)
    during_step(2, lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
    ran = jepa_run(*TINY, f"run_dir={tmp_path}")
    assert ran.status == 130
    assert steps_kept(tmp_path) == []


def test_a_finished_run_says_so_and_does_nothing(tmp_path: Path, jepa_run: Run) -> None:
    assert jepa_run(*TINY, f"run_dir={tmp_path}").status == 0
    before = {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name not in ("metrics.jsonl", ".lock")
    }
    rows = (tmp_path / "metrics.jsonl").read_text()
    again = jepa_run(*TINY, f"run_dir={tmp_path}", "train.trackers=[tensorboard]")
    assert again.status == 0
    assert "is finished: nothing to do" in again.log
    assert "finished" in again.out
    assert (tmp_path / "metrics.jsonl").read_text() == rows
    after = {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name not in ("metrics.jsonl", ".lock")
    }
    assert after == before


def test_rows_after_the_checkpoint_are_written_again(tmp_path: Path, jepa_run: Run) -> None:
    command = [*TINY, "train.checkpoint_every=2", "train.keep_last=9", f"run_dir={tmp_path}"]
    assert jepa_run(*command).status == 0
    whole = losses(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000004")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 0.')
    ran = jepa_run(*command)
    assert "resumed after step 2 of 4" in ran.log
    assert losses(tmp_path) == whole


def damage(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 0xFF]))


def test_damage_costs_only_the_steps_since_the_checkpoint_before(tmp_path: Path, jepa_run: Run) -> None:
    command = [*TINY, "train.checkpoint_every=2", "train.steps=6", f"run_dir={tmp_path}"]
    assert jepa_run(*command).status == 0
    whole = losses(tmp_path)
    assert steps_kept(tmp_path) == [4, 6]
    path = tmp_path / "checkpoints" / "step_00000006" / "state.json"
    damage(path)
    ran = jepa_run(*command)
    assert ran.status == 0
    assert f"{path} cannot be read" in ran.log
    assert "resumed after step 4" in ran.log
    assert losses(tmp_path) == whole


@pytest.mark.parametrize("harm", [damage, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_where_all_is_damaged_nothing_is_begun_anew(
    name: str, harm: Callable[[Path], None], tmp_path: Path, jepa_run: Run
) -> None:
    command = [*TINY, f"run_dir={tmp_path}"]
    assert jepa_run(*command).status == 0
    whole = losses(tmp_path)
    path = tmp_path / "checkpoints" / "step_00000004" / name
    harm(path)
    ran = jepa_run(*command)
    assert ran.status == 1
    assert ran.err.startswith("error: no usable checkpoint in")
    assert str(path) in ran.err
    assert losses(tmp_path) == whole


def test_another_recipe_is_refused_by_the_keys_that_differ(tmp_path: Path, jepa_run: Run) -> None:
    assert jepa_run(*TINY, f"run_dir={tmp_path}").status == 0
    stored = (tmp_path / "recipe.yaml").read_text()
    ran = jepa_run(*TINY, f"run_dir={tmp_path}", "seed=3", "masker.targets=2", "train.steps=9", "data.workers=1")
    assert ran.status == 1
    assert "Give another run_dir" in ran.err
    named = [line.strip() for line in ran.err.splitlines()[1:]]
    assert sorted(named) == ["masker.targets: 4 -> 2", "seed: 0 -> 3", "train.steps: 4 -> 9"]
    assert (tmp_path / "recipe.yaml").read_text() == stored


def test_keys_that_change_nothing_that_is_learned_may_differ(tmp_path: Path, jepa_run: Run) -> None:
    command = [*TINY, "train.steps=6", "train.checkpoint_every=3", "train.keep_last=9"]
    assert jepa_run(*command, f"run_dir={tmp_path / 'old'}").status == 0
    whole = losses(tmp_path / "old")
    shutil.rmtree(tmp_path / "old" / "checkpoints" / "step_00000006")
    (tmp_path / "old").rename(tmp_path / "moved")
    free = ["data.workers=1", "train.log_every=2", "train.checkpoint_every=1", "train.keep_last=1"]
    ran = jepa_run(*command, *free, f"run_dir={tmp_path / 'moved'}")
    assert ran.status == 0, ran.err
    assert "resumed after step 3" in ran.log
    assert losses(tmp_path / "moved") == {step: loss for step, loss in whole.items() if step != 5}
    assert steps_kept(tmp_path / "moved") == [6]


def test_a_recipe_that_never_began_may_be_corrected(tmp_path: Path, jepa_run: Run) -> None:
    assert jepa_run(*TINY, "masker.min_context=99", f"run_dir={tmp_path}").status == 1
    ran = jepa_run(*TINY, f"run_dir={tmp_path}")
    assert ran.status == 0, ran.err
    assert "min_context: 1\n" in (tmp_path / "recipe.yaml").read_text()


def test_changed_data_is_refused(tmp_path: Path, jepa_run: Run) -> None:
    root = images(tmp_path / "pictures", 9)
    command = [*TINY, "data=images", f"data.root={root}", f"run_dir={tmp_path / 'run'}"]
    assert jepa_run(*command).status == 0
    shutil.copytree(root, tmp_path / "copy")
    moved = [f"data.root={tmp_path / 'copy'}" if argument.startswith("data.root") else argument for argument in command]
    assert jepa_run(*moved).status == 0  # the same pictures elsewhere
    (root / "some" / "04.jpg").unlink()
    ran = jepa_run(*command)
    assert ran.status == 1
    assert ran.err.startswith("error: the data changed since")


def test_checkpoint_of_a_crashed_write_is_not_counted(tmp_path: Path, jepa_run: Run) -> None:
    command = [*TINY, "train.checkpoint_every=2", "train.keep_last=9", f"run_dir={tmp_path}"]
    assert jepa_run(*command).status == 0
    whole = losses(tmp_path)
    last = tmp_path / "checkpoints" / "step_00000004"
    last.rename(last.with_name(f"{checkpoint.UNFINISHED}00000004"))
    ran = jepa_run(*command)
    assert "resumed after step 2" in ran.log
    assert losses(tmp_path) == whole
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step_00000002", "step_00000004"}
