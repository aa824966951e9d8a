"""Crops of sound files, and of the sound tracks of videos, as waveforms (C, samples)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import get_args

import av
import torch
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from torch import Tensor

from jepa.data.base import DataError
from jepa.data.container import codec_of, kinds, mp3_samples, opened
from jepa.data.resample import resampler
from jepa.data.sampling import Short
from jepa.data.waveform import Waveform
from jepa.types import UnreadableSample

PREROLL = 0.5  # seconds decoded before a crop: Opus asks for 0.08 (RFC 7845, 4.6), MP3's reservoir reaches back 0.3
LOOK_BACK = (0, 1, 8)  # seconds: some demuxers seek to a packet after the time asked for
NO_PREROLL = ("pcm_", "flac", "alac")  # decoders whose packets stand alone
CHECKED = {"err_detect": "crccheck+explode"}  # FLAC's sums, and an error where one is wrong: either alone says nothing
GUESSES = ("mp3", "aac", "ac3", "eac3", "dts", "amr", "mpeg", "mpegts", "avi")  # of length, or place after a seek
FILTER = 64  # samples of the lower rate: safely more than the resampling filter reaches to both sides
LARGEST_FILTER = 2**24  # weights of a resampler: rates without a common divisor would need gigabytes
MISSING = 0.1  # seconds: files may say that they are so much longer than they are


@dataclass(frozen=True)
class Excerpt:
    """What is taken from each recording.

    Attributes:
        rate: samples per second; recordings of another rate are resampled.
        samples: of a crop.
        channels: 1 mixes all channels (their mean); else recordings must have as many, or one, which is repeated.
        short: a recording shorter than a crop is followed by silence (pad), starts again (loop) or is refused (skip);
            of crops at a place in it, not of those that begin at a time.
        silence: crops whose largest sample is below so many decibels of full scale are unreadable; None: none are.

    Raises:
        DataError: a value is out of its range.
    """

    rate: int
    samples: int
    channels: int = 1
    short: Short = "pad"
    silence: float | None = -60.0

    def __post_init__(self) -> None:
        if min(self.rate, self.samples, self.channels) < 1 or self.short not in get_args(Short):
            raise DataError(
                f"need rate, samples and channels >= 1 and short one of {', '.join(get_args(Short))}; "
                f"got {self.rate}, {self.samples}, {self.channels} and {self.short!r}"
            )

    @property
    def seconds(self) -> float:
        return self.samples / self.rate


def read_sound(path: Path, name: str, excerpt: Excerpt, place: float = 0.0, *, begins: float | None = None) -> Tensor:
    """A crop of a recording, or of a video's first sound track, as float32 (C, samples); full scale is 1.

    It is a part of what decoding and resampling the whole file would give, sample by sample. Only the crop and what its
    decoder needs before it are decoded: after a seek, or, for kinds of files that do not say where a seek ends (bare
    AAC, FLAC in Ogg, MP3 without its length in a Xing header), after reading past the packets before it. In Matroska
    files places are known to a millisecond only, and packets are read past where the file is longer than its sound.

    torchaudio's filter resamples: it is finite and has no state, so that a crop equals a part of the whole, which
    libav's resampler does not promise.

    A crop that begins at a time is silent before the sound begins and after it ends, whatever `short` says: a sound
    track may begin later than the picture, or end earlier. Without any sound in it, it is unreadable.

    Args:
        path: the file.
        name: what to call it in an error.
        excerpt: rate, length and channels.
        place: of the crop, 0 at the start of the recording to 1 at its end; or
        begins: when it begins, in seconds of the file's clock.

    Raises:
        UnreadableSample: the file is missing, damaged, cut off, without sound (at that time), of a codec that libav
            does not know, silent there, or too short for `short="skip"`.
    """
    with opened(path, name, "sound file") as (container, size):
        # with the length known, libav's seeking in MP3 is exact: it reads past the packets before the place
        samples = mp3_samples(path, size) if container.format.name == "mp3" else None
        x = _Reader(container, name, excerpt.rate, samples).crop(excerpt, place, begins)
    return checked(x, excerpt.silence, name)


def checked(x: Tensor, silence: float | None, name: str) -> Tensor:
    """The waveform itself, unless it is of no use.

    Raises:
        UnreadableSample: it is silent, or holds NaN.
    """
    peak = max(map(abs, map(float, x.aminmax())))  # NaN, of both, if there is one
    if not peak < float("inf"):
        raise UnreadableSample(name, "holds samples that are not finite")
    if silence is not None and peak < 10 ** (silence / 20):
        raise UnreadableSample(name, f"silent: no sample of the crop is above {silence:g} dB of full scale")
    return x


class _Reader:
    """One crop of an open file. Seconds begin with the first sample that decoding from the start gives.

    `samples` are those of all packets, if known to be right.
    """

    def __init__(self, container: InputContainer, name: str, rate: int, samples: int | None) -> None:
        if not container.streams.audio:
            raise UnreadableSample(name, f"no sound in it, {kinds(container)}")
        self.container, self.name, self.target_rate, self.samples = container, name, rate, samples
        self.stream: AudioStream = container.streams.audio[0]
        if self.stream.codec_context is None:
            raise UnreadableSample(name, f"no decoder for its sound, codec {codec_of(container, self.stream)}")
        self.stream.codec_context.thread_type = "NONE"  # data workers run in parallel
        if not self.stream.time_base or not self.stream.rate:
            raise UnreadableSample(name, "its sound has no times")
        self.tick = float(self.stream.time_base)  # seconds
        self.origin = self.stream.start_time or 0
        self.rate = self.stream.rate  # until frames say otherwise: that of AAC may be half of what is decoded
        self.flac = self.stream.codec_context.name == "flac"
        if self.flac:
            self.stream.codec_context.options = CHECKED
        formats = container.format.name.split(",")
        self.guesses = samples is None and any(kind in GUESSES for kind in formats)
        pages = self.flac and "ogg" in formats  # times after a seek are up to a page too early
        self.packets = list(container.demux(self.stream)) if self.guesses or pages or not self._said() else None
        if pages and self._missing():  # libav leaves out pages whose sums are wrong
            raise UnreadableSample(name, "damaged")

    def crop(self, excerpt: Excerpt, place: float, begins: float | None) -> Tensor:
        try:
            return self._crop(excerpt, place, begins)
        except UnreadableSample:
            if self._length_is_known():
                raise
        self._seek(self.origin)  # the file may be longer than its sound: packets tell
        self.packets, self.guesses = list(self.container.demux(self.stream)), True
        return self._crop(excerpt, place, begins)

    def _crop(self, excerpt: Excerpt, place: float, begins: float | None) -> Tensor:
        length, rate = self._length(), excerpt.rate
        short = excerpt.short if begins is None and length - excerpt.seconds < -0.5 / rate else "pad"
        if short == "skip":
            raise UnreadableSample(self.name, f"{length:.2f} s are too short for a crop of {excerpt.seconds:g} s")
        start = place * max(length - excerpt.seconds, 0) if begins is None else begins - self.origin * self.tick
        first = round(start * rate)
        ahead = max(0, -first)  # samples before the sound
        count = min(excerpt.samples, round(length * rate) - first) - ahead
        if count < 1:
            raise UnreadableSample(
                self.name,
                f"its sound lasts from {self._clock(0)} to {self._clock(length)} s, "
                f"the clip from {self._clock(start)} to {self._clock(start + excerpt.seconds)} s",
            )
        piece = self._piece(first + ahead, count, excerpt.channels, length)
        if short == "loop":
            piece = piece.repeat(1, -(-excerpt.samples // piece.shape[1]))[:, : excerpt.samples]
        missing = excerpt.samples - ahead - piece.shape[1]
        return torch.nn.functional.pad(piece, (ahead, missing)) if ahead or missing else piece  # padding copies

    def _piece(self, first: int, count: int, channels: int, length: float) -> Tensor:
        """(channels, samples) at the target rate, from number `first` on: `count`, or a few less at the end."""
        margin = 1 / gcd(self.rate, self.target_rate) + FILTER / min(self.rate, self.target_rate)
        begin, end = first / self.target_rate - margin, (first + count) / self.target_rate + margin
        piece = self._resampled(*self._decode(begin, end, channels), first, count)
        if (got := piece.shape[1]) < max(1, count - MISSING * self.target_rate):
            end = (first + got) / self.target_rate
            raise UnreadableSample(self.name, f"cut off or damaged: its sound ends after {end:.2f} of {length:.2f} s")
        return piece

    def _clock(self, seconds: float) -> str:
        """The same on the file's clock."""
        return f"{seconds + self.origin * self.tick:.2f}"

    def _said(self) -> int | None:
        return self.stream.duration or self.container.duration

    def _missing(self) -> bool:
        """Whether the packets hold less than the stream should."""
        return sum(packet.duration or 0 for packet in self.packets or ()) < (self.stream.duration or 0)

    def _length_is_known(self) -> bool:
        """Rather than that of the whole file, which may be its picture's."""
        return self.packets is not None or self.samples is not None or bool(self.stream.duration)

    def _length(self) -> float:
        """Seconds of the sound."""
        if self.packets is not None and (self.guesses or not self.stream.duration):
            ends = [packet.pts + (packet.duration or 0) for packet in self.packets if packet.pts is not None]
            length = (max(ends, default=0) - self.origin) * self.tick
        elif self.samples is not None:
            length = (round(self.samples / self.rate / self.tick) - self.origin) * self.tick
        elif self.stream.duration:
            length = self.stream.duration * self.tick
        else:
            length = (self.container.duration or 0) / av.time_base
        if length * self.target_rate < 1:
            raise UnreadableSample(self.name, "no samples in it")
        return length

    def _decode(self, begin: float, end: float, channels: int) -> tuple[Tensor, int]:
        """(channels, samples) from `begin` seconds or earlier to `end` or later, and the number of the first."""
        alone = self.stream.codec_context.name.startswith(NO_PREROLL)
        for packets in self._from(begin - (0 if alone else PREROLL)):
            wave: Waveform | None = None
            start, at = 0, -1  # numbers of the first sample that is kept, and of the next one
            for frame in self._frames(packets):
                count = frame.samples
                if at < 0:
                    self.rate = frame.sample_rate
                    first, last = max(0, begin * self.rate), end * self.rate
                    at = round(((frame.pts or 0) - self.origin) * self.tick * self.rate)
                    if at > first:
                        break  # too late
                at += count
                if at > first:
                    if wave is None:
                        start, wave = at - count, Waveform(self.name, frame, channels, int(last - first) + 2 * count)
                    wave.add(frame)
                if at >= last:
                    break
            if wave is not None:
                return wave.joined(), start
        raise UnreadableSample(self.name, f"cut off or damaged: no sound at {max(0, begin):.2f} s")

    def _from(self, begin: float) -> Iterator[Iterator[Packet]]:
        """Packets from `begin` seconds on, or from further back if that turns out to be too late."""
        time = self.origin + begin / self.tick
        if self.packets is not None:
            known = [packet.pts is None or packet.pts + (packet.duration or 0) > time for packet in self.packets]
            self.stream.codec_context.flush_buffers()
            yield iter(self.packets[known.index(True) if begin > 0 else 0 :])
            return
        for back in LOOK_BACK:
            if begin > back and self._seek(time - back / self.tick):
                yield self.container.demux(self.stream)
        if begin <= 0 or self._seek(self.origin):
            yield self.container.demux(self.stream)

    def _seek(self, time: float) -> bool:
        try:
            self.container.seek(int(time), stream=self.stream)
        except av.FFmpegError:
            return False
        return True

    def _frames(self, packets: Iterator[Packet]) -> Iterator[AudioFrame]:
        for packet in packets:
            frames = self.stream.decode(packet)
            # libav joins frames of FLAC where the end of one is damaged, and then passes on those before it
            joined = self.flac and packet.size and (packet.pts is None or len(frames) != 1)
            if packet.is_corrupt or joined:
                raise UnreadableSample(self.name, "damaged")
            for frame in frames:
                if frame.is_corrupt:
                    raise UnreadableSample(self.name, "damaged")
                yield frame

    def _resampled(self, x: Tensor, start: int, first: int, count: int) -> Tensor:
        """`count` samples from number `first` on at the target rate, of source samples from number `start` on."""
        common = gcd(self.rate, self.target_rate)
        source, target = self.rate // common, self.target_rate // common  # so many samples become so many
        if source != target:
            if source * target > LARGEST_FILTER:
                raise UnreadableSample(self.name, f"no practical filter from {self.rate} to {self.target_rate} Hz")
            block = -(-start // source)
            x = resampler(source, target)(x[:, block * source - start :])
            start = block * target
        return x[:, first - start : first - start + count]
