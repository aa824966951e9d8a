"""Inputs of several modalities: what is done to one of them, done to each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from jepa.data.base import DataError
from jepa.types import Input, JepaBatch, View


def each_modality(transforms: Mapping[str, Callable[[Tensor], Tensor]]) -> EachModality:
    """A transform of samples of several modalities: one for each that needs any; the others stay as they are."""
    return EachModality(transforms)


class EachModality:
    """See `each_modality`."""

    def __init__(self, transforms: Mapping[str, Callable[[Tensor], Tensor]]) -> None:
        self.transforms = dict(transforms)

    def __call__(self, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """x: by modality.

        Raises:
            DataError: the sample lacks a modality that has a transform.
        """
        changed = {name: transform(_part(x, name)) for name, transform in self.transforms.items()}
        return {**x, **changed}


def keep_modalities(names: Sequence[str]) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """A transform that leaves out what is not named: films without their sound, say.

    It raises DataError for a sample that lacks one of them.
    """
    return partial(_kept, names=tuple(names))


def _kept(x: Mapping[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: _part(x, name) for name in names}


def _part(x: Mapping[str, Tensor], name: str) -> Tensor:
    if not isinstance(x, Mapping) or name not in x:
        has = ", ".join(x) if isinstance(x, Mapping) else "one modality, without a name"
        raise DataError(f"data.transform or data.eval_transform names {name!r}, the samples have {has}")
    return x[name]


class JointInputs(nn.Module):
    """The batch transform of several modalities: `Normalize` for clips and `LogMel` for sound, say.

    Args:
        parts: batch transforms, by modality.
    """

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)

    def forward(self, batch: JepaBatch) -> JepaBatch:
        """The batch with each of its inputs transformed, as each part does it in training."""
        return batch.map_inputs(self._trained)

    def raw_shape(self, shape: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Of the samples from which it makes inputs (C, *size) of those shapes, by modality."""
        return {name: self._of(name).raw_shape(part) for name, part in shape.items()}

    def normalize(self, x: Input) -> dict[str, Tensor]:
        """Each modality that is there, as its own transform normalises it.

        Raises:
            ValueError: a modality without a transform, or inputs without names.
        """
        return {name: self._of(name).normalize(part) for name, part in self._named(x).items()}

    def _trained(self, x: Input) -> dict[str, Tensor]:
        """Errors as `normalize`."""
        named = self._named(x).items()
        return {name: self._of(name)(JepaBatch(View(part), [])).target.signal for name, part in named}

    def _named(self, x: Input) -> Mapping[str, Tensor]:
        if isinstance(x, Tensor):
            raise ValueError(f"inputs need the names of their modalities: {', '.join(self.parts)}")
        return x

    def _of(self, name: str) -> Any:
        if name not in self.parts:
            raise ValueError(f"data.batch_transform has parts for {', '.join(self.parts)}, none for {name!r}")
        return self.parts[name]
