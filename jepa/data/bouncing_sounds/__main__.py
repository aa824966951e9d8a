"""Write bouncing sounds as MP4 files: python -m jepa.data.bouncing_sounds OUT_DIR [key=value ...]

Keys:
    count=1000     clips
    size=48        pixels of height and width, an even number
    frames=16      of a clip
    fps=8          frames per second
    rate=16000     samples of the sound per second
    split=train    or test; they share no clip
    seed=0

Writes 000000.mp4, ... and labels.csv, which data=films data.root=OUT_DIR data.dataset.list_file=labels.csv reads.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from jepa.data.bouncing_sounds import BouncingSounds
from jepa.data.bouncing_sounds.files import write_files
from jepa.data.rendered import command


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    count: int = 1000
    size: int = 48
    frames: int = 16
    fps: int = 8
    rate: int = 16_000
    split: str = "train"
    seed: int = 0


def write(settings: Settings, folder: Path) -> str:
    dataset = BouncingSounds(**settings.model_dump())
    return f"{len(dataset)} clips: {write_files(dataset, folder, settings.fps, settings.rate)}"


def main(arguments: Sequence[str] | None = None) -> int:
    return command(__doc__, Settings, write, arguments)


if __name__ == "__main__":
    sys.exit(main())
