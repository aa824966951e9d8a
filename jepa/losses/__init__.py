"""Criteria and regularisers: plain modules that return a scalar."""

from jepa.losses.regression import L1, L2, SmoothL1

__all__ = ["L1", "L2", "SmoothL1"]
