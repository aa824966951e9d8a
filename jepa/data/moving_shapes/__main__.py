"""Write moving shapes as MP4 files: python -m jepa.data.moving_shapes OUT_DIR [key=value ...]

Keys:
    count=1000     clips
    size=64        pixels of height and width, an even number
    frames=16      of a clip
    fps=8          frames per second
    split=train    or test; they share no clip
    seed=0

Writes 000000.mp4, ... and labels.csv. To read them frame by frame, and not mirrored, since the direction is a label:

    data=videos data.root=OUT_DIR data.dataset.list_file=labels.csv data.dataset.fps=8 data.transform.horizontal_flip=0
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from jepa.data.moving_shapes import MovingShapes
from jepa.data.moving_shapes.files import write_files
from jepa.data.rendered import command


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    count: int = 1000
    size: int = 64
    frames: int = 16
    fps: int = 8
    split: str = "train"
    seed: int = 0


def write(settings: Settings, folder: Path) -> str:
    dataset = MovingShapes(settings.count, settings.size, settings.frames, settings.seed, settings.split)
    return f"{len(dataset)} clips: {write_files(dataset, folder, settings.fps)}"


def main(arguments: Sequence[str] | None = None) -> int:
    return command(__doc__, Settings, write, arguments)


if __name__ == "__main__":
    sys.exit(main())
