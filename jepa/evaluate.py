"""Probe a frozen encoder: python -m jepa.evaluate run=RUN_DIR [key=value ...]

Keys:
    run=DIR              the run to look at
    data=NAME            labelled data of another group (data.root=DIR, data.test_root=DIR, ... as in recipes);
                         by default the run's own
    probes=[...]         knn, linear, lowshot, regression (the default), attentive (as in V-JEPA), attentive_deep (as in
                         V-JEPA 2), finetune; linear and regression also take the last four blocks, concatenated
                         ("last4"). Without labels: movement, how the view moved, from embeddings before and after
                         (saccades); retrieval, the sound of a clip among others (models that join modalities)
    sources=[...]        of features: model, random_init, pixels; by default all three
    which=WHICH          target or context encoder; by default the one that learned: the context encoder where the
                         target is a frozen teacher
    seeds=[0]            of splits, draws and random initialisation
    labels=[...]         those to probe; by default all that the data has
    limit=N              at most so many training and test samples
    device=cpu           or cuda
    embed=FILE           instead of probing, write embeddings of the training samples: .safetensors or .parquet
    trained_probe=DIR    instead of training any, score this one (from python -m jepa.convert kind=vjepa_probe ...) on
                         all test samples, or on all labelled ones where there is no test set
    trust=[package]      packages of your own parts that the run's recipe names

Writes evaluation.json and evaluation.csv into the run directory, after every probe, and prints the table: the model
beside raw pixels, a randomly initialised encoder of the same architecture, and chance. What was scored before stays
beside it as long as weights, data and limit= are the same. No test label is used for any choice.
"""

from __future__ import annotations

import csv
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from safetensors.torch import save_file

from jepa.build import RecipeError
from jepa.checkpoint import CheckpointError
from jepa.command_line import parse
from jepa.data.base import DataError
from jepa.loading import load
from jepa.other_data import data_section, split
from jepa.probes.features import encoder_features
from jepa.probes.trained import TrainedProbe
from jepa.probing import Row, Settings, Sources, evaluate, score_trained

log = logging.getLogger("jepa")

NAME = ("task", "probe", "features", "metric", "seed")  # of a row
Scored = dict[str, Any]  # a row of evaluation.json: that of a probe, and the fingerprint of what was probed


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or any(argument in ("-h", "--help") for argument in arguments):
        print(__doc__)
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        arguments, overrides = split(arguments)
        settings = parse(Settings, arguments, "jepa.evaluate")
        probe = trained(settings)
        model = load(settings.run, trust=settings.trust, device=settings.device)
        data = data_section(model.recipe["data"], overrides)
        sources = Sources(model, data, settings)
        if settings.embed:
            print(embed(sources, Path(settings.embed)))
            return 0
        rows = kept(model.facts.get("evaluation") or [], sources.fingerprint)
        for found in [score_trained(sources, probe)] if probe else evaluate(sources):
            rows = added(rows, found, sources.fingerprint)
            write(rows, Path(settings.run))
        print(table(rows))
        print(f"\n{Path(settings.run) / 'evaluation.json'}")
    except (RecipeError, CheckpointError, DataError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def trained(settings: Settings) -> TrainedProbe | None:
    """The probe of `trained_probe`.

    Raises:
        RecipeError, CheckpointError: it cannot be loaded, or another setting would not be used.
    """
    if settings.trained_probe is None:
        return None
    unused = sorted(settings.model_fields_set & {"probes", "sources", "seeds", "embed"})
    if unused:
        raise RecipeError(f"trained_probe= trains nothing and draws nothing: {unused[0]}= would not be used")
    return TrainedProbe.load(settings.trained_probe)


def embed(sources: Sources, path: Path) -> str:
    """Write embeddings of the training samples with their names and labels; returns what was written.

    Raises:
        RecipeError: a file that is neither .safetensors nor .parquet, or another setting would not be used.
    """
    unused = sorted(sources.settings.model_fields_set & {"probes", "sources", "seeds", "labels"})
    if unused:
        raise RecipeError(f"embed= probes nothing: {unused[0]}= would not be used")
    if path.suffix not in (".safetensors", ".parquet"):
        raise RecipeError(f"embed={path}: give a file that ends in .safetensors or .parquet")
    encode = encoder_features(sources.encoder("model", 0), sources.model.normalize, tokens=False)
    features = sources.extract(sources.train, encode, "embeddings")
    if path.suffix == ".parquet":
        try:
            from pyarrow import Table, parquet
        except ModuleNotFoundError as error:
            raise RecipeError(f"embed={path} needs pyarrow: pip install jepa[parquet]") from error

        columns = {"name": features.names, "embedding": features.x["last"].tolist()}
        labels = {f"label_{name}": label.tolist() for name, label in features.labels.items()}
        parquet.write_table(Table.from_pydict(columns | labels), path)
    else:
        tensors = {"embedding": features.x["last"]} | {f"label_{n}": v for n, v in features.labels.items()}
        save_file(tensors, path, metadata={"names": json.dumps(features.names)})
    return f"{len(features)} embeddings of width {features.x['last'].shape[1]}: {path}"


def kept(rows: Sequence[Scored], fingerprint: str) -> list[Scored]:
    """Those of an earlier evaluation that can stand beside what is scored now."""
    same = [row for row in rows if row.get("fingerprint") == fingerprint]
    if len(same) < len(rows):
        log.info("evaluation.json: %d rows of other weights, data or limit= are replaced", len(rows) - len(same))
    return same


def added(rows: Sequence[Scored], found: Sequence[Row], fingerprint: str) -> list[Scored]:
    """Rows and those that were found, which replace others of the same name, and are logged."""
    for row in found:
        log.info("%s, %s, %s: %s %.3f", row.task, row.probe, row.features, row.metric, row.score)
    new = [asdict(row) | {"fingerprint": fingerprint} for row in found]
    names = [tuple(row[key] for key in NAME) for row in new]
    return [row for row in rows if tuple(row[key] for key in NAME) not in names] + new


def write(rows: Sequence[Scored], folder: Path) -> None:
    """evaluation.json and evaluation.csv."""
    draft = folder / "evaluation.draft"
    draft.write_text(json.dumps(rows, indent=1))
    draft.replace(folder / "evaluation.json")
    with (folder / "evaluation.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["task", "probe", "features", "metric", "score", "seed"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def table(rows: Sequence[Scored]) -> str:
    """Scores by task and probe, the model beside its baselines; means and spreads over seeds."""
    columns = ("model", "random_init", "pixels", "chance")
    lines = [f"{'task':<16}{'probe':<24}{'metric':<10}" + "".join(f"{name:>15}" for name in columns)]
    for task, probe, metric in dict.fromkeys((row["task"], row["probe"], row["metric"]) for row in rows):
        cells = []
        for source in columns:
            kind = (task, probe, metric, source)
            scores = [r["score"] for r in rows if (r["task"], r["probe"], r["metric"], r["features"]) == kind]
            spread = f" ±{stdev(scores):.3f}" if len(scores) > 1 else ""
            cells.append(f"{mean(scores):.3f}{spread}" if scores else "")
        lines.append(f"{task:<16}{probe:<24}{metric:<10}" + "".join(f"{cell:>15}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
