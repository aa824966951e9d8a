"""Which samples are held out or drawn: a function of the labels, the seed and a counter."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa.seeding import Stream, generator

_HELD_OUT, _DRAW, _RANDOM = 1, 2, 3  # first counter of the streams below, so that they share no numbers


def _share(labels: Tensor, fraction: float, least: int, keep: int, rng: torch.Generator) -> Tensor:
    """(N,) boolean map: of each class `fraction`, at least `least`, and all but `keep` at most."""
    if not 0 < fraction < 1:
        raise ValueError(f"fraction={fraction} must lie between 0 and 1")
    labels = labels.cpu()
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels):
        members = (labels == label).nonzero().flatten()
        count = min(max(round(fraction * len(members)), least), len(members) - keep)
        chosen[members[torch.randperm(len(members), generator=rng)[:count]]] = True
    return chosen


def held_out_split(labels: Tensor, fraction: float, seed: int, number: int = 0) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows held out, ascending, with the classes in proportion.

    A class of two or more gives at least one sample to either side; a class of one stays in training.

    Args:
        labels: (N,) integers.
        fraction: share that is held out.
        seed, number: which split.

    Raises:
        ValueError: `fraction` does not lie between 0 and 1.
    """
    held = _share(labels, fraction, 1, 1, generator(seed, Stream.PROBE, _HELD_OUT, number))
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def random_split(total: int, fraction: float, seed: int, number: int = 0) -> tuple[Tensor, Tensor]:
    """The same for `total` samples without classes; at least one sample on either side.

    Raises:
        ValueError: `fraction` does not lie between 0 and 1, or there are fewer than two samples.
    """
    if total < 2:
        raise ValueError(f"{total} sample cannot be split in two")
    rng = generator(seed, Stream.PROBE, _RANDOM, number)
    held = _share(torch.zeros(total, dtype=torch.long), fraction, 1, 1, rng)
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def label_draw(labels: Tensor, fraction: float, seed: int, number: int = 0) -> Tensor:
    """Rows of a low-shot draw, ascending: `fraction` of each class, at least one sample of each.

    Raises:
        ValueError: `fraction` does not lie between 0 and 1.
    """
    return _share(labels, fraction, 1, 0, generator(seed, Stream.PROBE, _DRAW, number)).nonzero().flatten()
