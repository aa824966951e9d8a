"""Videos with their sound: clips, and what is heard meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from jepa.data.base import DataError, fingerprint_of
from jepa.data.clips import read_timed_clip
from jepa.data.sampling import Sampling, Short
from jepa.data.sound import Excerpt, read_sound
from jepa.data.videos import EXTENSIONS, Videos
from jepa.types import Sample


class Films(Videos):
    """Clips of videos as in `Videos`, with the sound from the first frame of the clip to where the next would begin.

    Videos without sound are unreadable. Where the sound ends earlier than the clip, silence follows.

    Args:
        root, frames, clips, random, short, extensions, list_file, min_side: as in `Videos`.
        rate: samples of the sound per second.
        fps: frames per second of the clip, whatever those of the video; or
        duration: seconds of the clip.
        channels, silence: of the sound, as in `Audio`; by default silence is taken as it is.

    Raises:
        DataError: see `Videos`; neither `fps` nor `duration` is given, or both.
    """

    def __init__(
        self,
        root: str | Path,
        frames: int,
        rate: int,
        fps: float | None = None,
        duration: float | None = None,
        channels: int = 1,
        clips: int = 1,
        random: bool = True,
        short: Short = "pad",
        silence: float | None = None,
        extensions: Sequence[str] = EXTENSIONS,
        list_file: str | Path | None = None,
        min_side: int | None = None,
    ) -> None:
        if (fps is None) == (duration is None):
            raise DataError(f"give fps or duration, which say how long the sound is; got {fps} and {duration}")
        super().__init__(
            root,
            frames,
            fps=fps,
            duration=duration,
            clips=clips,
            random=random,
            short=short,
            extensions=extensions,
            list_file=list_file,
            min_side=min_side,
        )
        self.excerpt = Excerpt(rate, round(rate * frames * self.sampling.step(0)), channels, short, silence)

    def __getitem__(self, i: int) -> Sample:
        """x: clip (3, T, H, W) uint8 and sound (channels, samples) float32."""
        if not 0 <= i < len(self):
            raise IndexError(f"clip {i} of {len(self)}")
        video, clip = divmod(i, self.clips)
        name = self.files.name(video)
        within = torch.rand(()).item() if self.random else 0.5
        place = (clip + within) / self.clips
        x = read_film(self.files.root / name, name, self.sampling, self.excerpt, place, min_side=self.min_side)
        return Sample(x, self.files.labels(video), f"{name}#{clip}" if self.clips > 1 else name)

    @property
    def fingerprint(self) -> str:
        return fingerprint_of([super().fingerprint, repr(self.excerpt)])


def read_film(
    path: Path, name: str, sampling: Sampling, excerpt: Excerpt, place: float, *, min_side: int | None = None
) -> dict[str, Tensor]:
    """A clip of a video (3, T, H, W), uint8, and its sound from the clip's first frame on (C, samples), float32.

    Args:
        path, name, sampling, place, min_side: as for `read_clip`.
        excerpt: rate, length and channels of the sound.

    Raises:
        UnreadableSample: see `read_clip` and `read_sound`.
    """
    clip, begins = read_timed_clip(path, name, sampling, place, min_side=min_side)
    return {"clip": clip, "sound": read_sound(path, name, excerpt, begins=begins)}
