"""What was learned: probes on frozen features, and a panel that watches for collapse."""

from jepa.probes.attentive import AttentiveClassifier, AttentivePooler
from jepa.probes.attentive_fit import AttentiveProbe, AttentiveSettings, attentive_probe, fit_attentive
from jepa.probes.base import Labelled, Score
from jepa.probes.diagnostics import (
    agreement,
    correlation_dimension,
    mean_cosine,
    position_variance,
    rank_me,
    spread,
)
from jepa.probes.knn import knn_predict, knn_probe
from jepa.probes.linear import LinearProbe, LinearSettings, fit_linear, linear_probe
from jepa.probes.lowshot import LowShot, low_shot
from jepa.probes.multilabel import average_precision, mean_average_precision, multilabel_probe
from jepa.probes.panel import CollapsePanel, measure
from jepa.probes.ridge import ridge_probe
from jepa.probes.splits import held_out_split, label_draw, random_split
from jepa.probes.verdict import Thresholds, Verdict, judge

__all__ = [
    "AttentiveClassifier",
    "AttentivePooler",
    "AttentiveProbe",
    "AttentiveSettings",
    "CollapsePanel",
    "Labelled",
    "LinearProbe",
    "LinearSettings",
    "LowShot",
    "Score",
    "Thresholds",
    "Verdict",
    "agreement",
    "attentive_probe",
    "average_precision",
    "correlation_dimension",
    "fit_attentive",
    "fit_linear",
    "held_out_split",
    "judge",
    "knn_predict",
    "knn_probe",
    "label_draw",
    "linear_probe",
    "low_shot",
    "mean_average_precision",
    "mean_cosine",
    "measure",
    "multilabel_probe",
    "position_variance",
    "random_split",
    "rank_me",
    "ridge_probe",
    "spread",
]
