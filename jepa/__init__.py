"""jepa: pretrain Joint-Embedding Predictive Architectures on your own images, clips and sound."""

from jepa.interfaces import Encoder, Masker, Predictor, TargetUpdater
from jepa.loading import Pretrained, load
from jepa.types import Indices, JepaBatch, Masks, Sample, StepOutput, Task, Tokens, UnreadableSample, View

__version__ = "0.1.0"

__all__ = [
    "Encoder",
    "Indices",
    "JepaBatch",
    "Masker",
    "Masks",
    "Predictor",
    "Pretrained",
    "Sample",
    "StepOutput",
    "TargetUpdater",
    "Task",
    "Tokens",
    "UnreadableSample",
    "View",
    "load",
]
