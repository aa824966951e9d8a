"""Labelled clips as MP4 files and a list of them."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path
from tempfile import mkdtemp

import av
import numpy as np
from tqdm import tqdm

from jepa.data.base import DataError, SampleDataset

MP4 = "{:06}.mp4"
LIST = "labels.csv"


def write_files(dataset: SampleDataset, folder: Path, fps: int = 8) -> Path:
    """Clips as H.264 files 000000.mp4, ... and, when all are there, a list of them with their labels.

    Each file is written under another name and renamed when it is complete.

    Args:
        dataset: of clips (3, T, H, W) with numbers as labels. Height and width must be even.
        folder: made if it is missing.
        fps: frames per second.

    Returns:
        The list, for `Videos(folder, list_file="labels.csv")`.

    Raises:
        DataError: a size or rate that the files cannot have.
    """
    height, width = dataset[0].x.shape[2:]
    if height % 2 or width % 2 or fps < 1:
        raise DataError(f"H.264 files need an even height and width, and fps >= 1; got {height} x {width} at {fps}")
    folder.mkdir(parents=True, exist_ok=True)
    names = dataset.label_names
    rows = []
    for i in tqdm(range(len(dataset)), desc=f"writing {folder}", unit="clip", leave=False, disable=None):
        sample = dataset[i]
        draft = folder / f".{MP4.format(i)}"
        _encode(draft, sample.x.permute(1, 2, 3, 0).numpy(), fps)
        draft.replace(folder / MP4.format(i))
        values = ((names[name], value) for name, value in sample.labels.items())
        rows.append([MP4.format(i), *(known[int(v)] if known else float(v) for known, v in values)])
    draft = folder / f".{LIST}"
    with draft.open("w", newline="") as file:
        csv.writer(file).writerows([["path", *names], *rows])
    return draft.replace(folder / LIST)


def render_once(dataset: SampleDataset, folder: Path) -> Path:
    """The folder, filled with the dataset's files unless it is there already.

    Several processes may ask for it at once: it appears when it is complete.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        write_files(dataset, draft)
        try:
            draft.rename(folder)
        except OSError:
            if not folder.is_dir():  # another process was faster
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    os.chmod(folder, 0o755)
    return folder


def _encode(path: Path, frames: np.ndarray, fps: int) -> None:
    """(T, H, W, 3) uint8."""
    with av.open(path, "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18", "preset": "veryfast", "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
