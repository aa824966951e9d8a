"""Rendered scenes with known contents: data that needs no download and that raw pixels cannot solve."""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot

import numpy as np
import torch

from jepa.data.base import DataError, SampleDataset, fingerprint_of
from jepa.data.drawing import COLOURS, SHAPES, TURN, Canvas, scatter, vivid
from jepa.data.transforms import pair
from jepa.types import Sample

MAIN_SIZE = (0.30, 0.60)  # diameter as a share of the picture's shorter side
OTHER_SIZE = (0.40, 0.75)  # as a share of the main object


class Shapes(SampleDataset):
    """Scenes of one to four objects on a flat, graded or textured background, a pure function of (seed, split, i).

    Objects differ in shape, colour, place, size and turn. The main one is the largest. The others do not hide it: they
    are placed beside it, or left out where there is no room. Labels: `shape` and `colour` of the main object (classes),
    `count` of objects, `position` (2,) of the main object's centre (x, y) and `scale`, its diameter, both as shares of
    the picture (of width and height, and of the shorter side). And `distance` of the nearest object, centre to centre
    of the picture, as a share of the shorter side: as in the Clevr distance task of VTAB (Zhai et al. 2019), from where
    one looks, so that a scene of one object has it too.

    Args:
        count: number of scenes.
        size: pixels, one number or (height, width).
        seed: seed of the scenes.
        split: "train" or "test"; they share no scene.
        light: how much darker a background is at its lower edge than at its upper one, at most, as a share of white;
            drawn anew for each scene. Without it nothing tells which side of a scene is the upper one.

    Raises:
        DataError: an argument is out of its range.
    """

    def __init__(
        self,
        count: int = 10_000,
        size: int | Sequence[int] = 64,
        seed: int = 0,
        split: str = "train",
        light: float = 0.0,
    ) -> None:
        self.size = pair(size)
        if count < 1 or min(self.size) < 16 or seed < 0 or split not in ("train", "test"):
            raise DataError(
                f"need count >= 1, size >= 16, seed >= 0 and split train or test; "
                f"got count {count}, size {size}, seed {seed}, split {split!r}"
            )
        if not 0 <= light <= 1:
            raise DataError(f"need light in 0..1, got {light}")
        self.count, self.seed, self.split, self.light = count, seed, split, light
        self.canvas = Canvas(self.size)

    def __len__(self) -> int:
        return self.count

    @property
    def fingerprint(self) -> str:
        parts = ["shapes", str(self.count), str(self.size), str(self.seed), self.split]
        return fingerprint_of([*parts, str(self.light)] if self.light else parts)  # runs are older than the light

    @property
    def label_names(self) -> dict[str, list[str] | None]:
        quantities = dict.fromkeys(("count", "position", "scale", "distance"))
        return {"shape": list(SHAPES), "colour": list(COLOURS), **quantities}

    def __getitem__(self, i: int) -> Sample:
        """x: (3, *size) uint8."""
        if not 0 <= i < self.count:
            raise IndexError(f"scene {i} of {self.count}")
        key = [self.seed, self.split == "test", i]
        rng, sky = np.random.default_rng(key), np.random.default_rng([*key, 1])  # with light or without: the same scene
        picture = self.canvas.background(rng)
        if self.light:
            self.canvas.darken(picture, 255 * self.light * sky.random())
        shape, colour = int(rng.integers(len(SHAPES))), int(rng.integers(len(COLOURS)))
        places = self._places(rng)
        for number, (x, y, diameter) in enumerate(places):
            kind = shape if number == 0 else int(rng.integers(len(SHAPES)))
            hue = colour if number == 0 else int(rng.integers(len(COLOURS)))
            distance = list(SHAPES.values())[kind]
            self.canvas.draw(picture, distance, vivid(rng, hue), x, y, diameter / 2, rng.random() * TURN)
        x, y, diameter = places[0]
        height, width = self.size
        labels: dict[str, int | float | torch.Tensor] = {
            "shape": shape,
            "colour": colour,
            "count": len(places),
            "position": torch.tensor([x / width, y / height], dtype=torch.float32),
            "scale": diameter / min(self.size),
            "distance": min(hypot(a - width / 2, b - height / 2) for a, b, _ in places) / min(self.size),
        }
        return Sample(torch.from_numpy(picture.astype(np.uint8)), labels, f"shapes/{self.split}/{i}")

    def _places(self, rng: np.random.Generator) -> list[tuple[float, float, float]]:
        """(x, y, diameter) in pixels of each object, the largest first."""
        main = min(self.size) * rng.uniform(*MAIN_SIZE)
        numbers = range(int(rng.integers(1, 5)))
        return scatter(rng, self.size, (main * (rng.uniform(*OTHER_SIZE) if n else 1) for n in numbers))
