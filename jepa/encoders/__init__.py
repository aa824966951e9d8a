"""Encoders: a view in, tokens out."""

from jepa.encoders.timm import Timm
from jepa.encoders.vit import ViT

__all__ = ["Timm", "ViT"]
