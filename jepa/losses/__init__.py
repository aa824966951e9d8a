"""Criteria and regularisers: plain modules that return scalars."""

from jepa.losses.redundancy import BarlowTwins
from jepa.losses.regression import L1, L2, Cosine, Huber, Lp, SmoothL1
from jepa.losses.regularizers import CycleConsistency, MeanInvariance, PredictionVariance, VarianceCovariance
from jepa.losses.sigreg import SIGReg

__all__ = [
    "L1",
    "L2",
    "BarlowTwins",
    "Cosine",
    "CycleConsistency",
    "Huber",
    "Lp",
    "MeanInvariance",
    "PredictionVariance",
    "SIGReg",
    "SmoothL1",
    "VarianceCovariance",
]
