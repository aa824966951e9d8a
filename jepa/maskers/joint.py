"""Tasks within and across modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import torch
from torch import Tensor

from jepa.interfaces import Masker
from jepa.types import JointGrid, Masks


@dataclass(frozen=True)
class JointTask:
    """What is asked of several modalities.

    Attributes:
        see: modalities that the context is taken from: of one that is predicted too, what its masker leaves to see; of
            another, everything.
        predict: modalities whose masker's targets are predicted.
    """

    see: tuple[str, ...]
    predict: tuple[str, ...]


class Joint(Masker):
    """One masker for each modality, and tasks that say which modalities are seen and which predicted: within a
    modality, or one from the other.

    Each modality is masked once for each sample; all tasks share that.

    Args:
        maskers: by modality, each for one task on the grid of that modality.
        tasks: by name; the i-th is told apart by a predictor's i-th mask token.

    Raises:
        ValueError: no task, a task that sees or predicts nothing, or a modality without a masker.
    """

    def __init__(self, *, maskers: Mapping[str, Masker], tasks: Mapping[str, JointTask]) -> None:
        if not tasks:
            raise ValueError("tasks is empty: Joint needs at least one")
        for name, task in tasks.items():
            unknown = [modality for modality in (*task.see, *task.predict) if modality not in maskers]
            if unknown or not task.see or not task.predict:
                raise ValueError(
                    f"tasks.{name} sees {list(task.see)} and predicts {list(task.predict)}: each needs one or more of "
                    f"{', '.join(maskers) or 'maskers, of which there are none'}"
                )
        self.maskers, self.tasks = dict(maskers), dict(tasks)

    def check(self, grid: tuple[int, ...]) -> None:
        """Refuse grids that the maskers cannot serve.

        Raises:
            ValueError: the grid is not that of these modalities, or one that a masker refuses.
        """
        for name, masker in self.maskers.items():
            try:
                masker.check(self._parts(grid)[name])
            except ValueError as error:
                raise ValueError(f"maskers.{name}: {error}") from error

    def at(self, progress: float) -> Joint:
        """Itself, with each masker as it is then."""
        return self._with({name: masker.at(progress) for name, masker in self.maskers.items()})

    def kinds(self) -> Sequence[tuple[float, Masker]]:
        """Every combination of the kinds of its maskers."""
        found = product(*(masker.kinds() for masker in self.maskers.values()))
        return [
            (prod(share for share, _ in kinds), self._with(dict(zip(self.maskers, (m for _, m in kinds), strict=True))))
            for kinds in found
        ]

    def asks(self, seen: str, asked: str) -> int:
        """Number of the task that is nearest to asking for one modality from another alone: one that predicts it, sees
        the other, and sees little else."""

        def far(number: int) -> tuple[bool, bool, int]:
            task = tasks[number]
            return asked not in task.predict, seen not in task.see, len(task.see)

        tasks = list(self.tasks.values())
        return min(range(len(tasks)), key=far)

    def sample(self, batch_size: int, grid: tuple[int, ...], generator: torch.Generator) -> list[Masks]:
        """One entry for each task: context (B, G) and targets (B, M, G), where G counts the cells of all modalities and
        M the target sets of all that are predicted.

        Raises:
            ValueError: as in `check`, or a masker poses several tasks or none that hides anything.
        """
        drawn = {}
        for name, part in self._parts(grid).items():
            posed = self.maskers[name].sample(batch_size, part, generator)
            if len(posed) != 1 or not isinstance(posed[0], Masks):
                raise ValueError(f"maskers.{name}: {type(self.maskers[name]).__name__} does not pose one task of masks")
            drawn[name] = Masks(posed[0].context.flatten(1), posed[0].targets.flatten(2))
        return [_posed(task, drawn) for task in self.tasks.values()]

    def _with(self, maskers: Mapping[str, Masker]) -> Joint:
        return self if maskers == self.maskers else Joint(maskers=maskers, tasks=self.tasks)

    def _parts(self, grid: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        if not isinstance(grid, JointGrid) or set(grid.parts) != set(self.maskers):
            raise ValueError(
                f"maskers are given for {', '.join(self.maskers)}, the encoder's grid is "
                f"{grid.parts if isinstance(grid, JointGrid) else tuple(grid)}"
            )
        return grid.parts


def _posed(task: JointTask, drawn: Mapping[str, Masks]) -> Masks:
    seen, asked = [], []
    for name, masks in drawn.items():
        both = name in task.predict
        whole = masks.context if both else torch.ones_like(masks.context)
        seen.append(whole if name in task.see else torch.zeros_like(whole))
        if both:
            asked.append(_among(drawn, name, masks.targets))
    return Masks(torch.cat(seen, dim=1), torch.cat(asked, dim=1))


def _among(drawn: Mapping[str, Masks], name: str, targets: Tensor) -> Tensor:
    """Targets (B, M, cells of a modality) among the cells of all of them."""
    parts = [
        targets if other == name else targets.new_zeros(*targets.shape[:2], masks.context.shape[1])
        for other, masks in drawn.items()
    ]
    return torch.cat(parts, dim=2)
