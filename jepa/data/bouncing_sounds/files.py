"""Labelled clips with sound as MP4 files and a list of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import av
from torch import Tensor

from jepa.data.base import DataError, SampleDataset
from jepa.data.moving_shapes.files import MP4, add_clip, check_clip
from jepa.data.rendered import write_labelled
from jepa.data.tones.files import add_sound

__all__ = ["MP4", "write_files"]

AAC_RATES = (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)


def write_files(dataset: SampleDataset, folder: Path, fps: int, rate: int) -> Path:
    """Clips with sound as files 000000.mp4, ... (H.264 and AAC) and, when all are there, a list of their labels.

    Args:
        dataset: of clips (3, T, H, W) with sounds (1, samples). Height and width must be even.
        folder: made if it is missing.
        fps: frames per second.
        rate: samples per second.

    Returns:
        The list, for `Films(folder, list_file="labels.csv", ...)`.

    Raises:
        DataError: a size or rate that the files cannot have.
    """
    if rate not in AAC_RATES:
        raise DataError(f"AAC needs a rate of {', '.join(map(str, AAC_RATES))}; got {rate}")
    check_clip(dataset[0].x["clip"].shape[2:], fps)
    return write_labelled(dataset, folder, MP4, partial(_encode, fps=fps, rate=rate))


def _encode(path: Path, x: Mapping[str, Tensor], fps: int, rate: int) -> None:
    with av.open(path, "w", format="mp4", options={"movflags": "faststart"}) as container:
        clip = add_clip(container, x["clip"], fps)
        sound = add_sound(container, x["sound"], rate, "aac")
        for packets in (clip, sound):
            for packet in packets:
                container.mux(packet)
