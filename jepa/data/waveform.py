"""Decoded frames of sound, joined and mixed as they come: keeping them would cost libav a new buffer for each."""

from __future__ import annotations

import numpy as np
import torch
from av.audio.frame import AudioFrame
from torch import Tensor

from jepa.types import UnreadableSample

RANGE = {"u1": (128, 128), "i2": (0, 2**15), "i4": (0, 2**31), "i8": (0, 2**63)}  # silence and full scale


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
        self.x = np.empty((min(channels, self.given), samples), np.float32)

    def add(self, frame: AudioFrame) -> None:
        """Raises UnreadableSample if the frame is of another form."""
        if _form(frame) != self.form:
            raise UnreadableSample(self.name, "damaged: its rate, channels or kind of samples change on the way")
        begin, self.count = self.count, self.count + frame.samples
        if self.count > self.x.shape[1]:
            self.x = np.concatenate((self.x, np.empty((len(self.x), self.count), np.float32)), axis=1)
        if self.planar:
            found = [np.frombuffer(plane, self.dtype, frame.samples) for plane in frame.planes]  # type: ignore[call-overload]
        else:
            packed = np.frombuffer(frame.planes[0], self.dtype, self.given * frame.samples)  # type: ignore[call-overload]
            found = [packed[channel :: self.given] for channel in range(self.given)]
        if len(self.x) < self.given == 2:
            np.add(found[0], found[1], out=self.x[0, begin : self.count], dtype=np.float32)
            return
        self.x[:, begin : self.count] = found if len(found) == len(self.x) else np.sum(found, axis=0, dtype=np.float32)

    def joined(self) -> Tensor:
        """(channels, samples)."""
        middle, scale = RANGE.get(self.dtype.str[1:], (0, 1))
        mixed = self.given if len(self.x) < self.given else 1
        x = torch.from_numpy(self.x[:, : self.count])
        if middle:
            x -= middle * mixed
        if scale * mixed > 1:
            x /= scale * mixed
        return x.expand(self.channels, -1)


def _form(frame: AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate
