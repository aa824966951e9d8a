"""Write moving shapes as MP4 files: python -m jepa.data.moving_shapes OUT_DIR [key=value ...]

Keys:
    count=1000     clips
    size=64        pixels of height and width, an even number
    frames=16      of a clip
    fps=8          frames per second
    split=train    or test; they share no clip
    seed=0

Writes 000000.mp4, ... and labels.csv, which data=videos data.root=OUT_DIR data.dataset.list_file=labels.csv reads.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from jepa.data.base import DataError
from jepa.data.moving_shapes import MovingShapes
from jepa.data.moving_shapes.files import write_files


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    count: int = 1000
    size: int = 64
    frames: int = 16
    fps: int = 8
    split: str = "train"
    seed: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or any(argument in ("-h", "--help") for argument in arguments):
        print(__doc__)
        return 0
    folder, *pairs = arguments
    try:
        if "=" in folder or not all("=" in pair for pair in pairs):
            raise DataError("give a folder first, then key=value")
        settings = Settings.model_validate(dict(pair.split("=", 1) for pair in pairs))
        dataset = MovingShapes(settings.count, settings.size, settings.frames, settings.seed, settings.split)
        listed = write_files(dataset, Path(folder).expanduser(), settings.fps)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        keys = ", ".join(Settings.model_fields)
        print(f"error: {key}={first['input']}: {first['msg']}; the keys are {keys}", file=sys.stderr)
        return 1
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(dataset)} clips: {listed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
