"""Synthesised sounds with known contents; `python -m jepa.data.tones` writes them as WAV, FLAC or Opus files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from jepa.data.base import DataError, SampleDataset, fingerprint_of
from jepa.data.rendered import once
from jepa.data.sound import Excerpt, read_sound
from jepa.data.tones.files import write_files
from jepa.data.tones.synthesis import RHYTHMS, TIMBRES, Voice, gain, noise
from jepa.types import Sample

LOUDNESS = (-30.0, -3.0)  # decibels of full scale of the largest sample
OTHERS = (-9.0, -3.0)  # of other sources, below the main one
HISS = (-50.0, -30.0)  # of the noise, below the largest sample
MOST_SOURCES = 3


class Tones(SampleDataset):
    """One to three instruments that play a note in a rhythm, over noise; a pure function of (seed, split, i).

    Labels of the loudest instrument: `timbre` (classes), `pitch` in octaves above 110 Hz (0 to 3), `rhythm` (classes).
    Of the whole: `sources`, how many instruments play, `timbres`, which of them, as a vector of zeros and ones, and
    `loudness`, the largest sample in decibels of full scale.

    Args:
        count: number of sounds.
        rate: samples per second.
        seconds: of a sound.
        seed: seed of the sounds.
        split: "train" or "test"; they share no sound.
        files: a folder for WAV files. They are written there once, if they are missing, and then read like any
            recording; without it sounds are synthesised when they are asked for.

    Raises:
        DataError: an argument is out of its range.
    """

    def __init__(
        self,
        count: int = 10_000,
        rate: int = 16_000,
        seconds: float = 1.024,
        seed: int = 0,
        split: str = "train",
        files: str | Path | None = None,
    ) -> None:
        self.samples = round(rate * seconds)
        if count < 1 or rate < 4000 or seconds < 0.2 or seed < 0 or split not in ("train", "test"):
            raise DataError(
                f"need count >= 1, rate >= 4000, seconds >= 0.2, seed >= 0 and split train or test; "
                f"got count {count}, rate {rate}, seconds {seconds}, seed {seed}, split {split!r}"
            )
        self.count, self.rate, self.seed, self.split = count, rate, seed, split
        self.folder: Path | None = None
        if files is not None:
            place = Path(files).expanduser() / f"{split}_{self.fingerprint}"
            self.folder = once(place, lambda draft: write_files(self, draft, rate))

    def __len__(self) -> int:
        return self.count

    @property
    def fingerprint(self) -> str:
        parts = (self.count, self.rate, self.samples, self.seed, self.split, "WAV" if self.folder else "synthesised")
        return fingerprint_of(["tones", *map(str, parts)])

    @property
    def label_names(self) -> dict[str, list[str] | None]:
        main: dict[str, list[str] | None] = {"timbre": list(TIMBRES), "pitch": None, "rhythm": list(RHYTHMS)}
        return {**main, "sources": None, "timbres": list(TIMBRES), "loudness": None}

    def __getitem__(self, i: int) -> Sample:
        """x: (1, samples) float32."""
        if not 0 <= i < self.count:
            raise IndexError(f"sound {i} of {self.count}")
        name, rng = f"tones/{self.split}/{i}", np.random.default_rng([self.seed, self.split == "test", i])
        voices = [Voice.drawn(rng) for _ in range(int(rng.integers(1, MOST_SOURCES + 1)))]
        loudness = rng.uniform(*LOUDNESS)
        labels: dict[str, int | float | torch.Tensor] = {
            "timbre": list(TIMBRES).index(voices[0].timbre),
            "pitch": voices[0].pitch,
            "rhythm": list(RHYTHMS).index(voices[0].rhythm),
            "sources": float(len(voices)),
            "timbres": torch.tensor([int(timbre in {voice.timbre for voice in voices}) for timbre in TIMBRES]),
            "loudness": loudness,
        }
        if self.folder is None:
            x = torch.from_numpy(self._played(voices, loudness, rng))
        else:
            x = read_sound(self.folder / f"{i:06}.wav", name, Excerpt(self.rate, self.samples), 0)
        return Sample(x, labels, name)

    def _played(self, voices: list[Voice], loudness: float, rng: np.random.Generator) -> np.ndarray:
        """(1, samples) float32."""
        mixed = np.zeros(self.samples)
        for number, voice in enumerate(voices):
            part = voice.play(self.rate, self.samples, rng)
            mixed += part / np.abs(part).max() * (gain(rng.uniform(*OTHERS)) if number else 1)
        mixed /= np.abs(mixed).max()
        mixed += gain(rng.uniform(*HISS)) * noise(self.samples, rng)
        return (gain(loudness) * mixed / np.abs(mixed).max()).astype(np.float32)[None]
