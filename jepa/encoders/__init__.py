"""Encoders: a view in, tokens out."""

from jepa.encoders.vit import ViT

__all__ = ["ViT"]
