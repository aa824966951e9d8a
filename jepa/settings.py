"""The sections of a recipe that are plain values, with their types, ranges and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Node = Mapping[str, Any]
Count = Annotated[int, Field(ge=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


def _schedule(node: Any) -> Any:
    if not isinstance(node, Mapping):
        raise ValueError(f"a schedule has keys of its own, as in optim.lr.peak={node}")
    return node


ScheduleNode = Annotated[Node, BeforeValidator(_schedule)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


SectionT = TypeVar("SectionT", bound=Section)


Size = Count | tuple[Count, ...]


class DataSettings(Section):
    """The section `data` of a recipe."""

    size: Size | dict[str, Size]
    root: str | None
    test_root: str | None = None
    workers: int = Field(ge=0)
    dataset: Node
    transform: Node | None
    eval_transform: Node | None
    batch_transform: Node
    labelled: Node | None = Field(None, description="for probes: `train` and `test`; null: a part of `dataset`")


class OptimSettings(Section):
    """The section `optim` of a recipe: AdamW or another optimiser, with a schedule for each of its two rates."""

    lr: ScheduleNode
    weight_decay: ScheduleNode
    reference_batch: int | None = Field(
        None, ge=1, description="batch that lr is stated for: multiplied by sqrt(batch_size / this); null: as it is"
    )
    predictor_lr: float | None = Field(None, gt=0, description="the predictor's from first to last; null: it is lr")
    decay_all: bool = Field(False, description="decay biases and norms as all weights")
    betas: tuple[Beta, Beta] | None
    eps: float | None = Field(ge=0)
    optimizer: Node | None = Field(None, description="another than AdamW, called with groups, lr and weight_decay")

    @model_validator(mode="after")
    def _one(self) -> OptimSettings:
        if (self.optimizer is None) != (self.betas is not None) or (self.optimizer is None) != (self.eps is not None):
            raise ValueError("AdamW needs betas and eps; with another optimizer they must be null")
        return self


class TrainSettings(Section):
    """The section `train` of a recipe. Lengths are optimiser steps unless said otherwise."""

    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    samples: int | None = Field(None, ge=1)
    batch_size: int = Field(ge=1, description="samples per optimiser step, all processes together")
    precision: Literal["fp32", "bf16"] = "fp32"
    clip_norm: float | None = Field(None, gt=0, description="largest norm of the gradient; null: no clipping")
    clip_parts: bool = Field(False, description="clip the encoder's and the predictor's gradients separately")
    clip_after: int | str = Field(0, description="length at the start of the run in which nothing is clipped")
    accumulate: int = Field(1, ge=1, description="micro-batches per optimiser step and process")
    compile: bool = False
    log_every: int = Field(10, ge=1)
    checkpoint_every: int = Field(1000, ge=1)
    keep_last: int = Field(2, ge=1)
    keep_every: int | None = Field(None, ge=1)
    trackers: tuple[str, ...] = ()
    watch_every: int | None = Field(20, ge=1, description="steps between looks for collapse; null: never")
    stop_on_collapse: bool = False
