"""jepa: pretrain Joint-Embedding Predictive Architectures on your own images, clips and sound."""

from jepa.interfaces import Encoder, Masker, Predictor, Regularizer, TargetUpdater
from jepa.loading import Pretrained, load
from jepa.types import (
    Indices,
    JepaBatch,
    Masks,
    Motions,
    Outcome,
    Sample,
    StepOutput,
    Task,
    Tokens,
    UnreadableSample,
    View,
)

__version__ = "0.1.0"

__all__ = [
    "Encoder",
    "Indices",
    "JepaBatch",
    "Masker",
    "Masks",
    "Motions",
    "Outcome",
    "Predictor",
    "Pretrained",
    "Regularizer",
    "Sample",
    "StepOutput",
    "TargetUpdater",
    "Task",
    "Tokens",
    "UnreadableSample",
    "View",
    "load",
]
