"""Which frames of a video make a clip."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from jepa.data.base import DataError

Short = Literal["pad", "loop", "skip"]
TOLERANCE = 1e-3  # seconds: some containers round times to milliseconds


@dataclass(frozen=True)
class Sampling:
    """Which frames make a clip.

    Attributes:
        frames: of a clip.
        stride: every stride-th frame as they are shown, whatever their times; or
        fps: frames per second of the clip, whatever those of the file; or
        duration: seconds from a clip's first frame to where the next clip would begin.
        short: what becomes of a video shorter than that: its last frame is repeated (pad), it starts again (loop), or
            it counts as unreadable (skip).

    Raises:
        DataError: not exactly one of stride, fps and duration is given, or a value is out of its range.
    """

    frames: int
    stride: int | None = None
    fps: float | None = None
    duration: float | None = None
    short: Short = "pad"

    def __post_init__(self) -> None:
        ways = {"stride": self.stride, "fps": self.fps, "duration": self.duration}
        given = {name: value for name, value in ways.items() if value is not None}
        if len(given) != 1:
            raise DataError(
                f"give exactly one of stride, fps and duration, the others null; "
                f"got {', '.join(f'{name}={value}' for name, value in given.items()) or 'none'}"
            )
        if self.frames < 1 or not min(given.values()) > 0 or self.short not in get_args(Short):
            raise DataError(
                f"need frames >= 1, {next(iter(given))} > 0 and short one of {', '.join(get_args(Short))}; "
                f"got frames {self.frames}, {given} and short {self.short!r}"
            )

    def step(self, interval: float) -> float:
        """Seconds between frames of a clip from a video with a frame each `interval` seconds."""
        if self.stride:
            return self.stride * interval
        return 1 / self.fps if self.fps else (self.duration or 0) / self.frames


class Clock:
    """Finds the frames of a clip among shown frames.

    Args:
        times: of the frames, ascending.
        sampling: which frames.
        interval: mean time between frames.
        second: in units of `times`.

    Attributes:
        counted: whether the steps between frames of a clip are counted in frames, or in time.
        values: of each frame, in what steps are counted in.
        interval: between frames of the video.
        reach: from the first to the last frame of the clip.
    """

    def __init__(self, times: Sequence[int], sampling: Sampling, interval: float, second: float) -> None:
        self.times, self.counted = times, sampling.stride is not None
        self.values: Sequence[int]
        if sampling.stride:
            self.values, self.step, self.interval, self.early = range(len(times)), float(sampling.stride), 1.0, 0.0
        else:
            self.values, self.step, self.interval = times, sampling.step(interval / second) * second, interval
            self.early = TOLERANCE * second
        self.frames, self.short, self.reach = sampling.frames, sampling.short, (sampling.frames - 1) * self.step

    def clip(self, start: float) -> tuple[float, list[int]] | None:
        """When the clip at time `start` begins, and its positions; None where the frames end before the clip."""
        begin = self._begin(start, len(self.times))
        if begin + self.reach >= self.values[-1] + self.interval + self.early:
            return None
        return self._time(begin), self._shown(begin)

    def anywhere(self, place: float) -> tuple[float, list[int]] | None:
        """The same of a clip at `place` in a whole video; None if that is too short and refused."""
        length = self.values[-1] - self.values[0] + self.interval
        room = length - self.reach  # for the first frame
        if room >= self.interval / 2:
            begin = self._begin(self._time(self.values[0] + place * room), len(self.times))
            return self._time(begin), self._shown(begin)
        if self.short == "skip":
            return None
        return self.times[0], self._shown(self.values[0], length if self.short == "loop" else None)

    def decides(self, start: float, known: int) -> bool:
        """Whether the first `known` frames are enough to say which frames the clip at time `start` has."""
        if not known or self.times[0] > start:
            return False
        return self.values[known - 1] > self._begin(start, known) + self.reach + self.early

    def _begin(self, start: float, known: int) -> float:
        """Where a clip at time `start` begins: with the frame that is shown then, of the first `known` ones.

        A frame that is held for longer than a step may have been shown for some steps by then. Parts of a step do not
        count: so at a constant rate all clips have the same rhythm, and sound begins with the picture.
        """
        first = max(0, bisect_right(self.times, start, hi=known) - 1)
        if self.counted:
            return first
        return self.times[first] + max(0.0, start - self.times[first]) // self.step * self.step

    def _time(self, value: float) -> float:
        return self.times[self._at(value)] if self.counted else value

    def _shown(self, begin: float, period: float | None = None) -> list[int]:
        steps = (j * self.step for j in range(self.frames))
        return [self._at(begin + (step if period is None else step % period)) for step in steps]

    def _at(self, value: float) -> int:
        """The frame that is shown then."""
        return max(0, bisect_right(self.values, value + self.early) - 1)
