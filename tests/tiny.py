"""A recipe that trains in well under a second, and what tests read from a run directory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from jepa import checkpoint
from jepa.metrics import read_metrics

TINY = (
    "recipe=ijepa_tiny",
    "data.size=32",
    "data.workers=0",
    "encoder.dim=32",
    "encoder.depth=1",
    "encoder.heads=2",
    "predictor.dim=32",
    "predictor.depth=1",
    "masker=multiblock",
    "masker.min_context=1",
    "target={_target_: jepa.targets.EMA, start: 0.996, half_life: null}",
    "regularizers.vicreg.sides=[context]",
    "optim.reference_batch=null",
    "train.steps=4",
    "train.batch_size=8",
    "train.log_every=1",
)

TINY_BUT_TARGET = tuple(argument for argument in TINY if not argument.startswith("target"))  # for another target


def losses(run_dir: Path) -> dict[int, float]:
    """Loss of each logged step; a step that is logged twice is an error."""
    rows = read_metrics(run_dir / "metrics.jsonl")
    by_step = {row["step"]: row["loss"] for row in rows}
    assert len(by_step) == len(rows)
    return by_step


def weights(run_dir: Path) -> dict[str, Tensor]:
    """Of the newest checkpoint."""
    return checkpoint.load_file(checkpoint.complete(run_dir / "checkpoints")[-1] / checkpoint.MODEL)


def steps_kept(run_dir: Path) -> list[int]:
    return [checkpoint.step_of(path) for path in checkpoint.complete(run_dir / "checkpoints")]


def images(folder: Path, count: int) -> Path:
    """A folder of pictures in a sub-folder."""
    rng = np.random.default_rng(0)
    (folder / "some").mkdir(parents=True)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / "some" / f"{i:02}.jpg")
    return folder
