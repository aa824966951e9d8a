"""Clips per second of one core, and memory: `python -m benchmarks.video`.

Writes moving shapes as MP4 files, then reads random clips of them in ways that take turns in one run, so that other
load on the machine hits all:

    videos  jepa.data.Videos: open, seek, decode, convert the chosen frames to RGB
    limit   only decoding, by the same libav, the same packets, which are in memory already: all of them, where
            videos leaves out frames that neither the clip nor another of its frames needs
    decord  the same frames by decord's VideoReader, if it is installed

Then reads clips of 2,000 distinct files (hard links to those) and prints the memory of the process, and the largest
drift after the first tenth of them. The exit status is 1 if that is more than 5 %.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import av
import torch
from av.packet import Packet

from jepa import seeding
from jepa.data import MovingShapes, Videos, clips
from jepa.data.moving_shapes.files import write_files
from jepa.seeding import Stream

try:
    import decord
except ModuleNotFoundError:
    decord = None

LEAST = 2000  # files
DRIFT = 0.05  # of the memory


class Recorder:
    """Notes which packets and frames clips need, and decodes these packets again."""

    def __init__(self, videos: Videos) -> None:
        self.videos, self.packets, self.frames = videos, [], []
        self.read(self)
        with av.open(videos.files.root / videos.files.name(0)) as container:
            parameters = container.streams.video[0].codec_context
            self.decoder = av.CodecContext.create(parameters.codec.name, "r")
            self.decoder.extradata, self.decoder.thread_type = parameters.extradata, "NONE"

    def read(self, _: object = None) -> None:
        frames = clips._Reader._frames

        def noted(reader: clips._Reader, packets: list[Packet], wanted: set[int]) -> object:
            self.packets.append(packets)
            self.frames.append([round(time / reader.interval) for time in sorted(wanted)])
            return frames(reader, packets, wanted)

        clips._Reader._frames = noted  # type: ignore[assignment]
        try:
            draw(self.videos)
        finally:
            clips._Reader._frames = frames  # type: ignore[method-assign]

    def decode(self) -> None:
        for packets in self.packets:
            self.decoder.flush_buffers()
            for packet in packets:
                self.decoder.decode(packet)
            self.decoder.decode(None)

    def decord(self) -> None:
        for i, frames in enumerate(self.frames):
            reader = decord.VideoReader(str(self.videos.files.root / self.videos.files.name(i)), num_threads=1)
            reader.get_batch(frames).asnumpy()


def draw(videos: Videos, seed: int = 0) -> None:
    """A random clip of each video."""
    for i in range(len(videos)):
        with seeding.isolated(seed, Stream.SAMPLE, i):
            videos[i]


def seconds(work: Callable[[], object]) -> float:
    """Processor time of this process: other load on the machine does not count."""
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(videos: Videos, rounds: int) -> None:
    """Print the rates and the distribution of their ratios."""
    recorder = Recorder(videos)
    ways: dict[str, Callable[[], object]] = {"videos": lambda: draw(videos), "limit": recorder.decode}
    if decord is not None:
        ways["decord"] = recorder.decord
    for work in ways.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for k in range(rounds):
        for name in list(ways)[k % len(ways) :] + list(ways)[: k % len(ways)]:
            times[name].append(seconds(ways[name]))
    needed = sum(map(len, recorder.packets)) / len(videos)
    print(f"{videos.sampling}, {len(videos)} clips of {needed:.0f} packets, {rounds} rounds, 1 thread")
    for name, taken in times.items():
        line = f"  {name:8}{len(videos) / median(taken):7.1f} clips/s"
        if name != "videos":
            ratios = sorted(b / a for a, b in zip(times["videos"], taken, strict=True))
            line += f"; videos / {name}: {ratios[0]:.2f} min, {median(ratios):.2f} median, {ratios[-1]:.2f} max"
        print(line)


def memory() -> float:
    """Resident memory of this process in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def drift(folder: Path, links: Path, count: int) -> float:
    """Largest change of memory after the first tenth of `count` clips, each of another file, as a share of it."""
    files = sorted(folder.glob("*.mp4"))
    links.mkdir()
    for i in range(count):
        os.link(files[i % len(files)], links / f"{i:06}.mp4")
    videos, warm, largest = Videos(links, 16, stride=4), 0.0, 0.0
    for i in range(count):
        with seeding.isolated(0, Stream.SAMPLE, i):
            videos[i]
        if i == count // 10:
            warm = memory()
        elif warm:
            largest = max(largest, abs(memory() - warm))
        if i in (count // 10, count // 2, count - 1):
            print(f"  memory after {i + 1} files: {memory():.1f} MB")
    print(f"  largest drift after {count // 10 + 1} files: {largest:.1f} MB, {largest / warm:.1%}")
    return largest / warm


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=24)
    parser.add_argument("--size", type=int, default=256, help="pixels")
    parser.add_argument("--seconds", type=int, default=10, help="of each file, 30 frames per second")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--clips", type=int, default=LEAST, help="for the measurement of memory, each of another file")
    arguments = parser.parse_args()
    if arguments.clips < LEAST:
        parser.error(f"--clips={arguments.clips}: fewer than {LEAST} do not show a leak")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        shapes = MovingShapes(arguments.files, arguments.size, 30 * arguments.seconds)
        write_files(shapes, Path(folder), fps=30)
        kilobytes = sum(file.stat().st_size for file in Path(folder).glob("*.mp4")) / arguments.files / 1e3
        print(f"files of {arguments.seconds} s at 30 frames/s, {arguments.size} pixels, {kilobytes:.0f} kB")
        compare(Videos(folder, 16, stride=4), arguments.rounds)
        compare(Videos(folder, 16, fps=4), arguments.rounds)
        return int(drift(Path(folder), Path(folder) / "links", arguments.clips) > DRIFT)


if __name__ == "__main__":
    sys.exit(main())
