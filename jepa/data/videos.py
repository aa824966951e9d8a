"""Videos in a folder tree, or named by a list, as clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from jepa.data.base import DataError, SampleDataset, fingerprint_of
from jepa.data.clips import read_clip
from jepa.data.decode import decode
from jepa.data.files import Files
from jepa.data.images import EXTENSIONS as PICTURES
from jepa.data.sampling import Sampling, Short
from jepa.types import Sample

EXTENSIONS = (
    ".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".wmv", ".flv", ".ogv", ".3gp"
)  # fmt: skip
STILL = tuple(extension for extension in PICTURES if extension != ".gif")


class Videos(SampleDataset):
    """Clips of all videos below a folder, in the order of their names. No labels are needed.

    Names, lists and labels are as in `Images`. Files are opened when they are asked for and nothing stays open.
    Pictures that a list names are clips of repeated frames.

    How densely frames are taken is given by exactly one of `stride`, `fps` and `duration`. A frame is chosen if it is
    shown at the time asked for, so variable frame rates are right.

    A video can be several samples: sample i is clip `i % clips` of video `i // clips`, each from its own part of the
    video, in order; so the segments of a video follow each other, and its name is "path#clip".

    Args:
        root: the folder.
        frames: of a clip, T.
        stride: every stride-th frame, whatever the times; or
        fps: frames per second of the clip, whatever those of the video; or
        duration: seconds of the clip.
        clips: samples of each video.
        random: whether a clip begins at random in its part of the video, or in the middle of what is possible there.
        short: a video shorter than a clip repeats its last frame ("pad"), starts again ("loop") or counts as unreadable
            ("skip").
        extensions: which files are videos, whatever their case.
        list_file: text with a header `path,NAME,NAME,...` and a line for each video, its path relative to `root`; or
            without a header, lines `path,label`, `path label` or `path`.
        min_side: for videos much larger than needed: frames are reduced to 1/2, 1/4, ... of their size, as long as the
            shorter side keeps this many pixels.

    Raises:
        DataError: no folder, no videos, a list that does not fit them, or an argument out of its range.
    """

    def __init__(
        self,
        root: str | Path,
        frames: int,
        stride: int | None = None,
        fps: float | None = None,
        duration: float | None = None,
        clips: int = 1,
        random: bool = True,
        short: Short = "pad",
        extensions: Sequence[str] = EXTENSIONS,
        list_file: str | Path | None = None,
        min_side: int | None = None,
    ) -> None:
        self.sampling = Sampling(frames, stride, fps, duration, short)
        if clips < 1 or (min_side is not None and min_side < 1):
            raise DataError(f"need clips >= 1 and min_side >= 1; got clips {clips} and min_side {min_side}")
        self.files = Files(
            root, extensions if list_file is None else (*extensions, *STILL), what="videos", list_file=list_file
        )
        self.clips, self.random, self.min_side = clips, random, min_side

    def __len__(self) -> int:
        return len(self.files) * self.clips

    def __getitem__(self, i: int) -> Sample:
        """x: (3, T, H, W) uint8, H and W those of the video."""
        if not 0 <= i < len(self):
            raise IndexError(f"clip {i} of {len(self)}")
        video, clip = divmod(i, self.clips)
        name = self.files.name(video)
        path = self.files.root / name
        if name.lower().endswith(STILL):
            picture = decode(path, name)
            x = picture[:, None].expand(-1, self.sampling.frames, -1, -1)
        else:
            within = torch.rand(()).item() if self.random else 0.5
            x = read_clip(path, name, self.sampling, (clip + within) / self.clips, min_side=self.min_side)
        return Sample(x, self.files.labels(video), f"{name}#{clip}" if self.clips > 1 else name)

    @property
    def fingerprint(self) -> str:
        return fingerprint_of([self.files.fingerprint, repr((self.sampling, self.clips, self.random, self.min_side))])

    @property
    def label_names(self) -> dict[str, list[str] | None]:
        return self.files.label_names
