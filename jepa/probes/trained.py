"""A trained attentive probe in a folder: `probe.safetensors` and what it is in plain JSON, `probe.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from jepa.build import RecipeError
from jepa.checkpoint import load_weights, save_weights, verify
from jepa.nn.blocks import Activation
from jepa.probes.attentive import AttentiveClassifier

CONFIG, WEIGHTS = "probe.json", "probe.safetensors"


class HeadSettings(BaseModel):
    """Arguments of the `AttentiveClassifier`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    classes: int = Field(ge=2)
    dim: int = Field(ge=1)
    heads: int = Field(ge=1)
    depth: int = Field(1, ge=1)
    mlp_ratio: float = Field(4.0, gt=0)
    norm_eps: float = Field(1e-5, gt=0)
    activation: Activation = "gelu"


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal["jepa probe 1"] = "jepa probe 1"
    source: str
    head: HeadSettings
    names: list[str] | None
    weights: dict[str, Any]


@dataclass(frozen=True, eq=False)
class TrainedProbe:
    """A probe that is scored as it is.

    Attributes:
        head: tokens (B, L, D) to logits (B, K), in evaluation mode.
        settings: that it was built with.
        names: of its classes 0 to K - 1, where they are known.
        source: where it comes from.
    """

    head: AttentiveClassifier
    settings: HeadSettings
    names: Sequence[str] | None
    source: str

    def __post_init__(self) -> None:
        self.head.eval().requires_grad_(False)

    def codes(self, names: Sequence[str]) -> Tensor:
        """Whose class each output is, (K,), among K classes of a data set: by name where both have the same names, else
        by number."""
        order = list(range(len(names)))
        if self.names is not None and sorted(self.names) == sorted(names) and len(set(names)) == len(names):
            order = [list(names).index(name) for name in self.names]
        return torch.tensor(order)

    def save(self, folder: str | Path) -> None:
        """Write both files; the folder may hold a model too."""
        folder = Path(folder).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        weights = save_weights(self.head.state_dict(), folder / WEIGHTS)
        names = None if self.names is None else list(self.names)
        config = _Config(source=self.source, head=self.settings, names=names, weights=weights)
        (folder / CONFIG).write_text(config.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> TrainedProbe:
        """The inverse of `save`; nothing is unpickled or run.

        Raises:
            RecipeError: there is no probe, or its JSON is no description of one.
            CheckpointError: the weights are damaged, or are not what the JSON says.
        """
        folder = Path(folder).expanduser()
        where = folder / CONFIG
        if not where.is_file():
            raise RecipeError(
                f"{folder} holds no trained probe: there is no {CONFIG} (python -m jepa.convert makes one)"
            )
        try:
            config = _Config.model_validate_json(where.read_bytes())
        except (OSError, ValidationError) as error:
            raise RecipeError(f"{where} cannot be read: {_first(error)}") from error
        if config.names is not None and len(config.names) != config.head.classes:
            raise RecipeError(f"{where} has {len(config.names)} names for {config.head.classes} classes")
        verify(folder / WEIGHTS, config.weights)
        try:
            head = AttentiveClassifier(**config.head.model_dump())
        except ValueError as error:
            raise RecipeError(f"{where}: {error}") from error
        load_weights(folder / WEIGHTS, head)
        return cls(head, config.head, config.names, config.source)


def _first(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
