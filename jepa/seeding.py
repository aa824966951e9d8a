"""Randomness as a pure function of named integers, so that nothing depends on who draws or when."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """First part of every key: what the numbers are for. Streams never share numbers."""

    INIT = 0
    ORDER = 1
    SAMPLE = 2
    MASK = 3
    STEP = 4
    PROBE = 5


def key(seed: int, stream: Stream, *counters: int) -> int:
    """A 63-bit seed from a run's seed, a stream and counters (step, epoch, sample number, ...)."""
    words = np.random.SeedSequence([seed, int(stream), *counters]).generate_state(2, np.uint32)
    return (int(words[0]) << 31) ^ int(words[1])


def generator(seed: int, stream: Stream, *counters: int) -> torch.Generator:
    """A CPU generator for that key."""
    return torch.Generator().manual_seed(key(seed, stream, *counters))


def reseed(seed: int, stream: Stream, *counters: int) -> None:
    """Start the global RNGs of torch (CPU), numpy and Python from that key."""
    number = key(seed, stream, *counters)
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.default_generator.manual_seed(number)


@contextmanager
def isolated(seed: int, stream: Stream, *counters: int) -> Iterator[None]:
    """Inside, the global RNGs of torch (CPU), numpy and Python start from that key; outside, they are untouched."""
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    reseed(seed, stream, *counters)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
