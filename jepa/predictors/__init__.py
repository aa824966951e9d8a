"""Predictors: context tokens and a query in, predicted tokens out."""

from jepa.predictors.vit import ViTPredictor

__all__ = ["ViTPredictor"]
