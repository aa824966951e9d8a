"""Criteria and regularisers: plain modules that return scalars."""

from jepa.losses.regression import L1, L2, SmoothL1
from jepa.losses.regularizers import VarianceCovariance

__all__ = ["L1", "L2", "SmoothL1", "VarianceCovariance"]
