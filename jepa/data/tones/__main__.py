"""Write tones as sound files: python -m jepa.data.tones OUT_DIR [key=value ...]

Keys:
    count=1000     sounds
    rate=16000     samples per second
    seconds=1.024  of a sound
    kind=wav       or flac, opus
    split=train    or test; they share no sound
    seed=0

Writes 000000.wav, ... and labels.csv, which data=audio data.root=OUT_DIR data.dataset.list_file=labels.csv reads.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from jepa.data.rendered import command
from jepa.data.tones import Tones
from jepa.data.tones.files import write_files


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    count: int = 1000
    rate: int = 16_000
    seconds: float = 1.024
    kind: str = "wav"
    split: str = "train"
    seed: int = 0


def write(settings: Settings, folder: Path) -> str:
    dataset = Tones(settings.count, settings.rate, settings.seconds, settings.seed, settings.split)
    return f"{len(dataset)} sounds: {write_files(dataset, folder, settings.rate, settings.kind)}"


def main(arguments: Sequence[str] | None = None) -> int:
    return command(__doc__, Settings, write, arguments)


if __name__ == "__main__":
    sys.exit(main())
