"""Objects that sound when they hit a wall; `python -m jepa.data.bouncing_sounds` writes MP4 files of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from jepa.data.base import DataError, SampleDataset, fingerprint_of
from jepa.data.bouncing_sounds.files import MP4, write_files
from jepa.data.drawing import COLOURS, SHAPES, TURN, Array, Canvas, scatter, vivid
from jepa.data.films import read_film
from jepa.data.rendered import once
from jepa.data.sampling import Sampling
from jepa.data.sound import Excerpt
from jepa.data.tones.synthesis import LOWEST, OCTAVES, TIMBRES, gain, noise, strokes
from jepa.data.transforms import pair
from jepa.types import Sample

SOUNDS = dict(zip(SHAPES, TIMBRES, strict=True))  # what it looks like says what it sounds like
SIZE = (0.25, 0.45)  # diameter of the object as a share of the picture's shorter side
OTHER_SIZE = (0.10, 0.20)
SPEED = (0.04, 0.12)  # shares of the shorter side per frame
MOST_OTHERS = 2
HEARD = 0.05  # seconds from the first hit to the end of the sound, at least
SHORTEST = 0.2  # seconds of a clip
LOUDNESS = (-20.0, -3.0)  # decibels of full scale of the largest sample
HISS = (-50.0, -30.0)  # of the noise, below the largest sample


class BouncingSounds(SampleDataset):
    """Clips of an object that flies through a box, and their sound: a stroke each time it hits a wall; a pure function
    of (seed, split, i).

    Its shape decides the timbre and its size the pitch: large is low. Colour, background and up to two small silent
    objects that stand still are not heard. Labels: `shape` and `colour` (classes), `hits` (how many) and `size`
    (diameter as a share of the picture's shorter side).

    Args:
        count: number of clips.
        size: pixels, one number or (height, width).
        frames: of a clip, T.
        fps: frames per second.
        rate: samples of the sound per second.
        seed: seed of the clips.
        split: "train" or "test"; they share no clip.
        files: a folder for MP4 files with sound tracks. They are written there once, if they are missing, and then read
            like any video; without it clips and sounds are made when they are asked for.

    Raises:
        DataError: an argument is out of its range.
    """

    def __init__(
        self,
        count: int = 10_000,
        size: int | Sequence[int] = 48,
        frames: int = 16,
        fps: int = 8,
        rate: int = 16_000,
        seed: int = 0,
        split: str = "train",
        files: str | Path | None = None,
    ) -> None:
        self.size = pair(size)
        if (
            count < 1
            or min(self.size) < 16
            or frames < 8  # fewer may not be enough to reach a wall
            or fps < 1
            or frames / fps < SHORTEST
            or rate < 4000
            or seed < 0
            or split not in ("train", "test")
        ):
            raise DataError(
                f"need count >= 1, size >= 16, frames >= 8, fps >= 1, frames / fps >= {SHORTEST}, rate >= 4000, "
                f"seed >= 0 and split train or test; got count {count}, size {size}, frames {frames}, fps {fps}, "
                f"rate {rate}, seed {seed}, split {split!r}"
            )
        self.count, self.frames, self.fps, self.rate, self.seed, self.split = count, frames, fps, rate, seed, split
        self.canvas = Canvas(self.size)
        self.folder: Path | None = None
        if files is not None:
            place = Path(files).expanduser() / f"{split}_{self.fingerprint}"
            self.folder = once(place, lambda draft: write_files(self, draft, fps, rate))

    def __len__(self) -> int:
        return self.count

    @property
    def fingerprint(self) -> str:
        kind = "MP4" if self.folder else "made"
        parts = (self.count, self.size, self.frames, self.fps, self.rate, self.seed, self.split, kind)
        return fingerprint_of(["bouncing sounds", *map(str, parts)])

    @property
    def label_names(self) -> dict[str, list[str] | None]:
        return {"shape": list(SHAPES), "colour": list(COLOURS), "hits": None, "size": None}

    @property
    def samples(self) -> int:
        """Of the sound of a clip."""
        return round(self.frames / self.fps * self.rate)

    def __getitem__(self, i: int) -> Sample:
        """x: clip (3, T, *size) uint8 and sound (1, samples) float32."""
        if not 0 <= i < self.count:
            raise IndexError(f"clip {i} of {self.count}")
        flight, name = _Flight.drawn(self, i), f"bouncing_sounds/{self.split}/{i}"
        if self.folder is not None:
            sampling, excerpt = Sampling(self.frames, fps=self.fps), Excerpt(self.rate, self.samples)
            x = read_film(self.folder / MP4.format(i), name, sampling, excerpt, 0)
        else:
            clip = flight.clip(self.canvas, self.frames)
            sound = flight.sound(self.fps, self.rate, self.samples)
            x = {"clip": torch.from_numpy(clip), "sound": torch.from_numpy(sound)}
        return Sample(x, flight.labels, name)


@dataclass(frozen=True)
class _Flight:
    """What a clip shows and lets hear. Lengths are in pixels, speeds in pixels per frame."""

    rng: np.random.Generator  # what remains of it: for the pixels, then the samples
    labels: dict[str, int | float]
    start: Array
    velocity: Array
    hits: list[float]  # frames
    room: Array  # what the object's centre can move in
    diameter: float
    others: list[tuple[float, float, float]]

    @classmethod
    def drawn(cls, data: BouncingSounds, i: int) -> _Flight:
        rng = np.random.default_rng([data.seed, data.split == "test", i])
        side, share = min(data.size), rng.uniform(*SIZE)
        shape, colour = int(rng.integers(len(SHAPES))), int(rng.integers(len(COLOURS)))
        room = np.array(data.size[::-1]) - share * side
        hits: list[float] = []
        while not hits or hits[0] > data.frames - HEARD * data.fps:
            start, angle = rng.random(2) * room, TURN * rng.random()
            velocity = side * rng.uniform(*SPEED) * np.array([np.cos(angle), np.sin(angle)])
            hits = _hits(start, velocity, room, data.frames)
        sizes = (share * side * rng.uniform(*OTHER_SIZE) / SIZE[0] for _ in range(int(rng.integers(MOST_OTHERS + 1))))
        return cls(
            rng=rng,
            labels={"shape": shape, "colour": colour, "hits": float(len(hits)), "size": share},
            start=start,
            velocity=velocity,
            hits=hits,
            room=room,
            diameter=share * side,
            others=scatter(rng, data.size, sizes),
        )

    def clip(self, canvas: Canvas, frames: int) -> Array:
        """(3, T, H, W) uint8."""
        rng, shapes = self.rng, list(SHAPES.values())
        still = canvas.background(rng)
        for x, y, diameter in self.others:
            other, colour = shapes[rng.integers(len(SHAPES))], vivid(rng, int(rng.integers(len(COLOURS))))
            canvas.draw(still, other, colour, x, y, diameter / 2, rng.random() * TURN)
        shape, colour = shapes[int(self.labels["shape"])], vivid(rng, int(self.labels["colour"]))
        angle, radius = rng.random() * TURN, self.diameter / 2
        clip = np.empty((3, frames, *canvas.size), np.uint8)
        for t in range(frames):
            picture = still.copy()
            unfolded = (self.start + t * self.velocity) % (2 * self.room)
            x, y = radius + np.minimum(unfolded, 2 * self.room - unfolded)
            canvas.draw(picture, shape, colour, x, y, radius, angle)
            clip[:, t] = picture
        return clip

    def sound(self, fps: int, rate: int, samples: int) -> Array:
        """(1, samples) float32."""
        timbre = TIMBRES[list(SOUNDS.values())[int(self.labels["shape"])]]
        low, high = SIZE
        pitch = LOWEST * 2 ** (OCTAVES * (high - self.labels["size"]) / (high - low))
        played = strokes(timbre, pitch, [hit / fps for hit in self.hits], rate, samples, self.rng)
        mixed = played / np.abs(played).max() + gain(self.rng.uniform(*HISS)) * noise(samples, self.rng)
        return (gain(self.rng.uniform(*LOUDNESS)) * mixed / np.abs(mixed).max()).astype(np.float32)[None]


def _hits(start: Array, velocity: Array, room: Array, frames: int) -> list[float]:
    """When the centre, that moves from `start` within 0..room, turns back, in frames and ascending; the last frame
    counts in full."""
    found = []
    for a, v, length in zip(start, velocity, room, strict=True):
        first, last = sorted((a / length, (a + v * frames) / length))  # walls lie at the whole numbers
        found += [(wall * length - a) / v for wall in range(int(np.ceil(first)), int(np.floor(last)) + 1)]
    return sorted(found)
