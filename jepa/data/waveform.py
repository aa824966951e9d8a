"""Decoded frames of sound, joined and mixed a few at a time: keeping all would cost libav a new buffer for each."""

from __future__ import annotations

import numpy as np
import torch
from av.audio.frame import AudioFrame
from av.audio.plane import AudioPlane
from torch import Tensor

from jepa.types import UnreadableSample

RANGE = {"u1": (128, 128), "i2": (0, 2**15), "i4": (0, 2**31), "i8": (0, 2**63)}  # silence and full scale
AT_ONCE = 16  # frames


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
        self.kept: list[tuple[tuple[AudioPlane, ...], int]] = []
        self.room = np.empty(AT_ONCE * self.given * first.samples, np.float32)

    def add(self, frame: AudioFrame) -> None:
        """Raises UnreadableSample if the frame is of another form."""
        if _form(frame) != self.form:
            raise UnreadableSample(self.name, "damaged: its rate, channels or kind of samples change on the way")
        self.kept.append((frame.planes, frame.samples))
        if len(self.kept) == AT_ONCE:
            self._join()

    def joined(self) -> Tensor:
        """(channels, samples)."""
        self._join()
        return torch.from_numpy(self.x[:, : self.count]).expand(self.channels, -1)

    def _join(self) -> None:
        """Append what is kept."""
        new = sum(samples for _, samples in self.kept)
        begin, self.count = self.count, self.count + new
        if self.count > self.x.shape[1]:
            self.x = np.concatenate((self.x, np.empty((len(self.x), self.count), np.float32)), axis=1)
        if new * self.given > len(self.room):
            self.room = np.empty(new * self.given, np.float32)
        width = 1 if self.planar else self.given
        parts = [
            np.frombuffer(planes[k], self.dtype, width * samples)  # type: ignore[call-overload]
            for k in range(self.given // width)
            for planes, samples in self.kept
        ]
        self.kept.clear()
        if not parts:
            return
        found = np.concatenate(parts, out=self.room[: new * self.given])
        found = found.reshape(self.given, new) if self.planar else found.reshape(new, self.given).T
        x = self.x[:, begin : self.count]
        if len(x) == self.given:
            x[:] = found
        elif self.given == 2:
            np.add(found[0], found[1], out=x[0])  # np.sum takes several times as long
        else:
            np.sum(found, axis=0, out=x[0])
        if self.middle:
            x -= self.middle
        if self.scale > 1:
            x /= self.scale


def _form(frame: AudioFrame) -> tuple[str, int, int]:
    return frame.format.name, frame.layout.nb_channels, frame.sample_rate  # naming a layout takes longer than all this
