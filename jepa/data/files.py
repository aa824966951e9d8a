"""Files below a folder, or named by a list, and their labels: what datasets of pictures, clips and recordings share."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jepa.data.base import DataError, fingerprint_of

MAX_CLASSES = 100_000


class Files:
    """The files of a dataset in their order, and a table of their labels.

    If every file lies in one of at least two folders directly below the root, `label` is that folder. With a list, the
    labels are its columns: text and whole numbers are classes (numbers count from 0), other numbers quantities, and
    text with `;` names any number of classes ("dog;rain").

    Args:
        root: the folder.
        suffixes: how the names of usable files end, in any case.
        what: what the files are, for messages: "pictures".
        list_file: see `read_list`. Looked for as it is and below the root. It sets the order, too.

    Attributes:
        root: the folder.
        label_names: the labels that every file has: names of the classes, or None for a quantity.

    Raises:
        DataError: no folder, no files, or a list that does not fit them.
    """

    def __init__(
        self, root: str | Path, suffixes: Sequence[str], *, what: str, list_file: str | Path | None = None
    ) -> None:
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise DataError(f"{self.root} is {'not a folder' if self.root.exists() else 'missing'}: set data.root")
        if list_file is None:
            source = f"the folders below {self.root}"
            names = find_files(self.root, suffixes, what)
            columns = _folders(names)
        else:
            path = _locate(list_file, self.root)
            source = f"the list {path}"
            names, columns = read_list(path, suffixes, what)
            check_presence(self.root, names)
        # one block of bytes: millions of strings would be copied into every worker as their reference counts change
        self._names = np.array([os.fsencode(name) for name in names])
        self._labels: dict[str, np.ndarray] = {}
        self.label_names: dict[str, list[str] | None] = {}
        for name, column in columns.items():
            try:
                read = sets_of if any(";" in text for text in column) else numbers_of
                self._labels[name], self.label_names[name] = read(column)
            except DataError as error:
                raise DataError(f"label {name!r} of {source}: {error}") from error
        self._listed = list_file is not None

    def __len__(self) -> int:
        return len(self._names)

    def name(self, i: int) -> str:
        """Path of file `i`, relative to the root."""
        return os.fsdecode(bytes(self._names[i]))

    def labels(self, i: int) -> dict[str, int | float | Tensor]:
        """Labels of file `i`: numbers of classes, quantities, and zeros and ones (K,) for any of K classes."""
        return {
            name: column[i].item() if column.ndim == 1 else torch.from_numpy(column[i].astype(np.int64))
            for name, column in self._labels.items()
        }

    @cached_property
    def fingerprint(self) -> str:
        """Over names and listed labels, not over the place: see `SampleDataset`."""
        labels = self._labels.items() if self._listed else ()  # folders are part of the names
        table = (f"{name} {self.label_names[name]} {column.tolist()}" for name, column in labels)
        return fingerprint_of([str(len(self)), *map(self.name, range(len(self))), *table])


def find_files(root: Path, suffixes: Sequence[str], what: str) -> list[str]:
    """Names of all files below `root` that end in one of `suffixes`, relative to it, sorted.

    Hidden files and folders are left out; links are followed.

    Raises:
        DataError: there are none, or a folder cannot be read.
    """
    endings = tuple(suffix.lower() for suffix in suffixes)
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
            if file.lower().endswith(endings):
                found.append((inside / file).as_posix())
            else:
                others[Path(file).suffix.lower() or "no extension"] += 1
    if not found:
        types = ", ".join(f"{count} x {kind}" for kind, count in others.most_common(5))
        raise DataError(
            f"no {what} below {root}: looked for {', '.join(endings)}; "
            f"found {others.total()} other files{f' ({types})' if types else ''}"
        )
    return sorted(found)


def _fail(error: OSError) -> None:
    raise DataError(f"cannot list {error.filename}: {error.strerror}") from error


def _folders(names: list[str]) -> dict[str, list[str]]:
    """The first folder of each name, if that can be a label."""
    parts = [name.partition("/") for name in names]
    folders = [folder for folder, separator, _ in parts if separator]
    return {"label": folders} if len(folders) == len(names) and len(set(folders)) > 1 else {}


def _locate(list_file: str | Path, root: Path) -> Path:
    places = [Path(list_file).expanduser(), root / list_file]
    for place in places:
        if place.is_file():
            return place
    raise DataError(f"no list_file at {' or '.join(map(str, places))}")


def read_list(path: Path, suffixes: Sequence[str], what: str) -> tuple[list[str], dict[str, list[str]]]:
    """Names of files, and the columns of their labels by name.

    A list is text. Its first line may be a header, `path,NAME,...`, that names any number of labels; without one, lines
    hold `path` or `path,label`. Instead of commas there may be white space, where only paths may hold some themselves;
    so it is in V-JEPA's lists, although their names end in .csv. Paths may be absolute. Empty lines are left out.

    Args:
        path: the list.
        suffixes: how the names of files end; only used to tell a path with spaces from a path and a label.
        what: what the files are, for messages.

    Raises:
        DataError: it is not such a list. The message names its line.
    """
    try:
        lines = [(number, cells) for number, cells in _cells(path, tuple(s.lower() for s in suffixes)) if any(cells)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"the list {path} cannot be read: {error}") from error
    header: list[str] | None = None
    if lines and lines[0][1][0].lower() == "path":
        header = lines.pop(0)[1][1:]
        if not all(header) or len(set(header)) < len(header):
            raise DataError(f"the list {path} needs another name for each label in its header, not: {','.join(header)}")
    if not lines:
        raise DataError(f"the list {path} names no {what}")
    if header is None:
        if len(lines[0][1]) > 2:
            raise DataError(f"the list {path} holds several labels: name them in a first line `path,NAME,NAME,...`")
        header = ["label"][: len(lines[0][1]) - 1]
    shape = ",".join(["path", *header])
    for number, cells in lines:
        if len(cells) != len(header) + 1 or not all(cells):
            raise DataError(f"the list {path} should hold `{shape}` throughout; line {number} holds: {','.join(cells)}")
    names = [cells[0] for _, cells in lines]
    return names, {name: [cells[column] for _, cells in lines] for column, name in enumerate(header, 1)}


def _cells(path: Path, endings: tuple[str, ...]) -> Iterator[tuple[int, list[str]]]:
    """(number of the line, its cells) of a list."""
    text = path.read_text("utf-8-sig")
    first = next((line.strip() for line in text.split("\n") if line.strip()), "")
    spaced = len(first.split()) > 1 and not first.startswith('"')
    if "," in first or (path.suffix.lower() == ".csv" and not spaced):
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        yield from ((reader.line_num, [cell.strip() for cell in row]) for row in reader)
        return
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    labels = 1  # the last words of a line, since paths may hold spaces
    if (header := first.split())[:1] and header[0].lower() == "path":
        labels = len(header) - 1
    elif all(line.lower().endswith(endings) for _, line in lines):
        labels = 0
    yield from ((number, line.rsplit(None, labels)) for number, line in lines)


def check_presence(root: Path, names: list[str]) -> None:
    """Refuse names of files that are not there. Reads each folder once: on network storage, asking for every file
    would take hours.

    Raises:
        DataError: naming some of them.
    """
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


def numbers_of(labels: Sequence[str]) -> tuple[np.ndarray, list[str] | None]:
    """Labels as numbers, and the names of the classes unless they are quantities.

    Raises:
        DataError: numbers that are not finite, or too many classes.
    """
    values = np.array(labels)
    try:
        numbers = values.astype(np.float64)
    except ValueError:
        classes, codes = np.unique(values, return_inverse=True)
        return codes.astype(np.int64), classes.tolist()
    if not np.isfinite(numbers).all():
        raise DataError(f"{values[~np.isfinite(numbers)][0]} is neither a finite number nor a name")
    if not np.char.isdecimal(values).all():
        return numbers, None
    if numbers.max() >= MAX_CLASSES:
        raise DataError(
            f"whole numbers are classes 0 to {MAX_CLASSES - 1:,}, got {numbers.max():.0f}: "
            f"write quantities with a decimal point"
        )
    return numbers.astype(np.int64), [str(code) for code in range(int(numbers.max()) + 1)]


def sets_of(labels: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Labels "a;b" as zeros and ones (N, K), and the names of the K classes, sorted.

    Raises:
        DataError: there is no class, or one class only.
    """
    sets = [{part.strip() for part in text.split(";")} - {""} for text in labels]
    classes = sorted(set().union(*sets))
    if len(classes) < 2:
        raise DataError(f"{len(classes)} classes between the `;`, need at least two")
    column = {name: k for k, name in enumerate(classes)}
    table = np.zeros((len(sets), len(classes)), np.uint8)
    for row, names in enumerate(sets):
        table[row, [column[name] for name in names]] = 1
    return table, classes
