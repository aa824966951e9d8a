"""Batches as a pure function of (seed, k): no result depends on workers, ranks or restarts."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from jepa import seeding
from jepa.data.base import DataError, SampleDataset
from jepa.data.transforms import Transform
from jepa.interfaces import Masker
from jepa.seeding import Stream
from jepa.types import (
    Indices,
    Input,
    JepaBatch,
    Masks,
    Motions,
    Sample,
    Task,
    UnreadableSample,
    View,
    as_grid,
    each,
)

MAX_CONSECUTIVE_UNREADABLE = 64
LAST_SECONDS = 30  # that a data worker lives on after SIGTERM


class Batches(Dataset[JepaBatch]):
    """Item k is this process's k-th micro-batch, k = 0, 1, ... without end.

    The optimiser step of item k is `k // accumulate + 1`. The global batch of a step is cut in `accumulate *
    world_size` equal slices, and this process takes number `(k % accumulate) * world_size + rank`. Samples come from
    one random permutation of the dataset after another; nothing is dropped where they meet.

    A sample that cannot be read is replaced by the next readable one of its epoch and named in `JepaBatch.skipped`.

    Args:
        dataset: raw samples.
        transform: applied to each sample's x; None leaves it as it is.
        masker: draws the prediction problems of each global batch.
        grid: the encoder's grid of tokens for transformed samples.
        seed: seed of the run.
        batch_size: samples per optimiser step, of all processes and micro-batches together.
        rank, world_size: this process and the number of processes.
        accumulate: micro-batches per optimiser step.
        steps: optimiser steps of the whole run, for maskers that change with them; None: it is not known.

    Raises:
        DataError: the dataset is empty, or the batch cannot be cut in equal slices.
    """

    def __init__(
        self,
        *,
        dataset: SampleDataset,
        transform: Transform | None,
        masker: Masker,
        grid: Sequence[int],
        seed: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        steps: int | None = None,
    ) -> None:
        slices = accumulate * world_size
        if batch_size < 1 or batch_size % slices:
            nearest = [size for size in (batch_size // slices * slices, ceil(batch_size / slices) * slices) if size > 0]
            raise DataError(
                f"a batch of {batch_size} cannot be cut in {world_size} processes x {accumulate} micro-batches = "
                f"{slices} equal slices; nearest batch sizes: {' or '.join(map(str, nearest)) or slices}"
            )
        if not 0 <= rank < world_size:
            raise DataError(f"rank {rank} is not one of {world_size} processes")
        if len(dataset) == 0:
            raise DataError(f"the dataset {type(dataset).__name__} is empty")
        self.dataset, self.transform, self.masker, self.grid = dataset, transform, masker, as_grid(grid)
        self.seed, self.batch_size, self.rank, self.world_size = seed, batch_size, rank, world_size
        self.accumulate, self.slice_size, self.steps = accumulate, batch_size // slices, steps
        self._orders: dict[int, Tensor] = {}
        self._drawn: tuple[int, Sequence[Masks | Motions]] = (0, [])

    def __getitem__(self, k: int) -> JepaBatch:
        """Micro-batch k.

        Raises:
            DataError: too many unreadable samples in a row, samples of unequal shape, or unusable masks.
        """
        step = k // self.accumulate + 1
        start = (k % self.accumulate * self.world_size + self.rank) * self.slice_size
        first = (step - 1) * self.batch_size + start
        skipped: list[str] = []
        with seeding.isolated(self.seed, Stream.SAMPLE, first):  # once: it takes as long as a tenth of a picture
            picked = [self._sample(position, skipped) for position in range(first, first + self.slice_size)]
        masks, shares = [], []
        for drawn in self._global_masks(step):
            masks.append(some(drawn, start, start + self.slice_size))
            shares.append(_predictions(masks[-1]) * self.world_size / _predictions(drawn))
        index = torch.tensor([i for i, _ in picked])
        return collate(
            [sample for _, sample in picked],
            masks,
            shares,
            1 / self.accumulate,
            grid=self.grid,
            index=index,
            skipped=skipped,
        )

    def _sample(self, position: int, skipped: list[str]) -> tuple[int, Sample]:
        """The transformed sample at `position` of the endless stream and its place in the dataset."""
        size = len(self.dataset)
        epoch, offset = divmod(position, size)
        order = self._order(epoch)
        failed: list[str] = []
        for attempt in range(min(size, MAX_CONSECUTIVE_UNREADABLE)):
            i = int(order[(offset + attempt) % size])
            try:
                seeding.reseed(self.seed, Stream.SAMPLE, position)
                sample = self._transformed(self.dataset[i])
            except UnreadableSample as unreadable:
                failed.append(str(unreadable))
            else:
                skipped.extend(failed)
                return i, sample
        raise DataError(
            f"{len(failed)} samples in a row are unreadable"
            f"{' (the whole dataset)' if len(failed) == size else ''}: {'; '.join(failed[:3])}"
            f"{'; ...' if len(failed) > 3 else ''}"
        )

    def _transformed(self, sample: Sample) -> Sample:
        if self.transform is None:
            return sample
        try:
            return Sample(self.transform(sample.x), sample.labels, sample.name)
        except Exception as error:
            shown = each(sample.x, lambda x: f"{x.dtype} {tuple(x.shape)}")
            error.add_note(f"in the transform of sample {sample.name}, {shown}")
            raise

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            order = torch.randperm(len(self.dataset), generator=seeding.generator(self.seed, Stream.ORDER, epoch))
            last = list(self._orders.items())[-1:]  # a batch may span two epochs
            self._orders = dict([*last, (epoch, order.int() if len(order) < 2**31 else order)])
        return self._orders[epoch]

    def _global_masks(self, step: int) -> Sequence[Masks | Motions]:
        """Masks of the whole global batch, drawn once for consecutive micro-batches of a step."""
        if self._drawn[0] != step:
            generator = seeding.generator(self.seed, Stream.MASK, step)
            masker = self.masker if self.steps is None else self.masker.at((step - 1) / self.steps)
            drawn = masker.sample(self.batch_size, self.grid, generator)
            if not drawn:
                raise DataError(f"{type(self.masker).__name__} posed no task at step {step}")
            for task, masks in enumerate(drawn):
                self._check(masks, f"{type(self.masker).__name__}, task {task} of step {step}")
            self._drawn = (step, drawn)
        return self._drawn[1]

    def _check(self, masks: Masks | Motions, where: str) -> None:
        if isinstance(masks, Motions):
            if masks.motion.ndim != 2 or len(masks.motion) != self.batch_size or not masks.motion.is_floating_point():
                raise DataError(
                    f"{where}: expected motions ({self.batch_size}, A) of floats, "
                    f"got {masks.motion.dtype} {tuple(masks.motion.shape)}"
                )
            return
        for name, maps, sets in (("context", masks.context, ()), ("target", masks.targets, masks.targets.shape[1:2])):
            expected = (self.batch_size, *sets, *self.grid)
            if maps.dtype != torch.bool or tuple(maps.shape) != expected or 0 in sets:
                raise DataError(
                    f"{where}: expected boolean {name} maps {expected}, got {maps.dtype} {tuple(maps.shape)}"
                )
            empty = (~maps.flatten(1 + len(sets)).any(-1)).nonzero().tolist()
            if empty:
                which = f"{name} set {empty[0][1]}" if sets else name
                raise DataError(f"{where}: the {which} of sample {empty[0][0]} of the global batch is empty")


def some(drawn: Masks | Motions, start: int, stop: int) -> Masks | Motions:
    """Of samples start, ..., stop - 1."""
    if isinstance(drawn, Motions):
        return Motions(drawn.motion[start:stop])
    return Masks(drawn.context[start:stop], drawn.targets[start:stop])


def _predictions(drawn: Masks | Motions) -> int:
    """How many the loss is the mean of: target tokens, or samples where all have as many."""
    return len(drawn.motion) if isinstance(drawn, Motions) else int(drawn.targets.sum())


def pose(
    x: Input, drawn: Masks | Motions, grid: tuple[int, ...] | None = None, share: float = 1.0, task: int = 0
) -> Task:
    """The task, the so-manieth of its batch, that a masker's answer poses on x, whose grid is that of the answer's maps
    unless `grid` says more."""
    if isinstance(drawn, Motions):
        return Task(View(x), drawn.motion, share)
    query = replace(Indices.from_maps(drawn.targets.flatten(0, 1), grid), task=task)
    return Task(View(x, Indices.from_maps(drawn.context, grid)), query, share)


def collate(
    samples: Sequence[Sample],
    masks: Sequence[Masks | Motions],
    shares: Sequence[float],
    share: float = 1.0,
    *,
    grid: tuple[int, ...] | None = None,
    index: Tensor | None = None,
    skipped: Sequence[str] = (),
) -> JepaBatch:
    """One batch in which all views share one x (B, C, *size), or one for each modality.

    Args:
        samples: B of them, equal in shape and in the names of their labels.
        masks: of these samples, or motions, one for each task.
        shares: (tokens here) * (processes) / (tokens of the global batch), one for each task, counted over target
            maps. Gradients summed over a step's micro-batches and averaged over its processes are then those of the
            mean over all target tokens of the global batch.
        share: of these samples in those of the process's step.
        grid: that the masks lie on, where their shape does not say it: a `JointGrid`.
        index: (B,) positions of the samples in their dataset.
        skipped: samples that were replaced, as "name: reason".

    Raises:
        DataError: samples differ in shape, type or labels.
    """
    x = _stack_inputs(samples)
    names = samples[0].labels.keys()
    for sample in samples:
        if sample.labels.keys() != names:
            raise DataError(
                f"{samples[0].name} has labels {sorted(names)}, but {sample.name} has {sorted(sample.labels)}"
            )
    labels = {
        name: _stack(
            [torch.as_tensor(sample.labels[name]) for sample in samples],
            samples,
            f"label {name!r}",
            "labels need one shape",
        )
        for name in names
    }
    tasks = [pose(x, drawn, grid, part, task) for task, (drawn, part) in enumerate(zip(masks, shares, strict=True))]
    return JepaBatch(View(x), tasks, labels, index, tuple(skipped), share)


def _stack_inputs(samples: Sequence[Sample]) -> Input:
    advice = "use a transform with a fixed size"
    first = samples[0].x
    if isinstance(first, Tensor):
        return _stack([sample.x for sample in samples], samples, "x", advice)
    return {name: _stack([sample.x[name] for sample in samples], samples, f"x of {name!r}", advice) for name in first}


def _stack(tensors: list[Tensor], samples: Sequence[Sample], what: str, advice: str) -> Tensor:
    first = tensors[0]
    for tensor, sample in zip(tensors, samples, strict=True):
        if tensor.shape != first.shape or tensor.dtype != first.dtype:
            raise DataError(
                f"cannot stack {what}: {first.dtype} {tuple(first.shape)} of {samples[0].name} and "
                f"{tensor.dtype} {tuple(tensor.shape)} of {sample.name}; {advice}"
            )
    return torch.stack(tensors)


def loader(
    batches: Batches, start: int, stop: int, *, workers: int = 0, pin_memory: bool = False
) -> DataLoader[JepaBatch]:
    """Micro-batches start, ..., stop - 1 in order, prepared ahead by `workers` processes (0: by this one)."""
    return DataLoader(
        batches,
        batch_size=None,
        sampler=range(start, stop),
        collate_fn=_as_is,
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        prefetch_factor=2 if workers else None,
        worker_init_fn=_leave_signals_to_the_main_process,
        generator=torch.Generator(),  # otherwise the loader draws from the trainer's global one
    )


def _as_is(batch: Any) -> Any:
    return batch


def _leave_signals_to_the_main_process(_worker: int) -> None:
    """A terminal or a scheduler signals workers too, but the main process still needs them for its last step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(LAST_SECONDS))
