"""Drawing of shapes on backgrounds.

Shapes are drawn from their signed distance d in pixels (negative inside); the coverage of a pixel is 1/2 - d, clipped
to 0..1, which makes smooth edges.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterable, Sequence

import numpy as np

Array = np.ndarray
TURN = 2 * np.pi

COLOURS = {"red": 0.0, "orange": 0.09, "yellow": 0.16, "green": 0.33, "cyan": 0.5, "blue": 0.63, "purple": 0.8}  # hues
HUE_JITTER = 0.015
TEXTURE_CELLS = (1, 2, 2, 3, 5, 9)  # cells of the background's colour field: 1 is flat, 2 a gradient, more a texture
POSITION_TRIES = 12


class Canvas:
    """Draws pictures of one size.

    Args:
        size: (height, width) in pixels.
    """

    def __init__(self, size: Sequence[int]) -> None:
        self.size = tuple(size)
        self._y, self._x = (np.arange(side, dtype=np.float32) + 0.5 for side in self.size)
        self._blend = {cells: [_interpolation(side, cells) for side in self.size] for cells in set(TEXTURE_CELLS)}

    def background(self, rng: np.random.Generator) -> Array:
        """(3, H, W) float32 in 0..255: a smooth field of dull colours with grain."""
        cells = TEXTURE_CELLS[rng.integers(len(TEXTURE_CELLS))]
        grey, tint = 40 + 175 * rng.random((1, cells, cells)), 50 * (rng.random((3, cells, cells)) - 0.5)
        rows, columns = self._blend[cells]
        picture = rows @ (grey + tint).astype(np.float32) @ columns.T
        picture += rng.uniform(0, 30) * (rng.random(self.size, dtype=np.float32) - 0.5)
        return picture

    def darken(self, picture: Array, drop: float) -> None:
        """Light from above: as much brightness is added at the upper edge as is taken at the lower, together `drop`."""
        fall = np.float32(drop) * (np.float32(0.5) - self._y / self.size[0])
        np.clip(picture + fall[:, None], 0, 255, out=picture)

    def draw(
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


def scatter(
    rng: np.random.Generator, size: Sequence[int], diameters: Iterable[float]
) -> list[tuple[float, float, float]]:
    """(x, y, diameter) in pixels of discs that lie in the picture and do not overlap; some find no room."""
    height, width = size
    places: list[tuple[float, float, float]] = []
    for d in diameters:
        tries = rng.random((POSITION_TRIES, 2)).tolist()
        spots = ((d / 2 + u * (width - d), d / 2 + v * (height - d)) for u, v in tries)
        free = ((x, y) for x, y in spots if all((x - a) ** 2 + (y - b) ** 2 > (d + e) ** 2 / 4 for a, b, e in places))
        if spot := next(free, None):
            places.append((*spot, d))
    return places


def _interpolation(side: int, cells: int) -> Array:
    """(side, cells) weights that stretch `cells` values linearly over `side` pixels."""
    at = np.linspace(0, cells - 1, side)[:, None]
    return np.maximum(1 - np.abs(at - np.arange(cells)), 0).astype(np.float32)


def vivid(rng: np.random.Generator, colour: int) -> Array:
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
