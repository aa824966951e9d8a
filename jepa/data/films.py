"""Videos with their sound: clips, and what is heard meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path

import av
import torch
from av.stream import Disposition
from torch import Tensor

from jepa.data.base import DataError, fingerprint_of
from jepa.data.clips import read_timed_clip
from jepa.data.container import opened
from jepa.data.sampling import Sampling, Short
from jepa.data.sound import Excerpt, read_sound
from jepa.data.videos import EXTENSIONS, Videos
from jepa.types import Sample

LONGER = 1.0  # seconds: a file that says to be so much longer than a clip is not read to its end to know that


class Films(Videos):
    """Clips of videos as in `Videos`, with the sound from the first frame of the clip to where the next would begin.

    Videos without sound are unreadable, as are those of which no sound falls into the clip. Where the sound begins
    later than the clip, or ends earlier, there is silence.

    Args:
        root, frames, clips, random, extensions, list_file, min_side: as in `Videos`.
        short: as in `Videos`, by the length of the picture. Where it starts again, so does the sound.
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
    period = _period(path, name, sampling) if sampling.short == "loop" else None
    if period is None:
        return {"clip": clip, "sound": read_sound(path, name, excerpt, begins=begins)}
    once = read_sound(path, name, replace(excerpt, samples=ceil(period * excerpt.rate)), begins=begins)
    again = torch.arange(excerpt.samples, dtype=torch.float64) % (period * excerpt.rate)
    return {"clip": clip, "sound": once[:, again.long()]}


def _period(path: Path, name: str, sampling: Sampling) -> float | None:
    """Seconds of a picture that is shorter than a clip and so starts again; None of a longer one."""
    with opened(path, name, "video") as (container, _):
        stream = next(s for s in container.streams.video if not s.disposition & Disposition.attached_pic)
        tick, interval = float(stream.time_base or 0), 1 / float(stream.average_rate or stream.guessed_rate or 1)
        reach = (sampling.frames - 1) * sampling.step(interval)
        stated = stream.duration * tick if stream.duration else (container.duration or 0) / av.time_base
        if stated > reach + LONGER:
            return None
        packets = (packet for packet in container.demux(stream) if packet.size and not packet.is_discard)
        times = [(packet.dts if packet.pts is None else packet.pts) or 0 for packet in packets]
    length = (max(times) - min(times)) * tick + interval
    return length if length - reach < interval / 2 else None
