"""Curves of a run, and the verdict on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

from torch import Tensor

from jepa.probes.diagnostics import LEAST_SAMPLES, correlation_dimension, rank_me
from jepa.probes.verdict import Verdict, judge
from jepa.probes.watch import LOOKS
from jepa.report.blocks import Section, Table
from jepa.report.charts import Chart, line_chart
from jepa.report.source import Material, Run

Rows = Sequence[Mapping[str, Any]]

SCHEDULES = {
    "Learning rate": ("lr",),
    "Weight decay": ("weight_decay",),
    "Momentum of the target": ("momentum",),
}
PANEL = {
    "Effective rank": (("target_rank", "context_rank"), "RankMe of tokens. Higher is better."),
    "Effective rank, share": (
        ("target_rank_share", "context_rank_share"),
        "Of the largest possible one. A fall towards 0 is a collapse.",
    ),
    "Standard deviation": (("target_std",), "Over target tokens, mean over dimensions. 0: one vector."),
    "Cosine between tokens and samples": (("target_cosine", "sample_cosine"), "Mean over pairs. 1: all are alike."),
    "Position share": (
        ("position_share",),
        "Of the targets' variance, what position alone explains. Near 1: content plays no part.",
    ),
    "Agreement": (
        ("agreement", "agreement_same_position", "agreement_anywhere"),
        "Cosine of predictions with their target, another sample's at that position, any. The gap is what was learned.",
    ),
    "Agreement gain": (("agreement_gain",), "Of what was left to gain over another sample's target. 0: nothing."),
}


def panel_history(rows: Rows) -> list[dict[str, float]]:
    """The collapse panel's measurements among the rows of the metrics."""
    names = {name for group, _ in PANEL.values() for name in group}
    found = [{k: v for k, v in row.items() if k in names or k.startswith(("knn/", "knn_chance/"))} for row in rows]
    return [row for row in found if row]


def verdict(run: Run) -> Verdict | None:
    """The verdict on the run; None if its panel was not measured."""
    history = panel_history(run.rows)
    return judge(history) if history else None


def training(run: Run, material: Material) -> Section:
    if not run.rows:
        return Section("curves", "Training", ["There is no metrics.jsonl in this run directory."])
    losses = {"loss": "all"} | {name: name[5:] for name in run.rows[-1] if name.startswith("loss_")}
    charts = [chart(run.rows, "Loss", list(losses), "It only says how well predictions fit; see the panel below.")]
    moves = any(0 < row.get("momentum", 0) < 1 for row in run.rows)  # a target that is no average has 0 or 1 throughout
    charts += [chart(run.rows, title, names) for title, names in SCHEDULES.items() if moves or names != ("momentum",)]
    return Section("curves", "Training", ["Loss and schedules. Point at a chart to read its numbers."], charts)


def panel(run: Run, material: Material) -> Section:
    history, table = panel_history(run.rows), dimensions(material.pooled)
    if not history:
        return Section("panel", "Collapse panel", ["The panel was not measured during this run."], table=table)
    rows = [row for row in run.rows if panel_history([row])]
    groups = [(title, names, note) for title, (names, note) in PANEL.items()]
    for name in dict.fromkeys(n.partition("/")[2] for row in history for n in row if n.startswith("knn/")):
        note = f"Accuracy of a vote among earlier samples, mean of {LOOKS} looks; chance: the most frequent class."
        groups.append((f"Online kNN: {name}", (f"knn/{name}", f"knn_chance/{name}"), note))
    charts = [
        chart(rows, title, names, note) for title, names, note in groups if any(n in r for r in rows for n in names)
    ]
    text = (
        "Is it learning, or has it found a way not to? A falling loss says neither; these do. They are measured on "
        "training batches; the two numbers of the weights shown, on mean embeddings of samples."
    )
    return Section("panel", "Collapse panel", [text], charts, table=table)


def dimensions(pooled: Tensor) -> Table:
    """How many dimensions mean embeddings (n, D) fill."""
    rank = f"{rank_me(pooled):.1f} of {min(pooled.shape)}: directions that they spread over (RankMe)"
    if len(pooled) < LEAST_SAMPLES:
        found = f"needs {LEAST_SAMPLES} samples or more; this page looked at {len(pooled)}"
    else:
        found = f"{correlation_dimension(pooled):.1f}: coordinates that tell near neighbours apart, along curves too"
    return Table(("", ""), [("effective rank", rank), ("correlation dimension", found)])


def throughput(run: Run, material: Material) -> Section:
    rates = [row["samples_per_second"] for row in run.rows if "samples_per_second" in row]
    if not rates:
        return Section("throughput", "Throughput", ["It was not measured."])
    waits = [row["data_wait"] for row in run.rows if "data_wait" in row]
    text = f"{median(rates):,.0f} samples per second at the median"
    if waits:
        text += f"; {median(waits):.1%} of the time was spent waiting for data"
    charts = [
        chart(run.rows, "Samples per second", ("samples_per_second",)),
        chart(
            run.rows, "Waiting for data", ("data_wait",), "Share of the time. Above a few percent: more data.workers."
        ),
    ]
    return Section("throughput", "Throughput", [f"{text}."], charts)


def chart(rows: Rows, title: str, names: Sequence[str], note: str = "") -> Chart:
    """Named columns of the metrics against the step; accuracies on single batches as means of the last looks."""
    series = {}
    for name in names:
        points = [(float(row["step"]), float(row[name])) for row in rows if name in row]
        if name.startswith("knn"):
            points = [(x, mean(y for _, y in points[max(0, i - LOOKS + 1) : i + 1])) for i, (x, _) in enumerate(points)]
        if points:
            series[name.replace("knn_chance/", "chance: ").replace("knn/", "kNN: ").replace("_", " ")] = points
    return line_chart(title, series, note)
