"""Maskers: they draw what is seen and what is to be predicted."""

from jepa.maskers.ablations import RandomPatches, Rasterized, SingleBlock
from jepa.maskers.multiblock import MultiBlock
from jepa.maskers.saccade import Pair, Saccade

__all__ = ["MultiBlock", "Pair", "RandomPatches", "Rasterized", "Saccade", "SingleBlock"]
