"""Rendered clips with known motion and appearance; `python -m jepa.data.moving_shapes` writes them as MP4 files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from jepa.data.base import DataError, SampleDataset, fingerprint_of
from jepa.data.clips import read_clip
from jepa.data.drawing import COLOURS, SHAPES, TURN, Array, Canvas, scatter, vivid
from jepa.data.moving_shapes.files import MP4, render_once
from jepa.data.sampling import Sampling
from jepa.data.transforms import pair
from jepa.types import Sample

DIRECTIONS = ("right", "down-right", "down", "down-left", "left", "up-left", "up", "up-right")  # 45 degrees apart
BOUNCE = ("no", "yes")
SIZE = (0.25, 0.45)  # diameter of the moving object as a share of the picture's shorter side
OTHER_SIZE = (0.40, 0.75)  # as a share of the moving object
SPEED = (0.015, 0.06)  # shares of the shorter side per frame
BOUNCE_AT = (0.5, 0.85)  # share of the clip after which the object turns back


class MovingShapes(SampleDataset):
    """Clips of an object that moves past up to three that stand still, a pure function of (seed, split, i).

    What leaves the picture on one side comes back on the other, so every place is as likely in every frame, and no
    single frame tells where the object is going. Some objects turn straight back after more than half of the clip.
    Labels of motion: `direction` at first (classes), `speed` in shares of the shorter side per frame, `bounce` (turns
    back or not). Of appearance: `shape` and `colour` of the moving object, and `count` of all objects.

    Args:
        count: number of clips.
        size: pixels, one number or (height, width).
        frames: of a clip, T.
        seed: seed of the clips.
        split: "train" or "test"; they share no clip.
        files: a folder for MP4 files. They are written there once, if they are missing, and then read like any video;
            without it clips are drawn when they are asked for.

    Raises:
        DataError: an argument is out of its range.
    """

    def __init__(
        self,
        count: int = 10_000,
        size: int | Sequence[int] = 64,
        frames: int = 16,
        seed: int = 0,
        split: str = "train",
        files: str | Path | None = None,
    ) -> None:
        self.size = pair(size)
        if count < 1 or min(self.size) < 16 or frames < 2 or seed < 0 or split not in ("train", "test"):
            raise DataError(
                f"need count >= 1, size >= 16, frames >= 2, seed >= 0 and split train or test; "
                f"got count {count}, size {size}, frames {frames}, seed {seed}, split {split!r}"
            )
        self.count, self.frames, self.seed, self.split = count, frames, seed, split
        self.canvas = Canvas(self.size)
        self.folder: Path | None = None
        if files is not None:
            self.folder = render_once(self, Path(files).expanduser() / f"{split}_{self.fingerprint}")

    def __len__(self) -> int:
        return self.count

    @property
    def fingerprint(self) -> str:
        parts = (self.count, self.size, self.frames, self.seed, self.split, "MP4" if self.folder else "drawn")
        return fingerprint_of(["moving shapes", *map(str, parts)])

    @property
    def label_names(self) -> dict[str, list[str] | None]:
        motion: dict[str, list[str] | None] = {"direction": list(DIRECTIONS), "speed": None, "bounce": list(BOUNCE)}
        return {**motion, "shape": list(SHAPES), "colour": list(COLOURS), "count": None}

    def __getitem__(self, i: int) -> Sample:
        """x: (3, T, *size) uint8."""
        if not 0 <= i < self.count:
            raise IndexError(f"clip {i} of {self.count}")
        scene, name = _Scene.drawn(self, i), f"moving_shapes/{self.split}/{i}"
        if self.folder is None:
            x = torch.from_numpy(scene.clip(self.canvas, self.frames))
        else:
            x = read_clip(self.folder / MP4.format(i), name, Sampling(self.frames, stride=1), 0)
        return Sample(x, scene.labels, name)


@dataclass(frozen=True)
class _Scene:
    """What a clip shows. Lengths are in pixels, speeds in pixels per frame."""

    rng: np.random.Generator  # what remains of it: for the pixels
    labels: dict[str, int | float]
    start: Array
    velocity: Array
    turns: float  # frame
    diameter: float
    others: list[tuple[float, float, float]]

    @classmethod
    def drawn(cls, data: MovingShapes, i: int) -> _Scene:
        rng = np.random.default_rng([data.seed, data.split == "test", i])
        side = min(data.size)
        direction, bounce = int(rng.integers(len(DIRECTIONS))), int(rng.integers(2))
        speed, diameter = rng.uniform(*SPEED), side * rng.uniform(*SIZE)
        turns = rng.uniform(*BOUNCE_AT) * (data.frames - 1) if bounce else np.inf
        angle = TURN * direction / len(DIRECTIONS)
        sizes = (diameter * rng.uniform(*OTHER_SIZE) for _ in range(int(rng.integers(0, 4))))
        others = scatter(rng, data.size, sizes)
        labels = {"direction": direction, "speed": speed, "bounce": bounce}
        labels |= {"shape": int(rng.integers(len(SHAPES))), "colour": int(rng.integers(len(COLOURS)))}
        return cls(
            rng=rng,
            labels={**labels, "count": float(1 + len(others))},
            start=rng.random(2) * (data.size[1], data.size[0]),
            velocity=side * speed * np.array([np.cos(angle), np.sin(angle)]),
            turns=turns,
            diameter=diameter,
            others=others,
        )

    def clip(self, canvas: Canvas, frames: int) -> Array:
        """(3, T, H, W) uint8."""
        rng, shapes = self.rng, list(SHAPES.values())
        still = canvas.background(rng)
        for x, y, diameter in self.others:
            shape, colour = shapes[rng.integers(len(SHAPES))], vivid(rng, int(rng.integers(len(COLOURS))))
            canvas.draw(still, shape, colour, x, y, diameter / 2, rng.random() * TURN)
        shape, colour = shapes[int(self.labels["shape"])], vivid(rng, int(self.labels["colour"]))
        angle, radius = rng.random() * TURN, self.diameter / 2
        clip = np.empty((3, frames, *canvas.size), np.uint8)
        for t in range(frames):
            picture = still.copy()
            for x, y in self._seen(t, canvas.size):
                canvas.draw(picture, shape, colour, x, y, radius, angle)
            clip[:, t] = picture
        return clip

    def _seen(self, t: int, size: Sequence[int]) -> list[tuple[float, float]]:
        """Centres of the moving object, several where it crosses the border."""
        height, width = size
        travelled = t if t < self.turns else 2 * self.turns - t
        x, y = (self.start + travelled * self.velocity) % (width, height)
        reach = self.diameter / 2 + 1
        columns = [a for a in (x - width, x, x + width) if -reach < a < width + reach]
        rows = [b for b in (y - height, y, y + height) if -reach < b < height + reach]
        return [(a, b) for b in rows for a in columns]
