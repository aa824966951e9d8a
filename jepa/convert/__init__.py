"""Weights to and from other projects: the published checkpoints, Hugging Face's transformers, timm."""

from jepa.convert.keys import ConversionError, Report
from jepa.convert.probes import read_probe
from jepa.convert.reading import Told, read
from jepa.convert.writing import write

__all__ = ["ConversionError", "Report", "Told", "read", "read_probe", "write"]
