"""The 1,797 scanned digits that come with scikit-learn."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import interpolate

from jepa.data.base import DataError, SampleDataset, fingerprint_of
from jepa.types import Sample

TEST_SCANS = 497
DIGIT_SIZE = (18 / 32, 26 / 32)  # of a placed digit, as a share of the canvas
CONTRAST = 0.35  # least difference of brightness between digit and canvas, on the scale 0..1


class Digits(SampleDataset):
    """Handwritten digits, 8 x 8 grey scans enlarged; labelled by `digit`. 1,300 scans to train, 497 to test.

    Args:
        split: "train" or "test". The split is fixed: no scan is in both.
        size: pixels per side of the result.
        placed: put each digit on a canvas at a random place and size in random colours, so that raw pixels say little.
        copies: different placements of each scan; the dataset is that many times as long.
        seed: seed of the placements.

    Raises:
        DataError: an argument is out of its range.
    """

    def __init__(
        self, split: str = "train", size: int = 32, placed: bool = False, copies: int = 1, seed: int = 0
    ) -> None:
        if split not in ("train", "test") or size < 8 or copies < 1 or seed < 0:
            raise DataError(
                f"need split train or test, size >= 8, copies >= 1 and seed >= 0; "
                f"got split {split!r}, size {size}, copies {copies}, seed {seed}"
            )
        if copies > 1 and not placed:
            raise DataError(f"copies = {copies} of a scan would all be equal: use placed = true")
        scans = load_digits()
        order = np.random.RandomState(0).permutation(len(scans.target))  # frozen: the split must never change
        chosen = np.sort(order[:TEST_SCANS] if split == "test" else order[TEST_SCANS:])
        self._scans = torch.from_numpy(scans.images[chosen]).float()[:, None] / 16  # (count, 1, 8, 8)
        self._digits = scans.target[chosen].tolist()
        self.split, self.size, self.placed, self.copies, self.seed = split, size, placed, copies, seed

    def __len__(self) -> int:
        return len(self._digits) * self.copies

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(map(str, ("digits", self.split, self.size, self.placed, self.copies, self.seed)))

    @property
    def label_names(self) -> dict[str, list[str] | None]:
        return {"digit": [str(digit) for digit in range(10)]}

    def __getitem__(self, i: int) -> Sample:
        """x: (3, size, size) uint8."""
        if not 0 <= i < len(self):
            raise IndexError(f"digit {i} of {len(self)}")
        scan = i % len(self._digits)
        picture = self._place(i, self._scans[scan]) if self.placed else _enlarge(self._scans[scan], self.size)
        x = (picture.expand(3, -1, -1) * 255).round().to(torch.uint8)
        return Sample(x, {"digit": self._digits[scan]}, f"digits/{self.split}/{i}")

    def _place(self, i: int, scan: Tensor) -> Tensor:
        """(3, size, size) in 0..1: the scan (1, 8, 8) as ink on a canvas."""
        rng = np.random.default_rng([self.seed, self.split == "test", i])
        low, high = (round(share * self.size) for share in DIGIT_SIZE)
        side = int(rng.integers(low, high + 1))
        top, left = rng.integers(0, self.size - side + 1, 2).tolist()
        canvas, ink = rng.random(3), rng.random(3)
        while abs(canvas.mean() - ink.mean()) < CONTRAST:
            canvas, ink = rng.random(3), rng.random(3)
        picture = torch.tensor(canvas, dtype=torch.float32)[:, None, None].repeat(1, self.size, self.size)
        region = picture[:, top : top + side, left : left + side]
        region.lerp_(torch.tensor(ink, dtype=torch.float32)[:, None, None].expand_as(region), _enlarge(scan, side))
        return picture


def _enlarge(scan: Tensor, side: int) -> Tensor:
    """(1, 8, 8) -> (1, side, side), bilinear."""
    return interpolate(scan[None], (side, side), mode="bilinear")[0]
