"""Two processes compute what one does."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from jepa.metrics import read_metrics
from tests.conftest import Ran
from tests.tiny import TINY, images, losses, steps_kept, weights

Run = Callable[..., Ran]

SECONDS = 150
# AdamW divides by the root of the second moment: with its usual eps, gradients that are nothing but rounding become
# whole steps, and two orders of summation differ by more than they should
STEPS = [
    "train.steps=6",
    "train.checkpoint_every=3",
    "train.keep_last=9",
    "train.watch_every=2",
    "optim.lr.peak=2e-4",
    "optim.eps=1e-5",
]


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in two processes; one that hangs is an error."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv_backend=c10d"]
    process = subprocess.Popen(
        [*launcher, "--rdzv_endpoint=localhost:0", "-m", "jepa.run", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"},
    )
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"not done after {SECONDS} seconds:\n{out}\n{err}")
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def assert_same_training(first: Path, second: Path) -> None:
    assert losses(first) == pytest.approx(losses(second), rel=1e-6)
    ours, theirs = weights(first), weights(second)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


def skipped(run_dir: Path) -> list[int]:
    return [row["skipped"] for row in read_metrics(run_dir / "metrics.jsonl")]


def test_two_processes_train_as_one_and_one_goes_on_for_them(tmp_path: Path, jepa_run: Run) -> None:
    root = images(tmp_path / "pictures", 12)
    (root / "some" / "bad.jpg").write_text("not a picture")
    command = [*TINY, *STEPS, "data=images", f"data.root={root}", "data.transform.horizontal_flip=0.5"]
    ran = torchrun(*command, f"run_dir={tmp_path / 'two'}")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("finished") == 1
    assert "on 2 x cpu" in ran.stderr
    assert jepa_run(*command, f"run_dir={tmp_path / 'one'}").status == 0
    rows = read_metrics(tmp_path / "two" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["samples"] for row in rows] == [8, 16, 24, 32, 40, 48]
    assert_same_training(tmp_path / "two", tmp_path / "one")
    assert skipped(tmp_path / "two") == skipped(tmp_path / "one")
    assert f"{skipped(tmp_path / 'two')[-1]} samples could not be read" in ran.stdout

    shutil.rmtree(tmp_path / "two" / "checkpoints" / "step_00000006")
    ran_on = jepa_run(*command, f"run_dir={tmp_path / 'two'}")
    assert ran_on.status == 0, ran_on.err
    assert "resumed after step 3" in ran_on.log
    assert_same_training(tmp_path / "two", tmp_path / "one")
    assert skipped(tmp_path / "two") == skipped(tmp_path / "one")


def test_two_processes_with_micro_batches_and_uneven_masks(tmp_path: Path, jepa_run: Run) -> None:
    uneven = [
        "~regularizers.vicreg",
        "masker.target_scale=[0.05,0.6]",
        "masker.targets=1",
        "train.clip_norm=0.5",
        "data.workers=1",
    ]
    ran = torchrun(*TINY, *STEPS, *uneven, "train.accumulate=2", f"run_dir={tmp_path / 'two'}")
    assert ran.returncode == 0, ran.stderr
    assert jepa_run(*TINY, *STEPS, *uneven, "data.workers=0", f"run_dir={tmp_path / 'one'}").status == 0
    assert steps_kept(tmp_path / "two") == [3, 6]
    assert_same_training(tmp_path / "two", tmp_path / "one")


def test_an_error_ends_all_processes(tmp_path: Path) -> None:
    ran = torchrun(*TINY, "train.batch_size=7", f"run_dir={tmp_path}")
    assert ran.returncode != 0
    assert "nearest batch sizes: 6 or 8" in ran.stderr
