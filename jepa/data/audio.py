"""Recordings in a folder tree, or named by a list, as waveforms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from jepa.data.base import DataError, SampleDataset, fingerprint_of
from jepa.data.files import Files
from jepa.data.sampling import Short
from jepa.data.sound import Excerpt, read_sound
from jepa.data.videos import EXTENSIONS as VIDEOS
from jepa.types import Sample

EXTENSIONS = (
    ".wav", ".flac", ".mp3", ".opus", ".ogg", ".oga", ".m4a", ".aac", ".wma", ".aiff", ".aif", ".au", ".caf", ".w64",
    ".ac3", ".amr", ".mka", ".wv", *VIDEOS,
)  # fmt: skip


class Audio(SampleDataset):
    """Crops of all recordings below a folder, in the order of their names; of videos, the sound. No labels are needed.

    Names, lists and labels are as in `Images`. A column of a list whose cells hold `;` names any number of classes for
    each recording ("dog;rain"; a single `;` for none); its label is a vector of zeros and ones, one for each class.
    Files are opened when they are asked for and nothing stays open.

    A recording can be several samples: sample i is crop `i % crops` of recording `i // crops`, each from its own part
    of the recording, in order; its name is then "path#crop".

    Args:
        root: the folder.
        rate: samples per second; recordings of another rate are resampled.
        seconds: of a crop.
        channels: 1 mixes all channels; else recordings must have as many, or one, which is repeated.
        crops: samples of each recording; probes take them together.
        random: whether a crop begins at random in its part of the recording, or in the middle of what is possible.
        short: recordings shorter than a crop are followed by silence ("pad"), start again ("loop") or count as
            unreadable ("skip").
        silence: crops in which no sample is above so many decibels of full scale count as unreadable; None: none do.
        extensions: which files are recordings, whatever their case.
        list_file: text with a header `path,NAME,NAME,...` and a line for each recording, its path relative to `root`;
            or without a header, lines `path,label`, `path label` or `path`.

    Raises:
        DataError: no folder, no recordings, a list that does not fit them, or an argument out of its range.
    """

    def __init__(
        self,
        root: str | Path,
        rate: int,
        seconds: float,
        channels: int = 1,
        crops: int = 1,
        random: bool = True,
        short: Short = "pad",
        silence: float | None = -60.0,
        extensions: Sequence[str] = EXTENSIONS,
        list_file: str | Path | None = None,
    ) -> None:
        self.excerpt = Excerpt(rate, round(rate * seconds), channels, short, silence)
        if crops < 1:
            raise DataError(f"need crops >= 1, got {crops}")
        self.files = Files(root, extensions, what="recordings", list_file=list_file)
        self.clips, self.random = crops, random

    def __len__(self) -> int:
        return len(self.files) * self.clips

    def __getitem__(self, i: int) -> Sample:
        """x: (channels, samples) float32."""
        if not 0 <= i < len(self):
            raise IndexError(f"crop {i} of {len(self)}")
        recording, crop = divmod(i, self.clips)
        name = self.files.name(recording)
        within = torch.rand(()).item() if self.random else 0.5
        x = read_sound(self.files.root / name, name, self.excerpt, (crop + within) / self.clips)
        return Sample(x, self.files.labels(recording), f"{name}#{crop}" if self.clips > 1 else name)

    @property
    def fingerprint(self) -> str:
        return fingerprint_of([self.files.fingerprint, repr((self.excerpt, self.clips, self.random))])

    @property
    def label_names(self) -> dict[str, list[str] | None]:
        return self.files.label_names
