"""Clips from video files, as bytes (3, T, H, W)."""

from __future__ import annotations

import struct
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from pathlib import Path

import av
import numpy as np
import torch
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import SideData
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from torch import Tensor

from jepa.data.container import kinds, opened
from jepa.data.sampling import Clock, Sampling
from jepa.types import UnreadableSample

LOOK_BACK = (0, 1, 8, 64)  # seconds: a few demuxers seek to a key frame that is shown after the time asked for
AREA = Interpolation.AREA | Interpolation.FULL_CHR_H_INT  # without the second, colours have half the width
GUESSES_TIMES = ("mpeg",)  # containers whose times are wrong after a seek
LEAVES_OUT = ("h264", "hevc")  # decoders that can be told from packet to packet whether to leave out frames


def read_clip(path: Path, name: str, sampling: Sampling, place: float, *, min_side: int | None = None) -> Tensor:
    """A clip of a video as uint8 (3, T, H, W), turned as its display matrix says.

    Decodes from the last key frame that is shown before the clip, and no frame that neither the clip nor another of its
    frames needs.

    Args:
        path: the file.
        name: what to call it in an error.
        sampling: which frames.
        place: of the clip, 0 at the start of the video to 1 at its end.
        min_side: frames are halved while their shorter side keeps this many pixels.

    Raises:
        UnreadableSample: the file is missing, damaged, cut off, not a video, or too short for `short="skip"`.
    """
    return read_timed_clip(path, name, sampling, place, min_side=min_side)[0]


def read_timed_clip(
    path: Path, name: str, sampling: Sampling, place: float, *, min_side: int | None = None
) -> tuple[Tensor, float]:
    """As `read_clip`, and when the clip begins, in seconds of the file's clock."""
    with opened(path, name, "video") as (container, size):
        reader = _Reader(container, name, size, sampling)
        frames = reader.clip(place, min_side)
    return torch.from_numpy(frames).permute(3, 0, 1, 2), reader.begins


class _Reader:
    """One clip of an open file. Times are in units of the stream's time base and begin anywhere."""

    def __init__(self, container: InputContainer, name: str, size: int, sampling: Sampling) -> None:
        self.container, self.name, self.sampling = container, name, sampling
        self.stream = stream = self._video_stream()
        stream.thread_type = "NONE"  # data workers run in parallel, and only one thread can leave out single frames
        last = stream.index_entries[-1] if len(stream.index_entries) else None
        if last is not None and last.pos + last.size > size:
            raise UnreadableSample(name, f"cut off: {size} bytes of at least {last.pos + last.size}")
        rate = stream.average_rate or stream.guessed_rate
        if not rate or not stream.time_base:
            raise UnreadableSample(name, "its frames have no times")
        self.second = 1 / float(stream.time_base)
        self.interval = self.second / float(rate)  # between frames, on average
        self.begun = False  # reading
        self.begins = 0.0  # seconds
        # AVI holds no times, and those that libav makes up for these are in the wrong order where there are B frames
        self.count = container.format.name == "avi" and stream.codec_context.name in LEAVES_OUT

    def clip(self, place: float, min_side: int | None) -> np.ndarray:
        """(T, H, W, 3)."""
        clip = None if self.count else self._read(place, min_side)
        if clip is None:  # times cannot be relied on: count frames from the start
            self.count = True
            clip = self._read(place, min_side)
        if clip is None:
            raise UnreadableSample(self.name, "damaged: frames are missing")
        return clip

    def _read(self, place: float, min_side: int | None) -> np.ndarray | None:
        found = None
        step = self.sampling.step(self.interval / self.second) * self.second
        room = self._length() - (self.sampling.frames - 1) * step
        if room >= self.interval / 2 and not self.count:
            start = (self.stream.start_time or 0) + place * room
            packets, times = self._packets(start)
            found = self._clock(times).clip(start) if times else None
        if found is None:  # a short video, or one that is not as long as it says
            packets, times = self._packets(None)
            if not times:
                raise UnreadableSample(self.name, "no frames in it")
            found = self._clock(times).anywhere(place)
        if found is None:
            seconds = (times[-1] - times[0] + self.interval) / self.second
            raise UnreadableSample(self.name, f"{len(times)} frames in {seconds:.2f} s are too short for a clip")
        begin, positions = found
        self.begins = begin / self.second
        return self._decode(packets, times, positions, min_side)

    def _video_stream(self) -> VideoStream:
        kind = self.container.format.name
        if kind.endswith("_pipe") or kind == "image2":
            raise UnreadableSample(self.name, f"a picture ({kind.removesuffix('_pipe')}), not a video")
        for stream in self.container.streams.video:
            if stream.disposition & Disposition.attached_pic:  # the cover of a record
                continue
            if stream.codec_context is None:
                raise UnreadableSample(self.name, "its codec is not known to this libav")
            return stream
        raise UnreadableSample(self.name, f"no video in it, {kinds(self.container)}")

    def _length(self) -> float:
        """What the file says; 0 where it says nothing."""
        if self.stream.duration:
            return self.stream.duration
        if not self.container.duration:
            return 0
        end = ((self.container.start_time or 0) + self.container.duration) / av.time_base
        return end * self.second - (self.stream.start_time or 0)

    def _clock(self, times: Sequence[int]) -> Clock:
        return Clock(times, self.sampling, self.interval, self.second)

    def _packets(self, start: float | None) -> tuple[list[Packet], list[int]]:
        """Packets from the last key frame shown at `start` to the end of the clip, and the ordered times of frames.

        Without a start, all of the file.
        """
        packets: list[Packet] = []
        times: list[int] = []
        for packet in self._from_start() if start is None else self._from_key_frame(start):
            time = self._time(packet)
            if packet.is_corrupt:
                raise self._damaged(time)
            if packets and packets[0].is_keyframe and time < self._time(packets[0]):
                continue  # shown before the key frame: needs frames from before it
            packets.append(packet)
            if not packet.is_discard:
                insort(times, time)
            if start is not None and packet.dts is not None:
                known = bisect_left(times, packet.dts)  # what comes from here on is shown later
                if self._clock(times).decides(start, known):
                    break
        return packets, times

    def _from_key_frame(self, start: float) -> Iterator[Packet]:
        """Packets in the order of decoding, from the last key frame that is shown by then."""
        for seconds in () if self.container.format.name in GUESSES_TIMES else LOOK_BACK:
            if not self._seek(start - seconds * self.second):
                break
            packets = self._demux()
            first = next((packet for packet in packets if packet.is_keyframe), None)
            if first is not None and self._time(first) <= start:
                return chain([first], packets)
        return self._from_start()

    def _from_start(self) -> Iterator[Packet]:
        if self.begun:
            self._seek(self.stream.start_time or 0)
        return self._demux()

    def _seek(self, time: float) -> bool:
        try:
            self.container.seek(int(time), stream=self.stream)
        except av.FFmpegError:
            return False
        return True

    def _demux(self) -> Iterator[Packet]:
        self.begun = True
        return (packet for packet in self.container.demux(self.stream) if packet.size)

    def _time(self, packet: Packet) -> int:
        """When its frame is shown."""
        time = packet.dts if self.count or packet.pts is None else packet.pts
        if time is None:
            raise UnreadableSample(self.name, "its frames have no times")
        return time

    def _decode(
        self, packets: list[Packet], times: list[int], positions: list[int], min_side: int | None
    ) -> np.ndarray | None:
        """(T, H, W, 3): the frames at those positions of the ordered times; None if some never come."""
        wanted = defaultdict(list)  # time -> where in the clip
        for j, position in enumerate(positions):
            wanted[times[position]].append(j)
        clip: np.ndarray | None = None
        pixels = _Pixels(min_side)
        for number, frame in enumerate(self._frames(self._needed(packets, wanted), set(wanted))):
            time = times[min(number, len(times) - 1)] if self.count else frame.pts or 0
            if frame.is_corrupt:
                raise self._damaged(time)
            if (places := wanted.pop(time, None)) is None:
                continue
            shown = pixels(frame)
            if clip is None:
                clip = np.empty((len(positions), *shown.shape), np.uint8)
            clip[places] = shown
            if not wanted:
                return _upright(clip, frame)
        return None

    def _needed(self, packets: list[Packet], wanted: Collection[int]) -> list[Packet]:
        """From the last key frame that is shown by the first wanted time, to the last packet of a wanted frame."""
        if self.count:
            return packets  # frames are counted from the first one
        times, first = [self._time(packet) for packet in packets], min(wanted)
        keys = [i for i, time in enumerate(times) if packets[i].is_keyframe and time <= first]
        begin, shown = (keys[-1], times[keys[-1]]) if keys else (0, min(times))
        end = max(i for i, time in enumerate(times) if time in wanted) + 1
        return [packets[i] for i in range(begin, end) if times[i] >= shown]

    def _frames(self, packets: list[Packet], wanted: Collection[int]) -> Iterator[VideoFrame]:
        """Frames as they are shown, at least the wanted ones; some of those that no other frame needs are left out."""
        decoder = self.stream.codec_context
        decoder.flush_buffers()
        for packet in packets:
            if decoder.name in LEAVES_OUT and not self.count:
                decoder.skip_frame = "DEFAULT" if self._time(packet) in wanted else "NONREF"
            yield from decoder.decode(packet)
        yield from decoder.decode(None)

    def _damaged(self, time: int | None) -> UnreadableSample:
        seconds = ((time or 0) - (self.stream.start_time or 0)) / self.second
        return UnreadableSample(self.name, f"damaged {seconds:.2f} s after its start")


class _Pixels:
    """Pixels (H, W, 3) of frames, all of the size that the first one leads to."""

    def __init__(self, min_side: int | None) -> None:
        self.min_side, self.size, self.convert = min_side, (0, 0), VideoReformatter().reformat

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        if not self.size[0]:
            factor = 1
            while self.min_side and min(frame.width, frame.height) >= 2 * factor * self.min_side:
                factor *= 2
            self.size = (frame.width // factor, frame.height // factor)
        width, height = self.size
        rgb = self.convert(frame, width, height, "rgb24", interpolation=AREA, threads=1)
        plane = rgb.planes[0]
        return (
            np.frombuffer(memoryview(plane), np.uint8)
            .reshape(height, plane.line_size)[:, : 3 * width]
            .reshape(height, width, 3)
        )


def _upright(clip: np.ndarray, frame: VideoFrame) -> np.ndarray:
    """(T, H, W, 3) turned and mirrored as the frame's display matrix says, by multiples of 90 degrees."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(matrix, SideData):
        return clip
    a, b, _, c, d, *_ = struct.unpack("=9i", memoryview(matrix))  # (x, y) is shown at (ax + cy, bx + dy)
    if abs(b) > abs(a):
        clip, a, d = clip.swapaxes(1, 2), c, b
    rows, columns = (-1 if d < 0 else 1), (-1 if a < 0 else 1)
    return np.ascontiguousarray(clip[:, ::rows, ::columns])
