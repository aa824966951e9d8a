"""Encoders: a view in, tokens out."""

from jepa.encoders.energy import EnergyTransformer
from jepa.encoders.joint import JointViT, Patches
from jepa.encoders.timm import Timm
from jepa.encoders.vit import ViT

__all__ = ["EnergyTransformer", "JointViT", "Patches", "Timm", "ViT"]
