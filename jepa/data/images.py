"""Pictures in a folder tree, or named by a list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jepa.data.base import SampleDataset
from jepa.data.decode import MAX_PIXELS, decode
from jepa.data.files import Files
from jepa.types import Sample

EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif"
)  # fmt: skip


class Images(SampleDataset):
    """All pictures below a folder, in the order of their names. No labels are needed.

    If every picture lies in one of at least two folders directly below the root, `label` is that folder. With a list,
    the labels are its columns: text and whole numbers are classes (numbers count from 0), other numbers quantities.
    Hidden files and folders are left out; links are followed.

    Args:
        root: the folder.
        extensions: which files are pictures, whatever their case.
        list_file: text with a header `path,NAME,NAME,...` and a line for each picture, its path relative to `root`; or
            without a header, lines `path,label`, `path label` or `path`. Looked for as it is and below the root. It
            sets the order, too.
        min_side: for pictures much larger than needed: decode JPEG files at 1/2, 1/4 or 1/8 of their size, as long as
            the shorter side keeps this many pixels. Twice the size of the crops is a good choice.
        max_pixels: larger pictures count as unreadable.

    Raises:
        DataError: no folder, no pictures, or a list that does not fit them.
    """

    def __init__(
        self,
        root: str | Path,
        extensions: Sequence[str] = EXTENSIONS,
        list_file: str | Path | None = None,
        min_side: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.files = Files(root, extensions, what="pictures", list_file=list_file)
        self.min_side, self.max_pixels = min_side, max_pixels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Sample:
        """x: (3, H, W) uint8, of any size."""
        name = self.files.name(i)
        x = decode(self.files.root / name, name, min_side=self.min_side, max_pixels=self.max_pixels)
        return Sample(x, self.files.labels(i), name)

    @property
    def fingerprint(self) -> str:
        return self.files.fingerprint

    @property
    def label_names(self) -> dict[str, list[str] | None]:
        return self.files.label_names
