"""Pictures in a folder tree, or named by a list."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from jepa.data.base import DataError, SampleDataset, fingerprint_of
from jepa.data.decode import MAX_PIXELS, decode
from jepa.types import Sample

EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif"
)  # fmt: skip
MAX_CLASSES = 100_000


class Images(SampleDataset):
    """All pictures below a folder, in the order of their names. No labels are needed.

    If every picture lies in one of at least two folders directly below the root, `label` is that folder. With a list,
    `label` is its second column: text and whole numbers are classes (numbers count from 0), other numbers quantities.
    Hidden files and folders are left out; links are followed.

    Args:
        root: the folder.
        extensions: which files are pictures, whatever their case.
        list_file: text with lines `path,label`, `path label` or `path`, relative to `root`; a first line that starts
            with `path` is a header. Looked for as it is and below the root. It sets the order, too.
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
        self.root, self.min_side, self.max_pixels = Path(root).expanduser(), min_side, max_pixels
        if not self.root.is_dir():
            raise DataError(f"{self.root} is {'not a folder' if self.root.exists() else 'missing'}: set data.root")
        suffixes = tuple(extension.lower() for extension in extensions)
        if list_file is None:
            names = _find(self.root, suffixes)
            labels = _folders(names)
        else:
            names, labels = _read_list(self._locate(list_file), suffixes)
            _check_presence(self.root, names)
        # one block of bytes: millions of strings would be copied into every worker as their reference counts change
        self._names = np.array([os.fsencode(name) for name in names])
        self._labels: np.ndarray | None = None
        self._classes: list[str] | None = None
        if labels:
            self._labels, self._classes = _numbers(labels)

    def _locate(self, list_file: str | Path) -> Path:
        places = [Path(list_file).expanduser(), self.root / list_file]
        for place in places:
            if place.is_file():
                return place
        raise DataError(f"no list_file at {' or '.join(map(str, places))}")

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, i: int) -> Sample:
        """x: (3, H, W) uint8, of any size."""
        name = os.fsdecode(bytes(self._names[i]))
        x = decode(self.root / name, name, min_side=self.min_side, max_pixels=self.max_pixels)
        return Sample(x, {} if self._labels is None else {"label": self._labels[i].item()}, name)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_of([str(len(self)), *(os.fsdecode(bytes(name)) for name in self._names)])

    @property
    def label_names(self) -> dict[str, list[str] | None]:
        return {} if self._labels is None else {"label": self._classes}


def _find(root: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Names of all pictures below `root`, relative to it, sorted."""
    found: list[str] = []
    others: Counter[str] = Counter()
    entered: set[tuple[int, int]] = set()
    for folder, below, files in os.walk(root, followlinks=True, onerror=_fail):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:  # a link back up would go round for ever
            below.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        below[:] = sorted(name for name in below if not name.startswith("."))
        inside = Path(folder).relative_to(root)
        for file in files:
            if file.startswith("."):
                continue
            if file.lower().endswith(suffixes):
                found.append((inside / file).as_posix())
            else:
                others[Path(file).suffix.lower() or "no extension"] += 1
    if not found:
        types = ", ".join(f"{count} x {kind}" for kind, count in others.most_common(5))
        raise DataError(
            f"no pictures below {root}: looked for {', '.join(suffixes)}; "
            f"found {others.total()} other files{f' ({types})' if types else ''}"
        )
    return sorted(found)


def _fail(error: OSError) -> None:
    raise DataError(f"cannot list {error.filename}: {error.strerror}") from error


def _folders(names: list[str]) -> list[str]:
    """The first folder of each name, if that can be a label."""
    parts = [name.partition("/") for name in names]
    folders = [folder for folder, separator, _ in parts if separator]
    return folders if len(folders) == len(names) and len(set(folders)) > 1 else []


def _read_list(path: Path, suffixes: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Names and, if there are any, labels in a list."""
    lines = [line for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    if lines and ("," in lines[0] or path.suffix.lower() == ".csv"):
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines)]
    elif all(line.strip().lower().endswith(suffixes) for line in lines):
        rows = [[line.strip()] for line in lines]
    else:
        rows = [line.strip().rsplit(None, 1) for line in lines]
    if rows and rows[0][0].lower() == "path":
        del rows[0]
    if not rows:
        raise DataError(f"the list {path} names no pictures")
    columns = len(rows[0])
    for row in rows:
        if len(row) != columns or columns > 2 or not all(row):
            raise DataError(f"the list {path} should hold `path` or `path,label` throughout, but has: {','.join(row)}")
    return [row[0] for row in rows], [row[1] for row in rows] if columns == 2 else []


def _check_presence(root: Path, names: list[str]) -> None:
    """Reads each folder once: asking for every file would take hours on network storage."""
    present: dict[str, set[str]] = {}
    missing = []
    for name in names:
        folder, _, file = name.rpartition("/")
        if folder not in present:
            place = root / folder if folder or not name.startswith("/") else Path("/")
            present[folder] = set(os.listdir(place)) if place.is_dir() else set()
        if file not in present[folder]:
            missing.append(name)
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} files of the list are missing below {root}: {', '.join(missing[:5])}"
            f"{', ...' if len(missing) > 5 else ''}"
        )


def _numbers(labels: Iterable[str]) -> tuple[np.ndarray, list[str] | None]:
    """Labels as numbers, and the names of the classes unless they are quantities."""
    values = np.array(list(labels))
    try:
        numbers = values.astype(np.float64)
    except ValueError:
        classes, codes = np.unique(values, return_inverse=True)
        return codes.astype(np.int64), classes.tolist()
    if not np.isfinite(numbers).all():
        raise DataError("labels must be finite numbers or names")
    if not np.char.isdecimal(values).all():
        return numbers, None
    if numbers.max() >= MAX_CLASSES:
        raise DataError(
            f"whole numbers as labels are classes 0 to {MAX_CLASSES - 1:,}, got {numbers.max():.0f}: "
            f"write quantities with a decimal point"
        )
    return numbers.astype(np.int64), [str(code) for code in range(int(numbers.max()) + 1)]
