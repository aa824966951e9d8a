"""Rendered scenes with known contents: data that needs no download and that raw pixels cannot solve.

Shapes are drawn from their signed distance d in pixels (negative inside); the coverage of a pixel is 1/2 - d, clipped
to 0..1, which makes smooth edges.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from math import hypot

import numpy as np
import torch

from jepa.data.base import DataError, SampleDataset, fingerprint_of
from jepa.data.transforms import pair
from jepa.types import Sample

Array = np.ndarray
TURN = 2 * np.pi

COLOURS = {"red": 0.0, "orange": 0.09, "yellow": 0.16, "green": 0.33, "cyan": 0.5, "blue": 0.63, "purple": 0.8}  # hues
HUE_JITTER = 0.015
MAIN_SIZE = (0.30, 0.60)  # diameter as a share of the picture's shorter side
OTHER_SIZE = (0.40, 0.75)  # as a share of the main object
TEXTURE_CELLS = (1, 2, 2, 3, 5, 9)  # cells of the background's colour field: 1 is flat, 2 a gradient, more a texture
POSITION_TRIES = 12


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

    Raises:
        DataError: an argument is out of its range.
    """

    def __init__(
        self, count: int = 10_000, size: int | Sequence[int] = 64, seed: int = 0, split: str = "train"
    ) -> None:
        self.size = pair(size)
        if count < 1 or min(self.size) < 16 or seed < 0 or split not in ("train", "test"):
            raise DataError(
                f"need count >= 1, size >= 16, seed >= 0 and split train or test; "
                f"got count {count}, size {size}, seed {seed}, split {split!r}"
            )
        self.count, self.seed, self.split = count, seed, split
        self._y, self._x = (np.arange(side, dtype=np.float32) + 0.5 for side in self.size)
        self._blend = {cells: [_interpolation(side, cells) for side in self.size] for cells in set(TEXTURE_CELLS)}

    def __len__(self) -> int:
        return self.count

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(["shapes", str(self.count), str(self.size), str(self.seed), self.split])

    @property
    def label_names(self) -> dict[str, list[str] | None]:
        quantities = dict.fromkeys(("count", "position", "scale", "distance"))
        return {"shape": list(SHAPES), "colour": list(COLOURS), **quantities}

    def __getitem__(self, i: int) -> Sample:
        """x: (3, *size) uint8."""
        if not 0 <= i < self.count:
            raise IndexError(f"scene {i} of {self.count}")
        rng = np.random.default_rng([self.seed, self.split == "test", i])
        picture = self._background(rng)
        shape, colour = int(rng.integers(len(SHAPES))), int(rng.integers(len(COLOURS)))
        places = self._places(rng)
        for number, (x, y, diameter) in enumerate(places):
            kind = shape if number == 0 else int(rng.integers(len(SHAPES)))
            hue = colour if number == 0 else int(rng.integers(len(COLOURS)))
            self._draw(picture, list(SHAPES.values())[kind], _colour(rng, hue), x, y, diameter / 2, rng.random() * TURN)
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

    def _background(self, rng: np.random.Generator) -> Array:
        """(3, H, W) float32 in 0..255: a smooth field of dull colours with grain."""
        cells = TEXTURE_CELLS[rng.integers(len(TEXTURE_CELLS))]
        grey, tint = 40 + 175 * rng.random((1, cells, cells)), 50 * (rng.random((3, cells, cells)) - 0.5)
        rows, columns = self._blend[cells]
        picture = rows @ (grey + tint).astype(np.float32) @ columns.T
        picture += rng.uniform(0, 30) * (rng.random(self.size, dtype=np.float32) - 0.5)
        return picture

    def _places(self, rng: np.random.Generator) -> list[tuple[float, float, float]]:
        """(x, y, diameter) in pixels of each object, the largest first."""
        height, width = self.size
        main = min(self.size) * rng.uniform(*MAIN_SIZE)
        places: list[tuple[float, float, float]] = []
        for number in range(int(rng.integers(1, 5))):
            d = main if number == 0 else main * rng.uniform(*OTHER_SIZE)
            tries = rng.random((POSITION_TRIES, 2)).tolist()
            spots = ((d / 2 + u * (width - d), d / 2 + v * (height - d)) for u, v in tries)
            free = (
                (x, y) for x, y in spots if all((x - a) ** 2 + (y - b) ** 2 > (d + e) ** 2 / 4 for a, b, e in places)
            )
            if spot := next(free, None):
                places.append((*spot, d))
        return places

    def _draw(
        self,
        picture: Array,
        distance: Callable[[Array, Array], Array],
        colour: Array,
        x: float,
        y: float,
        radius: float,
        angle: float,
    ) -> None:
        """Blend a shape of that radius (pixels) over the square of the picture that it may touch."""
        top, left = max(int(y - radius) - 1, 0), max(int(x - radius) - 1, 0)
        bottom, right = int(y + radius) + 2, int(x + radius) + 2
        dy, dx = self._y[top:bottom, None] - y, self._x[None, left:right] - x
        c, s = np.float32(np.cos(angle) / radius), np.float32(np.sin(angle) / radius)
        cover = np.clip(0.5 - np.float32(radius) * distance(dx * c + dy * s, dy * c - dx * s), 0, 1)
        region = picture[:, top:bottom, left:right]
        region += cover * (colour[:, None, None] - region)


def _interpolation(side: int, cells: int) -> Array:
    """(side, cells) weights that stretch `cells` values linearly over `side` pixels."""
    at = np.linspace(0, cells - 1, side)[:, None]
    return np.maximum(1 - np.abs(at - np.arange(cells)), 0).astype(np.float32)


def _colour(rng: np.random.Generator, colour: int) -> Array:
    """(3,) a vivid colour of that class, 0..255."""
    hue = list(COLOURS.values())[colour] + rng.uniform(-HUE_JITTER, HUE_JITTER)
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.75, 1), rng.uniform(0.7, 1)), np.float32)


def _planes(x: Array, y: Array, sides: int) -> list[Array]:
    """Distances of (x, y) along the directions of a regular polygon's sides."""
    angles = TURN * (np.arange(sides) + 0.5) / sides
    return [x * np.float32(np.cos(a)) + y * np.float32(np.sin(a)) for a in angles]


def _circle(x: Array, y: Array) -> Array:
    return np.sqrt(x * x + y * y) - np.float32(0.9)


def _ring(x: Array, y: Array) -> Array:
    return np.abs(np.sqrt(x * x + y * y) - np.float32(0.75)) - np.float32(0.2)


def _square(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(0.707)


def _triangle(x: Array, y: Array) -> Array:
    first, second, third = _planes(x, y, 3)
    return np.maximum(np.maximum(first, second), third) - np.float32(0.5)


def _cross(x: Array, y: Array) -> Array:
    a, b = np.abs(x), np.abs(y)
    return np.maximum(np.maximum(a, b) - np.float32(0.95), np.minimum(a, b) - np.float32(0.28))


def _star(x: Array, y: Array) -> Array:
    """A pentagram: its points lie outside at most one of the pentagon's five sides."""
    planes = _planes(x, y, 5)
    largest, second = np.maximum(planes[0], planes[1]), np.minimum(planes[0], planes[1])
    for plane in planes[2:]:
        second = np.maximum(second, np.minimum(largest, plane))
        largest = np.maximum(largest, plane)
    return second - np.float32(np.cos(TURN / 5))


# distance functions on the unit disc, which every shape just fits
SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "star": _star,
    "ring": _ring,
}
