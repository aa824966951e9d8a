"""Features of labelled data from a model and its baselines, and the probes that run on them."""

from jepa.probing.rows import Row, chances, evaluate, probe_rows, score_trained
from jepa.probing.sources import Settings, Source, Sources, Split

__all__ = ["Row", "Settings", "Source", "Sources", "Split", "chances", "evaluate", "probe_rows", "score_trained"]
