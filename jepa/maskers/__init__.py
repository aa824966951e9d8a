"""Maskers: they draw what is seen and what is to be predicted."""

from jepa.maskers.ablations import RandomPatches, Rasterized, SingleBlock
from jepa.maskers.bands import Bands
from jepa.maskers.clips import BlockTask, Causal, MultiBlock3D, RandomTubes
from jepa.maskers.curriculum import Curriculum
from jepa.maskers.joint import Joint, JointTask
from jepa.maskers.multiblock import MultiBlock
from jepa.maskers.saccade import Pair, Saccade

__all__ = [
    "Bands",
    "BlockTask",
    "Causal",
    "Curriculum",
    "Joint",
    "JointTask",
    "MultiBlock",
    "MultiBlock3D",
    "Pair",
    "RandomPatches",
    "RandomTubes",
    "Rasterized",
    "Saccade",
    "SingleBlock",
]
