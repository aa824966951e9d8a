"""Predictors: context tokens and a query in, predicted tokens out."""

from jepa.predictors.absent import NoPredictor
from jepa.predictors.conv import ConvPredictor
from jepa.predictors.motion import MLP, Identity, MotionMLP, MotionTransformer
from jepa.predictors.vit import ViTPredictor

__all__ = ["MLP", "ConvPredictor", "Identity", "MotionMLP", "MotionTransformer", "NoPredictor", "ViTPredictor"]
