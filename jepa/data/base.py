"""What a dataset is: raw samples by position, and what identifies it."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable

from torch.utils.data import Dataset

from jepa.types import Sample


class DataError(ValueError):
    """The data cannot be used as configured. The message says what was found and what would work."""


class SampleDataset(Dataset[Sample], ABC):
    """Raw samples by position. Subclass it for data of your own and name the class in a recipe's `data.dataset`.

    A dataset knows nothing of crops, masks, batches or order. It must give the same sample for the same position in
    every process. If it draws random numbers, take them from the global generators of torch, numpy or `random`: they
    are seeded for each sample, so the result does not depend on workers or restarts.

    Attributes:
        clips: samples of each recording. They follow each other and are named "name#0", "name#1", ...; training knows
            nothing of that, probes take them together.

    Example:
        >>> class Scans(SampleDataset):
        ...     def __init__(self, file: str) -> None:
        ...         self.scans = np.load(file, mmap_mode="r")  # (count, channels, height, width), uint8
        ...
        ...     def __len__(self) -> int:
        ...         return len(self.scans)
        ...
        ...     def __getitem__(self, i: int) -> Sample:
        ...         return Sample(torch.from_numpy(self.scans[i].copy()), name=f"scan {i}")
        ...
        ...     @property
        ...     def fingerprint(self) -> str:
        ...         return fingerprint_of([str(len(self))])
    """

    clips: int = 1

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def __getitem__(self, i: int) -> Sample:
        """Sample `i`: x (C, *size), uint8 for pictures, raw (transforms follow).

        Raises:
            UnreadableSample: it cannot be used; another one takes its place and training goes on.
        """

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Short text over whatever the order of samples depends on, but not over where the data lies.

        A run is resumed only on data with the fingerprint it was started with.
        """

    @property
    def label_names(self) -> dict[str, list[str] | None]:
        """The labels that every sample carries: names of the classes 0, 1, ..., or None for a quantity."""
        return {}


def fingerprint_of(parts: Iterable[str]) -> str:
    """16 hexadecimal digits over `parts`, in order."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()
