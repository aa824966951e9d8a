"""Clips from files train as pictures do: exact resume, two processes, bad files, mixtures, any size, stills."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from jepa import loading
from jepa.data import MovingShapes, stills
from jepa.data.moving_shapes.files import write_files
from jepa.dry_run import known_dataset
from jepa.encoders import ViT
from jepa.recipe import load_recipe
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
    "predictor=vit",
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


TINY_FILES = tuple(argument for argument in TINY_CLIPS if not argument.startswith("data.dataset"))


def from_files(folder: Path) -> list[str]:
    """Arguments by which the clips are written there once, and read as any video by a worker."""
    return [f"data.root={folder}", "data.workers=1"]


def test_a_dry_run_does_without_a_mixture_whose_places_are_not_known(tmp_path: Path) -> None:
    command = ["recipe=vjepa2_vitl16", "data=videomix22m", "dry_run=true"]
    roots = [f"data.dataset.datasets.{name}.root={tmp_path}" for name in ("k710", "ssv2")]
    assert known_dataset(load_recipe(command)) is known_dataset(load_recipe([*command, *roots])) is None


def test_dry_run_of_the_tiny_recipe(jepa_run: Run) -> None:
    ran = jepa_run("recipe=vjepa_tiny", "dry_run=true")
    assert ran.status == 0, ran.err
    table = {line[:22].strip(): line[22:] for line in ran.out.splitlines()}
    assert table["grid"] == "2 x 6 x 6 = 72 tokens per sample for the target"
    assert table["task 1"].endswith("1 target sets of 43.0 (43 to 43)")
    assert table["samples"].startswith("32,000")
    assert all(int(table[part].split()[0].replace(",", "")) > 50_000 for part in ("encoder", "predictor"))


def test_a_run_on_clips_resumes_exactly(tmp_path: Path, jepa_run: Run) -> None:
    command = [*TINY_CLIPS, "train.checkpoint_every=3", "train.keep_last=9", "train.watch_every=2"]
    command += from_files(tmp_path / "files")
    assert jepa_run(*command, f"run_dir={tmp_path / 'whole'}").status == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "step_00000006")
    ran = jepa_run(*command, f"run_dir={tmp_path / 'stopped'}")
    assert ran.status == 0, ran.err
    assert "resumed after step 3" in ran.log
    assert len(list((tmp_path / "files").rglob("*.mp4"))) == 40
    assert len(losses(tmp_path / "whole")) == 6
    assert numbers(tmp_path / "stopped") == numbers(tmp_path / "whole")
    assert_same_weights(tmp_path / "stopped", tmp_path / "whole")
    tokens = loading.load(tmp_path / "whole").features(torch.zeros(2, 3, 6, 48, 32, dtype=torch.uint8), pool="none")
    assert tokens.shape == (2, 3, 6, 4, 32)  # more frames, and not square


def test_two_processes_train_on_clips_as_one(tmp_path: Path, jepa_run: Run) -> None:
    """With ragged masks in two tasks, and with a regulariser: its weight is that of samples, not of target tokens."""
    command = [*TINY_CLIPS, *STEPS, "train.accumulate=1", *from_files(tmp_path / "files")]
    ran = torchrun(*command, f"run_dir={tmp_path / 'two'}")
    assert ran.returncode == 0, ran.stderr
    assert jepa_run(*command, f"run_dir={tmp_path / 'one'}").status == 0
    assert_same_training(tmp_path / "two", tmp_path / "one")


def test_bad_files_are_skipped_counted_and_named(tmp_path: Path, jepa_run: Run) -> None:
    write_files(MovingShapes(10, 32, 8), tmp_path / "films")
    whole = (tmp_path / "films" / "000000.mp4").read_bytes()
    (tmp_path / "films" / "short.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "films" / "text.mp4").write_text("no video")
    command = [*TINY_FILES, "data=videos", "data.dataset.fps=8", f"data.root={tmp_path / 'films'}"]
    ran = jepa_run(*command, f"run_dir={tmp_path / 'run'}")
    assert ran.status == 0, ran.err
    skipped = [row["skipped"] for row in numbers(tmp_path / "run")]
    assert skipped == sorted(skipped)
    assert skipped[-1] == ran.log.count("skipped ") >= 8  # each of both at least once in each of four epochs
    assert "skipped short.mp4: cut off: " in ran.log
    assert "skipped text.mp4: cut off, damaged or not a video" in ran.log
    assert f"{skipped[-1]} samples could not be read (named above)" in ran.out


def test_a_run_on_a_mixture_goes_on_where_its_files_were_moved_to(tmp_path: Path, jepa_run: Run) -> None:
    for seed, name in enumerate(("k710", "ssv2", "howto")):
        write_files(MovingShapes(3, 32, 8, seed=seed), tmp_path / "films" / name)
    (tmp_path / "films" / "ssv2" / "text.mp4").write_text("no video")

    def command(films: Path, run_dir: str) -> list[str]:
        roots = [f"data.dataset.datasets.{name}.root={films / name}" for name in ("k710", "ssv2", "howto")]
        small = [*TINY_FILES, "data=videomix22m", "train.steps=2", "train.checkpoint_every=1", "train.keep_last=9"]
        return [*small, *roots, f"run_dir={tmp_path / run_dir}"]

    assert jepa_run(*command(tmp_path / "films", "whole")).status == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "step_00000002")
    ran = jepa_run(*command((tmp_path / "films").rename(tmp_path / "moved"), "stopped"))
    assert ran.status == 0, ran.err
    assert "resumed after step 1" in ran.log
    assert numbers(tmp_path / "stopped") == numbers(tmp_path / "whole")
    assert_same_weights(tmp_path / "stopped", tmp_path / "whole")


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
    model, pictures = loading.load(tmp_path / "run"), torch.randint(0, 256, (2, 3, 40, 32), dtype=torch.uint8)
    standing = model.features(pictures[:, :, None].repeat(1, 1, 2, 1, 1), pool="none")
    assert standing.shape == (2, 1, 5, 4, 32)
    assert model.features(pictures, pool="none").equal(standing)
    with pytest.raises(ValueError, match=r"input size \(1, 40, 32\) cannot be cut into patches of \(2, 8, 8\)"):
        model.features(pictures[:, :, None])


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
