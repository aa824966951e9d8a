"""The currency of the framework: ragged tokens on an n-D grid, and what is asked of them.

Shape legend, used in every docstring and trailing comment:

    B  samples in a batch        S  sets (sequences) in a ragged batch     N  tokens of all sets together
    M  target sets per sample    C  channels                               D  width of an embedding
    H  attention heads           G  positions of a grid (its product)      A  length of an action or motion code
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

Input = Tensor | Mapping[str, Tensor]  # (B, C, *size), or one such tensor for each modality


class JointGrid(tuple[int, ...]):
    """The cells of the grids of several modalities, one grid after the other, along one axis.

    Attributes:
        parts: the grid of each modality, by name, in their order.
    """

    parts: dict[str, tuple[int, ...]]

    def __new__(cls, parts: Mapping[str, Sequence[int]]) -> JointGrid:
        self = super().__new__(cls, (sum(prod(grid) for grid in parts.values()),))
        self.parts = {name: tuple(grid) for name, grid in parts.items()}
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (self.parts,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JointGrid) and list(self.parts.items()) == list(other.parts.items())

    def __ne__(self, other: object) -> bool:  # a tuple has one of its own
        return not self == other

    def __hash__(self) -> int:
        return hash(tuple(self.parts.items()))

    def cells(self, name: str) -> slice:
        """Where a modality's cells lie."""
        names = list(self.parts)
        start = sum(prod(self.parts[before]) for before in names[: names.index(name)])
        return slice(start, start + prod(self.parts[name]))


@dataclass(frozen=True, eq=False)
class Indices:
    """Ragged sets of positions on a grid: set after set, each as long as it is.

    The extreme lengths are kept on the host, so that nothing downstream has to wait for a device to learn a shape.

    Attributes:
        values: (N,) int64, row-major positions on `grid`, ascending within a set.
        lengths: (S,) int64, tokens of each set; their sum is N.
        grid: size of the grid along each axis, e.g. (rows, columns); of several modalities a `JointGrid`.
        min_length, max_length: extremes of `lengths`.
        task: number of the task of a batch that these positions belong to; a predictor may tell tasks apart.
        parts: positions on the grid of each modality of a `JointGrid`; none where nobody counted them.
    """

    values: Tensor
    lengths: Tensor
    grid: tuple[int, ...]
    min_length: int
    max_length: int
    task: int = 0
    parts: tuple[int, ...] = ()

    @classmethod
    def of(cls, values: Tensor, lengths: Tensor, grid: Sequence[int]) -> Indices:
        """Indices from packed `values` (N,) and `lengths` (S,).

        Raises:
            ValueError: the lengths do not add up, a set is empty, or a position lies outside the grid.
        """
        grid = as_grid(grid)
        if values.ndim != 1 or lengths.ndim != 1 or int(lengths.sum()) != len(values):
            raise ValueError(
                f"lengths {tuple(lengths.shape)} sum to {int(lengths.sum())}, values hold {tuple(values.shape)}"
            )
        if len(lengths) == 0 or int(lengths.min()) < 1:
            empty = (lengths == 0).nonzero().flatten().tolist()
            raise ValueError(f"every set needs at least one position; empty: sets {empty[:8]} of {len(lengths)}")
        if int(values.min()) < 0 or int(values.max()) >= prod(grid):
            raise ValueError(f"positions {int(values.min())}..{int(values.max())} leave the grid {grid}")
        parts = [grid.cells(name) for name in grid.parts] if isinstance(grid, JointGrid) else []
        counts = tuple(int(((values >= cells.start) & (values < cells.stop)).sum()) for cells in parts)
        return cls(values.long(), lengths.long(), grid, int(lengths.min()), int(lengths.max()), parts=counts)

    @classmethod
    def from_maps(cls, maps: Tensor, grid: Sequence[int] | None = None) -> Indices:
        """Indices of the true cells of boolean `maps` (S, *grid), one set per map, on that grid: `grid` says more of it
        where it is a `JointGrid`.

        Raises:
            ValueError: `maps` is not boolean, or a map is empty.
        """
        if maps.dtype != torch.bool or maps.ndim < 2:
            raise ValueError(f"expected boolean maps (S, *grid), got {maps.dtype} {tuple(maps.shape)}")
        sets, size = len(maps), prod(maps.shape[1:])
        flat = maps.reshape(-1)
        if flat.device.type == "cpu":  # where masks are made; numpy needs half of torch's time here
            cells = torch.from_numpy(np.flatnonzero(flat.numpy()))
        else:
            cells = flat.nonzero().flatten()
        bounds = torch.arange(sets + 1, device=flat.device) * size
        lengths = torch.searchsorted(cells, bounds).diff()
        return cls.of(cells % size, lengths, tuple(maps.shape[1:]) if grid is None else grid)

    @classmethod
    def all(cls, sets: int, grid: Sequence[int], device: torch.device | str | None = None) -> Indices:
        """Every position of `grid`, for each of `sets` sets."""
        size = prod(grid)
        values = torch.arange(size, device=device).repeat(sets)
        return cls(values, torch.full((sets,), size, device=device), as_grid(grid), size, size)

    def __len__(self) -> int:
        """Number of sets, S."""
        return len(self.lengths)

    @property
    def total(self) -> int:
        """Number of tokens of all sets together, N."""
        return self.values.shape[0]

    @property
    def complete(self) -> bool:
        """Whether every set holds the whole grid."""
        return self.min_length == prod(self.grid)

    @cached_property
    def offsets(self) -> Tensor:
        """(S + 1,) where each set starts; the last entry is N."""
        return torch.nn.functional.pad(self.lengths.cumsum(0), (1, 0))

    @cached_property
    def sets(self) -> Tensor:
        """(N,) the set that each token belongs to."""
        order = torch.arange(len(self), device=self.lengths.device)
        return torch.repeat_interleave(order, self.lengths, output_size=self.total)

    def maps(self) -> Tensor:
        """(S, *grid) boolean maps: the inverse of `from_maps`."""
        flat = torch.zeros(len(self), prod(self.grid), dtype=torch.bool, device=self.values.device)
        flat[self.sets, self.values] = True
        return flat.view(len(self), *self.grid)

    def apply(self, move: Callable[[Tensor], Tensor]) -> Indices:
        """The same indices with `move` applied to its tensors (a device, pinned memory)."""
        return replace(self, values=move(self.values), lengths=move(self.lengths))


def as_grid(grid: Sequence[int]) -> tuple[int, ...]:
    """A grid as it is compared and kept."""
    return grid if isinstance(grid, JointGrid) else tuple(grid)


def grids_of(grid: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The grid of each modality that a grid joins; of one modality the grid itself."""
    return list(grid.parts.values()) if isinstance(grid, JointGrid) else [grid]


@dataclass(frozen=True, eq=False)
class Tokens:
    """Ragged features: `x` (N, D), one row for each position of `index`."""

    x: Tensor
    index: Indices

    def at(self, query: Indices) -> Tensor:
        """Features at the queried positions: (N of the query, D).

        The query may hold several sets per set of these tokens (M target blocks of one sample, sample after sample).

        Raises:
            ValueError: these tokens do not cover the whole grid, the grids differ, or the sets do not divide.
        """
        if not self.index.complete or self.index.grid != query.grid or len(query) % len(self.index):
            raise ValueError(
                f"cannot look up {len(query)} sets on grid {query.grid} in {len(self.index)} sets on grid "
                f"{self.index.grid} that hold {self.index.min_length}..{self.index.max_length} positions each: "
                f"targets are looked up in views that keep every position"
            )
        sample = query.sets // (len(query) // len(self.index))
        return self.x[sample * prod(query.grid) + query.values]

    def pooled(self) -> Tensor:
        """(S, D) mean of each set's tokens."""
        total = self.x.new_zeros(len(self.index), self.x.shape[1]).index_add(0, self.index.sets, self.x)
        return total / self.index.lengths[:, None]

    def dense(self) -> Tensor:
        """(S, L, D) when all sets have the same length L.

        Raises:
            ValueError: the sets differ in length.
        """
        if self.index.min_length != self.index.max_length:
            raise ValueError(f"sets hold {self.index.min_length}..{self.index.max_length} tokens, not one length")
        return self.x.view(len(self.index), self.index.max_length, -1)


@dataclass(frozen=True, eq=False)
class View:
    """What an encoder is given: `x` (B, C, *size), or such a tensor for each modality, and the positions it may see
    (`None`: all of them)."""

    x: Input
    keep: Indices | None = None

    def __len__(self) -> int:
        """Number of samples, B."""
        return len(any_part(self.x))

    @property
    def signal(self) -> Tensor:
        """(B, C, *size), for what works on one modality.

        Raises:
            TypeError: the data has several.
        """
        if not isinstance(self.x, Tensor):
            raise TypeError(
                f"this takes one modality, the data has {', '.join(self.x)}; jepa.encoders.JointViT joins them"
            )
        return self.x


def each(x: Any, change: Callable[[Any], Any]) -> Any:
    """`change` applied to an input, or to that of each modality."""
    return {name: change(part) for name, part in x.items()} if isinstance(x, Mapping) else change(x)


def any_part(x: Input) -> Tensor:
    """An input, or that of its first modality: for the axes that all share."""
    return x if isinstance(x, Tensor) else next(iter(x.values()))


@dataclass(frozen=True, eq=False)
class Task:
    """One prediction problem.

    Attributes:
        context: what is seen.
        query: where to look: target `Indices` (B * M sets, the M sets of a sample together), or a motion or action
            code (B, A).
        share: weight of this micro-batch's mean over its target tokens: (tokens here) * (processes) / (tokens of the
            global batch). Summed over accumulated micro-batches and averaged over processes, as DDP averages
            gradients, it gives exactly the mean over the global batch. 1.0 for a batch that stands alone.
    """

    context: View
    query: Indices | Tensor
    share: float = 1.0


@dataclass(frozen=True, eq=False)
class JepaBatch:
    """Input of a training step.

    Attributes:
        target: what the target encoder sees.
        tasks: the prediction problems posed on it.
        labels: named labels (B, ...) if the data has them; never used by the loss.
        index: (B,) positions of the samples in their dataset.
        skipped: samples that could not be read and were replaced, as "name: reason".
        share: of this micro-batch in the samples of its process's step, 1 / (micro-batches); for what is no mean over
            target tokens.
    """

    target: View
    tasks: list[Task]
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    index: Tensor | None = None
    skipped: tuple[str, ...] = ()
    share: float = 1.0

    def map_inputs(self, change: Callable[[Any], Any]) -> JepaBatch:
        """The same batch with `change` applied once to each distinct input, all of its modalities together."""
        return self._map(change, lambda tensor: tensor)

    def apply(self, move: Callable[[Tensor], Tensor]) -> JepaBatch:
        """The same batch with `move` applied once to each distinct tensor."""
        return self._map(lambda x: each(x, move), move)

    def to(self, device: torch.device | str) -> JepaBatch:
        return self.apply(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> JepaBatch:
        return self.apply(Tensor.pin_memory)

    def _map(self, on_input: Callable[[Any], Any], on_rest: Callable[[Tensor], Tensor]) -> JepaBatch:
        done: dict[int, Input] = {}  # the views of a sample usually share one input: move it once

        def once(x: Input) -> Input:
            return done.setdefault(id(x), on_input(x)) if id(x) not in done else done[id(x)]

        def view(v: View) -> View:
            return View(once(v.x), None if v.keep is None else v.keep.apply(on_rest))

        def query(q: Indices | Tensor) -> Indices | Tensor:
            return q.apply(on_rest) if isinstance(q, Indices) else on_rest(q)

        return JepaBatch(
            target=view(self.target),
            tasks=[Task(view(task.context), query(task.query), task.share) for task in self.tasks],
            labels={name: on_rest(label) for name, label in self.labels.items()},
            index=None if self.index is None else on_rest(self.index),
            skipped=self.skipped,
            share=self.share,
        )


@dataclass(frozen=True, eq=False)
class StepOutput:
    """Result of a training step.

    Attributes:
        loss: scalar to differentiate.
        terms: the named parts of the loss, detached scalars.
        intermediates: what probes may look at: `target` (Tokens), and per task `context` and `prediction` (Tokens) and
            `query`. Detached from the graph.
    """

    loss: Tensor
    terms: Mapping[str, Tensor]
    intermediates: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Masks:
    """A masker's answer for one task, in the form a person thinks in: boolean maps.

    Attributes:
        context: (B, *grid) what is seen.
        targets: (B, M, *grid) what is to be predicted, M sets per sample.
    """

    context: Tensor
    targets: Tensor


@dataclass(frozen=True, eq=False)
class Motions:
    """A masker's answer for one task where nothing is hidden: what happens to the view, or what is done.

    Attributes:
        motion: (B, A) float, the code that the predictor is told; A = 0 where there is nothing to tell.
    """

    motion: Tensor


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of one task, with its graph: what regularisers look at.

    Attributes:
        context: what the encoder made of what is seen.
        prediction: what the predictor answered.
        target: what the target encoder made of the target view, as a criterion sees it.
        query: what was asked.
        predictor: (tokens, query) -> tokens, to ask it more.
    """

    context: Tokens
    prediction: Tokens
    target: Tokens
    query: Indices | Tensor
    predictor: Callable[[Tokens, Indices | Tensor], Tokens]


@dataclass(frozen=True, eq=False)
class Sample:
    """One item of a dataset.

    Attributes:
        x: (C, *size), uint8 for pictures, float otherwise; of several modalities one by name.
        labels: named labels, numbers or tensors of fixed shape; empty when there are none.
        name: what a person calls it: a path, or "shapes/17".
    """

    x: Any  # Input without B; datasets of one kind need not tell a type checker which
    labels: Mapping[str, int | float | Tensor] = field(default_factory=dict)
    name: str = ""


class UnreadableSample(Exception):
    """A sample cannot be used. It is skipped, counted and named in the log, and training goes on.

    Args:
        name: the sample's name, usually its path.
        reason: what is wrong with it.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"
