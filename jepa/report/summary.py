"""A run in words and numbers."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median, stdev
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

import jepa
from jepa.build import TARGET
from jepa.report.blocks import Section, Table
from jepa.report.charts import number_text
from jepa.report.source import Material, Run
from jepa.types import JointGrid, each

FEATURES = {"model": "this model", "random_init": "random weights", "pixels": "raw pixels", "chance": "chance"}


@dataclass(frozen=True)
class Head:
    """The top of the page: a name, a line below it, what state the run is in, and a few large numbers."""

    title: str
    subtitle: str
    state: str
    finished: bool
    tiles: Sequence[tuple[str, str]]


def head(run: Run, material: Material) -> Head:
    recipe, step, model = run.recipe, run.pretrained.step, run.pretrained.model
    last = run.rows[-1] if run.rows else {}
    rates = [row["samples_per_second"] for row in run.rows if "samples_per_second" in row]
    tiles = [
        ("step", f"{step:,}"),
        ("samples", f"{step * run.settings.batch_size:,}"),
        ("encoder parameters", number_text(float(f"{parameters(model.encoder):.3g}"))),
        ("loss", number_text(float(f"{last['loss']:.4g}")) if "loss" in last else "not logged"),
        ("samples/s", f"{median(rates):,.0f}" if rates else "not logged"),
    ]
    finished = step >= run.steps
    state = "finished" if finished else f"step {step:,} of {run.steps:,}"
    source = run.pretrained.facts.get("source")
    if source is not None:
        finished, state, tiles[:2] = True, f"converted from {source}", []
    kinds = (part_name(recipe["encoder"]), part_name(recipe["data"]["dataset"]), part_name(recipe["masker"]))
    return Head(str(recipe["recipe"]), " · ".join(kinds), state, finished, tiles)


def facts(run: Run, material: Material) -> Section:
    """What was run, on what, and with which versions."""
    recipe, settings, size = run.recipe, run.settings, len(run.dataset)
    samples = run.steps * settings.batch_size
    lines = [
        ("run", str(run.path)),
        (
            "length",
            f"{run.steps:,} steps of {settings.batch_size:,} samples = {samples / size:,.1f} passes over the data",
        ),
        ("weights shown", weights_shown(run)),
        ("data", f"{size:,} samples: {describe(recipe['data']['dataset'])}"),
        *inputs(run, material),
        *((name, part(recipe[name], module)) for name, module in modules(run).items()),
        ("masker", describe(recipe["masker"])),
        ("loss", describe(recipe["criterion"])),
        *((f"regulariser {name}", describe(node)) for name, node in recipe["regularizers"].items()),
        ("precision", settings.precision),
        ("versions", f"trained with torch {run.torch}; this page: {versions()}"),
        ("skipped", skipped(run, material)),
    ]
    details = ("The whole recipe", OmegaConf.to_yaml(OmegaConf.create(dict(recipe))))
    return Section("run", "What was run", table=Table(("", ""), lines), details=details)


def inputs(run: Run, material: Material) -> list[tuple[str, str]]:
    """Sizes, channels and tokens of what the encoder is given, for each modality."""
    grid = run.pretrained.model.teacher.grid(each(material.source, lambda part: part.shape[2:]))
    parts = grid.parts if isinstance(grid, JointGrid) else {"": grid}
    lines = []
    for name, cells in parts.items():
        x = material.source[name] if isinstance(material.source, Mapping) else material.source
        channels = "1 channel" if x.shape[1] == 1 else f"{x.shape[1]} channels"
        lines.append((f"input {name}".strip(), f"{times(x.shape[2:])} with {channels}, {times(cells)} tokens"))
    return lines


def weights_shown(run: Run) -> str:
    trained, source = run.pretrained.step, run.pretrained.facts.get("source")
    if source is not None:
        return f"converted from {source}"
    return f"of step {trained:,}" + ("" if trained == run.steps else f", {trained / run.steps:.0%} of the run")


def modules(run: Run) -> dict[str, nn.Module | None]:
    model = run.pretrained.model
    return {"encoder": model.encoder, "predictor": model.predictor, "target": model.target_encoder}


def part(node: Mapping[str, Any], module: nn.Module | None) -> str:
    text = describe(node)
    return f"{text}; {parameters(module):,} parameters" if module is not None else text


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def part_name(node: Mapping[str, Any]) -> str:
    return str(node[TARGET]).rpartition(".")[2]


def describe(node: Mapping[str, Any]) -> str:
    """A recipe's node as text: its class, and what it is given."""
    given = [f"{key} {value}" for key, value in node.items() if key != TARGET and value is not None]
    return f"{part_name(node)}{': ' if given else ''}{', '.join(given)}"


def times(sizes: Sequence[int]) -> str:
    return " × ".join(map(str, sizes))


def versions() -> str:
    return f"jepa {jepa.__version__}, torch {torch.__version__}, Python {platform.python_version()}"


def skipped(run: Run, material: Material) -> str:
    """What could not be read, while training and for this page."""
    training = int(run.rows[-1].get("skipped", 0)) if run.rows else 0
    text = f"{training:,} unreadable samples while training"
    if material.skipped:
        named = "; ".join(material.skipped[:5]) + ("; ..." if len(material.skipped) > 5 else "")
        text += f", {len(material.skipped):,} for this page: {named}"
    return text


def probes(run: Run, material: Material) -> Section:
    """Scores on frozen features beside their baselines, means over seeds."""
    if run.evaluation is None:
        text = "The encoder was not evaluated yet. This command does it, and the next report shows the table:"
        return Section("probes", "Probes", [text], command=f"python -m jepa.evaluate run={run.path}")
    columns = [name for name in FEATURES if any(row["features"] == name for row in run.evaluation)]
    lines = []
    for key in dict.fromkeys((row["task"], row["probe"], row["metric"]) for row in run.evaluation):
        rows = [row for row in run.evaluation if (row["task"], row["probe"], row["metric"]) == key]
        cells = [cell([row["score"] for row in rows if row["features"] == name]) for name in columns]
        lines.append((f"{key[0]}, {key[1]} ({key[2]})", *cells))
    seeds = len({row["seed"] for row in run.evaluation})
    text = (
        f"Frozen features on held-out samples, {'one seed' if seeds == 1 else f'means and spreads over {seeds} seeds'}."
    )
    return Section("probes", "Probes", [text], table=Table(("probe", *(FEATURES[name] for name in columns)), lines))


def cell(scores: Sequence[float]) -> str:
    if not scores:
        return "–"
    return f"{mean(scores):.3f}" + (f" ± {stdev(scores):.3f}" if len(scores) > 1 else "")
