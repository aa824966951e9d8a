"""Embedded data as real files with a list of their labels, and the commands that write them."""

from __future__ import annotations

import csv
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from torch import Tensor
from tqdm import tqdm

from jepa.data.base import DataError, SampleDataset

LIST = "labels.csv"
SettingsT = TypeVar("SettingsT", bound=BaseModel)


def write_labelled(dataset: SampleDataset, folder: Path, form: str, encode: Callable[[Path, Tensor], None]) -> Path:
    """A file for each sample and, when all are there, a list of them with their labels.

    Each file is written under another name and renamed when it is complete.

    Args:
        dataset: with numbers, or vectors of zeros and ones, as labels.
        folder: made if it is missing.
        form: of the files' names, for `str.format` with their number: "{:06}.mp4".
        encode: writes a sample's x to a path.

    Returns:
        The list, for a dataset of files with `list_file="labels.csv"`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = dataset.label_names
    rows = []
    for i in tqdm(range(len(dataset)), desc=f"writing {folder}", unit="file", leave=False, disable=None):
        sample, file = dataset[i], form.format(i)
        draft = folder / f".{file}"
        encode(draft, sample.x)
        draft.replace(folder / file)
        rows.append([file, *(cell(names[name], value) for name, value in sample.labels.items())])
    draft = folder / f".{LIST}"
    with draft.open("w", newline="") as listed:
        csv.writer(listed).writerows([["path", *names], *rows])
    return draft.replace(folder / LIST)


def cell(classes: list[str] | None, value: int | float | Tensor) -> str | float:
    """A label as a list holds it."""
    if classes is None:
        return float(value)
    if isinstance(value, Tensor):
        return "".join(f"{name};" for name, on in zip(classes, value.tolist(), strict=True) if on) or ";"
    return classes[int(value)]


def once(folder: Path, write: Callable[[Path], object]) -> Path:
    """The folder, filled by `write` unless it is there already.

    Several processes may ask for it at once: it appears when it is complete.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        write(draft)
        try:
            draft.rename(folder)
        except OSError:
            if not folder.is_dir():  # another process was faster
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    os.chmod(folder, 0o755)
    return folder


def command(
    document: str | None,
    kind: type[SettingsT],
    write: Callable[[SettingsT, Path], str],
    arguments: Sequence[str] | None,
) -> int:
    """The command `OUT_DIR [key=value ...]`: its exit status.

    Args:
        document: what it prints when it is asked for help.
        kind: its keys.
        write: from settings and a folder to a line of what was done.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or any(argument in ("-h", "--help") for argument in arguments):
        print(document)
        return 0
    folder, *pairs = arguments
    try:
        if "=" in folder or not all("=" in pair for pair in pairs):
            raise DataError("give a folder first, then key=value")
        settings = kind.model_validate(dict(pair.split("=", 1) for pair in pairs))
        done = write(settings, Path(folder).expanduser())
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        keys = ", ".join(kind.model_fields)
        print(f"error: {key}={first['input']}: {first['msg']}; the keys are {keys}", file=sys.stderr)
        return 1
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(done)
    return 0
