"""Clips train as pictures do: exact resume, two processes, any size, stills."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from jepa import loading
from jepa.data import stills
from jepa.encoders import ViT
from jepa.types import View
from tests.conftest import Ran
from tests.test_distributed import STEPS, assert_same_training, torchrun
from tests.test_resume import assert_same_weights, numbers
from tests.tiny import images, losses

Run = Callable[..., Ran]

TINY_CLIPS = (
    "recipe=vjepa_tiny",
    "data.size=[4,32,32]",
    "masker=multiblock3d",
    "predictor.mask_tokens=2",
    "encoder.patch_size=[2,8,8]",
    "data.dataset.count=40",
    "data.workers=0",
    "encoder.dim=32",
    "encoder.depth=1",
    "encoder.heads=2",
    "predictor.dim=32",
    "predictor.depth=1",
    "train.samples=null",
    "train.steps=6",
    "train.batch_size=8",
    "train.log_every=1",
    "train.clip_norm=1.0",
    "train.clip_parts=true",
    "train.clip_after=2",
)


def test_a_run_on_clips_resumes_exactly(tmp_path: Path, jepa_run: Run) -> None:
    command = [*TINY_CLIPS, "train.checkpoint_every=3", "train.keep_last=9", "train.watch_every=2"]
    assert jepa_run(*command, f"run_dir={tmp_path / 'whole'}").status == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "step_00000006")
    ran = jepa_run(*command, f"run_dir={tmp_path / 'stopped'}")
    assert ran.status == 0, ran.err
    assert "resumed after step 3" in ran.log
    assert len(losses(tmp_path / "whole")) == 6
    assert numbers(tmp_path / "stopped") == numbers(tmp_path / "whole")
    assert_same_weights(tmp_path / "stopped", tmp_path / "whole")
    tokens = loading.load(tmp_path / "whole").features(torch.zeros(2, 3, 6, 48, 32, dtype=torch.uint8), pool="none")
    assert tokens.shape == (2, 3, 6, 4, 32)  # more frames, and not square


def test_two_processes_train_on_clips_as_one(tmp_path: Path, jepa_run: Run) -> None:
    """With ragged masks in two tasks, and with a regulariser: its weight is that of samples, not of target tokens."""
    command = [*TINY_CLIPS, *STEPS, "train.accumulate=1"]
    ran = torchrun(*command, f"run_dir={tmp_path / 'two'}")
    assert ran.returncode == 0, ran.stderr
    assert jepa_run(*command, f"run_dir={tmp_path / 'one'}").status == 0
    assert_same_training(tmp_path / "two", tmp_path / "one")


def test_pictures_train_the_video_model(tmp_path: Path, jepa_run: Run) -> None:
    small = [argument for argument in TINY_CLIPS if not argument.startswith(("recipe", "data"))]
    sizes = ["data.size=[2,32,32]", "encoder.patch_size=[2,8,8]", "data.workers=0", "train.precision=fp32"]
    root = images(tmp_path / "pictures", 8)
    arguments = [
        "recipe=vjepa_image",
        *small,
        *sizes,
        f"data.root={root}",
        "train.steps=2",
        f"run_dir={tmp_path / 'run'}",
    ]
    ran = jepa_run(*arguments)
    assert ran.status == 0, ran.err
    assert len(losses(tmp_path / "run")) == 2


def test_stills_are_pictures_that_do_not_move() -> None:
    picture = torch.rand(3, 8, 10)
    clip = stills(4, transform=lambda x: x[..., :8])(picture)
    assert clip.shape == (3, 4, 8, 8)
    assert (clip == picture[:, None, :, :8]).all()
    for wrong in (lambda: stills(0), lambda: stills(2)(clip)):
        with pytest.raises(ValueError, match=r"frames=0|pictures \(C, H, W\)"):
            wrong()


@pytest.mark.parametrize("options", [{"axis_order": "first_first"}, {"position": "rope"}])
@pytest.mark.parametrize("size", [(2, 16, 16), (8, 24, 16), (5, 17, 40)])
def test_any_clip_size(options: dict[str, Any], size: tuple[int, ...]) -> None:
    """Other frame counts, not square, and a remainder that no patch covers."""
    encoder = ViT(dim=24, depth=1, heads=2, patch_size=(2, 8, 8), **options)
    tokens = encoder(View(torch.randn(2, 3, *size)))
    assert tokens.index.grid == (size[0] // 2, size[1] // 8, size[2] // 8)
    assert tokens.x.isfinite().all()


def test_single_pictures_by_tubelets_of_one_frame() -> None:
    torch.manual_seed(0)
    clips = ViT(dim=24, depth=1, heads=2, patch_size=(1, 8, 8), axis_order="first_first", position="rope")
    assert clips(View(torch.randn(2, 3, 1, 16, 24))).index.grid == (1, 2, 3)
