"""Maskers: they draw what is seen and what is to be predicted."""

from jepa.maskers.ablations import RandomPatches, Rasterized, SingleBlock
from jepa.maskers.multiblock import MultiBlock

__all__ = ["MultiBlock", "RandomPatches", "Rasterized", "SingleBlock"]
