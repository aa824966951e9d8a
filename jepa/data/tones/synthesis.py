"""Instruments: partials under an envelope that a rhythm strikes again and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LOWEST = 110.0  # Hz, pitch 0
OCTAVES = 3.0
PARTIALS = 16
ATTACK = 0.005  # seconds
EARLIEST = (0.0, 0.15)  # share of the sound before its first stroke


@dataclass(frozen=True)
class Timbre:
    """How an instrument sounds.

    Attributes:
        fall: amplitude of partial k is k^-fall.
        odd: whether only odd partials sound.
        stretch: partial k lies at k (1 + stretch k^2)^(1/2) times the pitch, as on a stiff string.
        decay: seconds in which a stroke falls to 1/e.
        damping: how much faster partial k falls: k^damping times.
        breath: share of noise in it.
        vibrato: of the pitch, in semitones, six times a second.
    """

    fall: float
    odd: bool = False
    stretch: float = 0.0
    decay: float = 1.0
    damping: float = 0.0
    breath: float = 0.0
    vibrato: float = 0.0


TIMBRES = {
    "flute": Timbre(fall=3.0, breath=0.15, vibrato=0.3),
    "clarinet": Timbre(fall=1.2, odd=True),
    "brass": Timbre(fall=0.6),
    "string": Timbre(fall=1.0, vibrato=0.6),
    "pluck": Timbre(fall=1.0, decay=0.35, damping=0.7),
    "bell": Timbre(fall=0.8, stretch=0.04, decay=0.6, damping=0.3),
}
RHYTHMS = {  # when strokes come, as shares of what is left after the first
    "once": (0.0,),
    "twice": (0.0, 0.5),
    "even": (0.0, 0.25, 0.5, 0.75),
    "gallop": (0.0, 0.125, 0.5, 0.625),
    "faster": (0.0, 0.4, 0.65, 0.8, 0.9),
}


@dataclass(frozen=True)
class Voice:
    """An instrument that plays a note: names of its timbre and rhythm, and its pitch in octaves above `LOWEST`."""

    timbre: str
    pitch: float
    rhythm: str

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Voice:
        return cls(
            timbre=list(TIMBRES)[rng.integers(len(TIMBRES))],
            pitch=rng.uniform(0, OCTAVES),
            rhythm=list(RHYTHMS)[rng.integers(len(RHYTHMS))],
        )

    def play(self, rate: int, samples: int, rng: np.random.Generator) -> np.ndarray:
        """(samples,) of any scale."""
        bend = rng.uniform(0, 2 * np.pi)
        first = rng.uniform(*EARLIEST) * samples / rate
        onsets = [first + share * (samples / rate - first) for share in RHYTHMS[self.rhythm]]
        return strokes(TIMBRES[self.timbre], LOWEST * 2**self.pitch, onsets, rate, samples, rng, bend)


def strokes(
    timbre: Timbre,
    pitch: float,
    onsets: Sequence[float],
    rate: int,
    samples: int,
    rng: np.random.Generator,
    phase: float = 0.0,
) -> np.ndarray:
    """An instrument that is struck again and again: (samples,) of any scale. A stroke stops the one before; partials
    above half of the rate are left out.

    Args:
        pitch: Hz.
        onsets: of the strokes, seconds, ascending.
        phase: of the vibrato.
    """
    time = np.arange(samples) / rate
    bend = timbre.vibrato / 12 * np.log(2) / (12 * np.pi) * np.sin(12 * np.pi * time + phase)
    k = np.arange(1, PARTIALS + 1, 2 if timbre.odd else 1)
    ratio = k * np.sqrt(1 + timbre.stretch * k**2)
    audible = ratio * pitch < 0.45 * rate
    k, ratio = k[audible], ratio[audible]
    strength = (k**-timbre.fall).astype(np.float32)
    decay = timbre.decay / (k**timbre.damping if timbre.damping else np.ones(1))
    sound = np.zeros(samples, np.float32)
    for onset, end in zip(onsets, [*onsets[1:], np.inf], strict=True):
        there = (time >= onset) & (time < end)
        t, swing = time[there] - onset, bend[there]
        envelope = np.exp((-t / decay[:, None]).astype(np.float32)) * np.minimum(t / ATTACK, 1).astype(np.float32)
        turns = pitch * ratio[:, None] * (t + swing) + rng.random(len(k))[:, None]
        turns -= np.floor(turns)  # single precision is several times faster, and precise enough within one turn
        sound[there] = strength @ (envelope * np.sin(np.float32(2 * np.pi) * turns.astype(np.float32)))
        if timbre.breath:
            sound[there] += timbre.breath * envelope[0] * rng.standard_normal(len(t), np.float32)
    return sound


def noise(samples: int, rng: np.random.Generator) -> np.ndarray:
    """(samples,) noise of a random colour, from white to brown, with largest sample 1."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    spectrum /= np.maximum(np.arange(len(spectrum)), 1) ** rng.uniform(0, 1)
    drawn = np.fft.irfft(spectrum, samples)
    return drawn / np.abs(drawn).max()


def gain(decibels: float) -> float:
    """What amplitudes are multiplied by."""
    return 10 ** (decibels / 20)
