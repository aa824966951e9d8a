"""Labelled clips as MP4 files and a list of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.packet import Packet
from torch import Tensor

from jepa.data.base import DataError, SampleDataset
from jepa.data.rendered import once, write_labelled

MP4 = "{:06}.mp4"


def write_files(dataset: SampleDataset, folder: Path, fps: int = 8) -> Path:
    """Clips as H.264 files 000000.mp4, ... and, when all are there, a list of them with their labels.

    Args:
        dataset: of clips (3, T, H, W) with numbers as labels. Height and width must be even.
        folder: made if it is missing.
        fps: frames per second.

    Returns:
        The list, for `Videos(folder, list_file="labels.csv")`.

    Raises:
        DataError: a size or rate that the files cannot have.
    """
    check_clip(dataset[0].x.shape[2:], fps)
    return write_labelled(dataset, folder, MP4, partial(_encode, fps=fps))


def render_once(dataset: SampleDataset, folder: Path) -> Path:
    """The folder, filled with the dataset's files unless it is there already."""
    return once(folder, lambda draft: write_files(dataset, draft))


def check_clip(size: Sequence[int], fps: int) -> None:
    """Refuse what H.264 files cannot have.

    Raises:
        DataError: an odd height or width, or a rate below 1.
    """
    height, width = size
    if height % 2 or width % 2 or fps < 1:
        raise DataError(f"H.264 files need an even height and width, and fps >= 1; got {height} x {width} at {fps}")


def _encode(path: Path, clip: Tensor, fps: int) -> None:
    """clip: (3, T, H, W) uint8."""
    with av.open(path, "w", format="mp4", options={"movflags": "faststart"}) as container:
        for packet in add_clip(container, clip, fps):
            container.mux(packet)


def add_clip(container: OutputContainer, clip: Tensor, fps: int) -> Iterator[Packet]:
    """The packets of a clip (3, T, H, W), uint8, as a stream that is added to an MP4 file at once."""
    frames = clip.permute(1, 2, 3, 0).numpy()
    stream = container.add_stream("libx264", rate=fps, options={"crf": "18", "preset": "veryfast", "threads": "1"})
    stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"

    def packets() -> Iterator[Packet]:
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
            frame.pts = number
            yield from stream.encode(frame)
        yield from stream.encode()

    return packets()
