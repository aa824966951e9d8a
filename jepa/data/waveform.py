"""Decoded frames of sound, queued by libav and mixed some at a time: to keep all costs it a new buffer for each."""

from __future__ import annotations

import numpy as np
import torch
from av.audio.fifo import AudioFifo
from av.audio.frame import AudioFrame
from torch import Tensor

from jepa.types import UnreadableSample

RANGE = {"u1": (128, 128), "i2": (0, 2**15), "i4": (0, 2**31), "i8": (0, 2**63)}  # silence and full scale
AT_ONCE = 2**15  # samples, which the processor's cache holds


class Waveform:
    """Samples as float32, full scale 1.

    Args:
        name: of the recording, for errors.
        first: a frame; all have its kind of samples, channels and rate.
        channels: 1 mixes all channels (their mean); else frames have as many, or one, which is repeated.
        samples: that are expected.

    Raises:
        UnreadableSample: frames have other channels.
    """

    def __init__(self, name: str, first: AudioFrame, channels: int, samples: int) -> None:
        self.name = name
        self.form, self.dtype, self.given = _form(first), first.to_ndarray().dtype, first.layout.nb_channels
        if channels > 1 and self.given not in (1, channels):
            raise UnreadableSample(name, f"{self.given} channels, neither 1 nor {channels}")
        self.channels, self.planar, self.count = channels, first.format.is_planar, 0
        middle, scale = RANGE.get(self.dtype.str[1:], (0, 1))
        mixed = self.given if channels < self.given else 1
        self.middle, self.scale = middle * mixed, scale * mixed
        self.x = np.empty((min(channels, self.given), samples), np.float32)
        self.queue, self.queued = AudioFifo(), 0

    def add(self, frame: AudioFrame) -> None:
        """Raises UnreadableSample if the frame is of another form."""
        if _form(frame) != self.form:
            raise UnreadableSample(self.name, "damaged: its rate, channels or kind of samples change on the way")
        frame.pts = None  # files may round their times; what has no times is queued without gaps
        self.queue.write(frame)
        self.queued += frame.samples
        if self.queued >= AT_ONCE:
            self._join()

    def joined(self) -> Tensor:
        """(channels, samples)."""
        if self.queued:
            self._join()
        return torch.from_numpy(self.x[:, : self.count]).expand(self.channels, -1)

    def _join(self) -> None:
        """Append what is queued."""
        begin, self.count = self.count, self.count + self.queued
        if self.count > self.x.shape[1]:
            self.x = np.concatenate((self.x, np.empty((len(self.x), self.count), np.float32)), axis=1)
        width = 1 if self.planar else self.given
        frame = self.queue.read()
        assert frame is not None  # something is queued
        parts = [
            np.frombuffer(memoryview(plane), self.dtype, width * self.queued).astype(np.float32, copy=False)
            for plane in frame.planes
        ]
        found = parts if self.planar else list(parts[0].reshape(-1, self.given).T)
        self.queued = 0
        x = self.x[:, begin : self.count]
        if len(x) == self.given:
            for channel, row in zip(x, found, strict=True):
                channel[:] = row
        else:
            np.add(found[0], found[1], out=x[0])  # np.sum takes several times as long
            for row in found[2:]:
                x[0] += row
        if self.middle:
            x -= self.middle
        if self.scale > 1:
            x /= self.scale


def _form(frame: AudioFrame) -> tuple[str, int, int]:
    return frame.format.name, frame.layout.nb_channels, frame.sample_rate  # naming a layout takes longer than all this
