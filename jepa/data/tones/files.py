"""Labelled sounds as WAV, FLAC or Opus files and a list of them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

import av
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.packet import Packet
from torch import Tensor

from jepa.data.base import DataError, SampleDataset
from jepa.data.rendered import write_labelled

CODECS = {"wav": "pcm_s16le", "flac": "flac", "opus": "libopus"}
OPUS_RATES = (8000, 12000, 16000, 24000, 48000)


def write_files(dataset: SampleDataset, folder: Path, rate: int, kind: str = "wav") -> Path:
    """Sounds of 16 bits as files 000000.wav, ... and, when all are there, a list of them with their labels.

    Args:
        dataset: of waveforms (C, samples) in -1..1, of one or two channels.
        folder: made if it is missing.
        rate: samples per second.
        kind: wav, flac or opus.

    Returns:
        The list, for `Audio(folder, rate, seconds, list_file="labels.csv")`.

    Raises:
        DataError: no such kind, or a rate that it cannot have.
    """
    if kind not in CODECS or (kind == "opus" and rate not in OPUS_RATES):
        raise DataError(
            f"need kind {', '.join(CODECS)} (opus: rate {', '.join(map(str, OPUS_RATES))}); got {kind!r} at {rate}"
        )
    form = "{:06}." + kind
    return write_labelled(dataset, folder, form, partial(encode, rate=rate, codec=CODECS[kind]))


def encode(
    file: Path | BinaryIO,
    x: Tensor,
    rate: int,
    codec: str,
    *,
    kind: str | None = None,
    coded_rate: int | None = None,
    bit_rate: int | None = None,
) -> None:
    """Write a waveform (C, samples) in -1..1 as one sound track of 16 bits, or of what a lossy codec has instead.

    Args:
        file: a path, or a file that is open for writing.
        x: of one or two channels.
        rate: samples per second.
        codec: as libav calls it.
        kind: of container, as libav calls it; None: that of the path's ending.
        coded_rate: samples per second in the file; None: `rate`.
        bit_rate: of a lossy codec, bits per second; None: its own.
    """
    with av.open(file, "w", format=kind, options={"fflags": "bitexact"}) as container:  # no date, no random names
        for packet in add_sound(container, x, rate, codec, coded_rate=coded_rate, bit_rate=bit_rate):
            container.mux(packet)


def add_sound(
    container: OutputContainer,
    x: Tensor,
    rate: int,
    codec: str,
    *,
    coded_rate: int | None = None,
    bit_rate: int | None = None,
) -> Iterator[Packet]:
    """The packets of a waveform as for `encode`, as a stream that is added to a file at once."""
    layout = "mono" if len(x) == 1 else "stereo"
    samples = (x.clamp(-1, 1) * (2**15 - 1)).round().short().T.contiguous().numpy().reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(samples, format="s16", layout=layout)
    frame.sample_rate, frame.pts = rate, 0
    stream = container.add_stream(codec, rate=coded_rate or rate, layout=layout)
    assert isinstance(stream, AudioStream)
    if bit_rate is not None:
        stream.bit_rate = bit_rate

    def packets() -> Iterator[Packet]:
        cut = av.AudioResampler(stream.format.name, layout, coded_rate or rate, frame_size=stream.frame_size or None)
        for part in [*cut.resample(frame), *cut.resample(None)]:
            yield from stream.encode(part)
        yield from stream.encode(None)

    return packets()
