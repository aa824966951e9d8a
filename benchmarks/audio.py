"""Hours of sound per second of one core, and memory: `python -m benchmarks.audio`.

Writes synthesised sounds as stereo files of several kinds, then makes batches of random mono crops of them, at the rate
of the files and resampled to 16 kHz, in ways that take turns in one run, so that other load on the machine hits all:

    jepa    Batches of jepa.data.Audio as in training: open, seek, decode, mix, resample, crop, stack
    arrays  bare decoding: open, seek, decode the same packets, all samples into one array, neither mixed nor resampled
    files   the same without taking the samples out of the decoder's frames
    memory  the same without files either: only decoding, by the same libav, packets that are in memory already
    libav   packets from memory decoded, mixed and resampled by libav alone: the work of jepa without files

Then reads more crops and prints the memory of the process at the start and at the end.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import av
import numpy as np
import torch
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.packet import Packet

from benchmarks.loading import Everything, seconds
from benchmarks.video import memory
from jepa.data import Audio, Batches, Tones, sound
from jepa.data.tones.files import encode

CROP = 10.24  # seconds
KINDS = {  # ending, codec, rate of the files
    "AAC": (".m4a", "aac", 44_100),
    "MP3": (".mp3", "libmp3lame", 44_100),
    "FLAC": (".flac", "flac", 44_100),
    "FLAC of 16 kHz": (".flac", "flac", 16_000),
    "Opus": (".opus", "libopus", 48_000),
}
RATE = 16_000  # to which the crops of all are resampled, after their rate was kept


class Recorder:
    """Notes which packets the crops of a batch need, and decodes these packets again."""

    def __init__(self, batches: Batches, audio: Audio) -> None:
        self.packets: list[list[Packet]] = []
        self.names: list[str] = []
        self.rate = audio.excerpt.rate
        frames = sound._Reader._frames

        def noted(reader: sound._Reader, packets: Iterator[Packet]) -> object:
            kept: list[Packet] = []
            self.packets.append(kept)
            self.names.append(reader.container.name)
            return frames(reader, (kept.append(packet) or packet for packet in packets))  # type: ignore[func-returns-value]

        sound._Reader._frames = noted  # type: ignore[assignment, method-assign]
        try:
            batches[0]
        finally:
            sound._Reader._frames = frames  # type: ignore[method-assign]
        self.file = av.open(self.names[0])
        self.decoder = prepared(self.file.streams.audio[0])

    def memory(self) -> None:
        for packets in self.packets:
            self.decoder.flush_buffers()
            for packet in packets:
                self.decoder.decode(packet)

    def files(self) -> None:
        for _ in self._read():
            pass

    def arrays(self) -> None:
        for frames in self._read(lambda frame: frame.to_ndarray()):
            np.concatenate(frames, axis=1)

    def _read(self, take: Callable[[AudioFrame], np.ndarray | None] = lambda frame: None) -> Iterator[list]:
        """What is taken of each frame, for each file."""
        for name, packets in zip(self.names, self.packets, strict=True):
            with av.open(name) as file:
                stream = file.streams.audio[0]
                prepared(stream)
                file.seek(packets[0].pts, stream=stream)
                demuxed = zip(file.demux(stream), packets, strict=False)
                yield [take(frame) for packet, _ in demuxed for frame in packet.decode()]

    def libav(self) -> None:
        for packets in self.packets:
            self.decoder.flush_buffers()
            change = av.AudioResampler("fltp", "mono", self.rate)
            found = [
                part for packet in packets for frame in self.decoder.decode(packet) for part in change.resample(frame)
            ]
            np.concatenate([part.to_ndarray() for part in [*found, *change.resample(None)]], axis=1)


def prepared(stream: AudioStream) -> AudioCodecContext:
    """The stream's decoder, with one thread and with FLAC's sums checked, as in training."""
    decoder = stream.codec_context
    decoder.thread_type = "NONE"
    if decoder.name == "flac":
        decoder.options = sound.CHECKED
    return decoder


def write(folder: Path, count: int, length: int, ending: str, codec: str, rate: int) -> None:
    """Stereo files of which the two channels are different sounds."""
    sounds = Tones(2 * count, rate, length)
    for i in range(count):
        encode(folder / f"{i:03}{ending}", torch.cat((sounds[2 * i].x, sounds[2 * i + 1].x)), rate, codec)


def batches_of(audio: Audio) -> Batches:
    """A batch has a crop of each file."""
    return Batches(dataset=audio, transform=None, masker=Everything(), grid=(1, 1), seed=0, batch_size=len(audio))


def compare(name: str, audio: Audio, rounds: int) -> None:
    """Print the rates and the distribution of their ratios."""
    batches = batches_of(audio)
    recorder = Recorder(batches, audio)
    ways: dict[str, Callable[[], object]] = {
        "jepa": lambda: batches[0], "arrays": recorder.arrays, "files": recorder.files,
        "memory": recorder.memory, "libav": recorder.libav,
    }  # fmt: skip
    for work in ways.values():
        work()
    times: dict[str, list[float]] = {way: [] for way in ways}
    for k in range(rounds):
        for way in list(ways)[k % len(ways) :] + list(ways)[: k % len(ways)]:
            times[way].append(seconds(ways[way]))
    hours = len(audio) * CROP / 3600
    print(f"{name}, to {audio.excerpt.rate / 1000:g} kHz, {len(audio)} crops of {CROP} s, {rounds} rounds, 1 thread")
    for way, taken in times.items():
        line = f"  {way:6}{hours / median(taken):6.3f} hours/s"
        if way != "jepa":
            ratios = sorted(b / a for a, b in zip(times["jepa"], taken, strict=True))
            line += f"; jepa / {way}: {ratios[0]:.2f} min, {median(ratios):.2f} median, {ratios[-1]:.2f} max"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=16)
    parser.add_argument("--seconds", type=int, default=30, help="of each file")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--crops", type=int, default=4000, help="for the measurement of memory")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name, (ending, codec, rate) in KINDS.items():
            place = Path(folder) / name
            place.mkdir()
            write(place, arguments.files, arguments.seconds, ending, codec, rate)
            for target in dict.fromkeys((rate, RATE)):
                compare(name, Audio(place, target, CROP), arguments.rounds)
        audio = Audio(folder, RATE, CROP)  # all kinds
        turns = max(arguments.crops // len(audio), 10)
        batches = batches_of(audio)
        for turn in range(turns):
            batches[turn]
            if turn in (turns // 10, turns // 2, turns - 1):
                print(f"  memory after {(turn + 1) * len(audio)} crops: {memory():.1f} MB")


if __name__ == "__main__":
    main()
