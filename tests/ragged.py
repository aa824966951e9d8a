"""Small ragged batches for tests."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch

from jepa.types import Indices


def random_indices(lengths: Sequence[int], grid: Sequence[int], seed: int = 0) -> Indices:
    """Sets of these lengths, drawn without replacement and sorted."""
    draw = torch.Generator().manual_seed(seed)
    values = [torch.randperm(prod(grid), generator=draw)[:length].sort().values for length in lengths]
    return Indices.of(torch.cat(values), torch.tensor(lengths), grid)


def pick(index: Indices, first: int, count: int = 1) -> Indices:
    """`count` consecutive sets of an index, from set `first`, as an index of their own."""
    start, stop = int(index.offsets[first]), int(index.offsets[first + count])
    return Indices.of(index.values[start:stop], index.lengths[first : first + count], index.grid)
