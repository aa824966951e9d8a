"""Probe a frozen encoder: python -m jepa.evaluate run=RUN_DIR [key=value ...]

Keys:
    run=DIR              the run to look at
    data=NAME            labelled data of another group (data.root=DIR, data.test_root=DIR, ... as in recipes);
                         by default the run's own
    probes=[...]         knn, linear, lowshot, regression (the default), attentive (as in V-JEPA), attentive_deep (as in
                         V-JEPA 2)
    which=target         target or context encoder
    seeds=[0]            of splits, draws and random initialisation
    limit=N              at most so many training and test samples
    device=cpu           or cuda
    embed=FILE           instead of probing, write embeddings of the training samples: .safetensors or .parquet
    trust=[package]      packages of your own parts that the run's recipe names

Writes evaluation.json and evaluation.csv into the run directory, and prints the table: the model beside raw pixels, a
randomly initialised encoder of the same architecture, and chance. No test label is used for any choice.
"""

from __future__ import annotations

import csv
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from jepa import recipe as recipes
from jepa.build import RecipeError, build, build_model, nearest, refuse_unknown
from jepa.checkpoint import CheckpointError
from jepa.data.base import DataError
from jepa.loading import Pretrained, load
from jepa.probes.attentive_fit import AttentiveSettings, attentive_probe
from jepa.probes.base import Labelled, Score, accuracy
from jepa.probes.features import Features, cached, encoder_features, extract, pixel_features
from jepa.probes.knn import knn_probe
from jepa.probes.linear import LinearSettings, linear_probe
from jepa.probes.lowshot import low_shot
from jepa.probes.ridge import ridge_probe
from jepa.probes.splits import held_out_split, random_split
from jepa.seeding import Stream, key

log = logging.getLogger("jepa")

Name = Literal["knn", "linear", "lowshot", "regression", "attentive", "attentive_deep"]
SOURCES = ("model", "random_init", "pixels")
LOW_SHOT = LinearSettings(lrs=(1e-1,), min_steps=200, splits=3)  # a small grid: it is searched ten times
HELD_OUT = 0.2  # of the labelled samples, where there is no test set


class Settings(BaseModel):
    """What the command line may set, besides data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    probes: tuple[Name, ...] = ("knn", "linear", "lowshot", "regression")
    which: Literal["target", "context"] = "target"
    seeds: tuple[int, ...] = (0,)
    limit: int | None = None
    device: str = "cpu"
    embed: str | None = None
    trust: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A line of evaluation.json."""

    task: str
    probe: str
    features: str
    metric: str
    score: float
    seed: int
    details: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled features of training and test samples from one source."""

    train: Features
    test: Features


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or any(argument in ("-h", "--help") for argument in arguments):
        print(__doc__)
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        settings, overrides = parse(arguments)
        model = load(settings.run, trust=settings.trust, device=settings.device)
        data = labelled_data(model.recipe["data"], overrides)
        if settings.embed:
            print(embed(model, data, settings))
            return 0
        rows = evaluate(model, data, settings)
        write(rows, Path(settings.run))
        print(table(rows))
        print(f"\n{Path(settings.run) / 'evaluation.json'}")
    except (RecipeError, CheckpointError, DataError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def parse(arguments: Sequence[str]) -> tuple[Settings, list[str]]:
    """Settings, and what concerns data.

    Raises:
        RecipeError: a key or value that does not exist.
    """
    overrides = [a for a in arguments if a.startswith(("data=", "data."))]
    rest = [a for a in arguments if a not in overrides]
    try:
        given = OmegaConf.to_container(OmegaConf.from_dotlist(rest))
        assert isinstance(given, dict)
        refuse_unknown([str(name) for name in given], [*Settings.model_fields, "data"], "")
        return Settings.model_validate(given), overrides
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(f"{'.'.join(map(str, first['loc']))}={first.get('input')!r}: {first['msg']}") from error


def labelled_data(own: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The section `data` to evaluate on: the run's own, or another group with the run's size.

    Raises:
        RecipeError: an unknown group or key, or a missing value.
    """
    named = [o.removeprefix("data=") for o in overrides if o.startswith("data=")]
    values = [o.removeprefix("data.") for o in overrides if o.startswith("data.")]
    if values and not named:
        raise RecipeError(f"data.{values[0]}: say which data that is, as in data=images data.{values[0]}")
    if not named:
        return dict(own)
    groups = {path.stem: path for path in (recipes.recipes_dir() / "data").glob("*.yaml")}
    if named[-1] not in groups:
        raise RecipeError(f"data={named[-1]}: there is no such data; {nearest(named[-1], groups)}")
    merged = OmegaConf.merge(OmegaConf.load(groups[named[-1]]), {"size": own["size"]}, OmegaConf.from_dotlist(values))
    missing = [name for name, value in recipes.flat(OmegaConf.to_container(merged)) if value == "???"]
    if missing:
        raise RecipeError(f"data.{missing[0]} must be given, as in data.{missing[0]}=DIR")
    try:
        data = OmegaConf.to_container(OmegaConf.create({"data": merged}), resolve=True)
    except OmegaConfBaseException as error:
        raise RecipeError(f"data={named[-1]}: {str(error).splitlines()[0]}") from error
    assert isinstance(data, dict)
    refuse_unknown(data["data"], recipes.DataSettings.model_fields, "data")
    # the encoder was trained on inputs normalised in its own way
    return {**data["data"], "batch_transform": own["batch_transform"]}


def evaluate(model: Pretrained, data: Mapping[str, Any], settings: Settings) -> list[Row]:
    """Rows of every probe, on every label it can use, for every seed.

    Raises:
        DataError: there are no labels.
    """
    names, splits = gather(model, data, settings)
    if not names:
        raise DataError("the data has no labels to probe: use sub-folders, a list with labels, or another data=NAME")
    rows: list[Row] = []
    for seed in settings.seeds:
        sources = splits(seed)
        for label, classes in names.items():
            first = sources["model"].train.labels[label]
            numeric = classes is None or first.is_floating_point()
            for probe in settings.probes:
                if (probe == "regression") == numeric:
                    rows += probe_rows(probe, label, sources, seed, settings.device)
    return rows


def gather(
    model: Pretrained, data: Mapping[str, Any], settings: Settings
) -> tuple[dict[str, list[str] | None], Callable[[int], dict[str, Split]]]:
    """Names of the labels, and for a seed the split features of each source."""
    nodes = data.get("labelled") or {"train": data["dataset"], "test": None}
    train = build(nodes["train"], "data.labelled.train", trust=settings.trust)
    test_node = nodes["test"]
    given = test_node is not None and test_node.get("root", "") is not None
    test = build(test_node, "data.labelled.test", trust=settings.trust) if given else None
    names = train.label_names
    if test is not None and test.label_names != names:
        raise DataError(f"training and test labels differ: {names} and {test.label_names}")
    tokens = any(probe.startswith("attentive") for probe in settings.probes)

    def features(source: str, seed: int, dataset: Any, part: str) -> Features:
        normalize = model.normalize
        encode = pixel_features(normalize)
        if source != "pixels":
            encoder = model.encoder(settings.which) if source == "model" else random_encoder(model, seed, settings)
            encode = encoder_features(encoder, normalize, tokens=tokens)
        identity = {
            "source": source,
            "weights": model.fingerprint if source == "model" else seed if source == "random_init" else None,
            "encoder": model.recipe["encoder"],
            "which": settings.which,
            "tokens": tokens,
            "data": [dataset.fingerprint, data["eval_transform"], data["batch_transform"], data["size"]],
            "limit": settings.limit,
            "part": part,
        }
        return cached(
            Path(settings.run) / "features",
            identity,
            lambda: extract_part(dataset, data, encode, settings, f"{source}, {part}"),
        )

    def splits(seed: int) -> dict[str, Split]:
        found = {}
        for source in SOURCES:
            fit = features(source, seed, train, "train")
            if test is not None:
                found[source] = Split(fit, features(source, seed, test, "test"))
            else:
                keep, held = hold_out(fit, names, seed)
                found[source] = Split(fit.take(keep), fit.take(held))
        return found

    return names, splits


def hold_out(features: Features, names: Mapping[str, list[str] | None], seed: int) -> tuple[Tensor, Tensor]:
    """Rows to train and to test on, in proportion to the first label of classes."""
    classes = next((features.labels[name] for name, known in names.items() if known is not None), None)
    if classes is None:
        return random_split(len(features), HELD_OUT, seed)
    return held_out_split(classes, HELD_OUT, seed)


def extract_part(dataset: Any, data: Mapping[str, Any], encode: Callable, settings: Settings, title: str) -> Features:
    node = data["eval_transform"]
    transform = build(node, "data.eval_transform", trust=settings.trust) if node else None
    indices = None
    if settings.limit is not None and settings.limit < len(dataset):
        generator = torch.Generator().manual_seed(key(0, Stream.PROBE, 100))
        indices = torch.randperm(len(dataset), generator=generator)[: settings.limit].sort().values.tolist()
    return extract(dataset, transform, encode, indices=indices, workers=data["workers"], title=title)


def random_encoder(model: Pretrained, seed: int, settings: Settings) -> Any:
    """An untrained encoder of the same architecture."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(seed, Stream.PROBE, 101))
        fresh = build_model(model.recipe, trust=settings.trust)
    return fresh.encoder.eval().requires_grad_(False).to(settings.device)


def probe_rows(probe: Name, label: str, sources: Mapping[str, Split], seed: int, device: str) -> list[Row]:
    """One probe on one label: a row for each source of features, and chance."""
    rows: list[Row] = []
    for source, split in sources.items():
        for kind in split.train.x:
            if (kind == "tokens") != probe.startswith("attentive") or (kind == "last4" and probe != "linear"):
                continue
            train = Labelled(split.train.x[kind], split.train.labels[label])
            test = Labelled(split.test.x[kind], split.test.labels[label])
            suffix = "" if kind in ("last", "tokens") else f" {kind}"
            for name, score, details in run_probe(probe, train, test, label, seed, device):
                rows.append(Row(label, f"{name}{suffix}", source, score.metric, score.score, seed, details))
    split = sources["model"]
    y, y_test = split.train.labels[label], split.test.labels[label]
    for name in dict.fromkeys(row.probe for row in rows if " last4" not in row.probe):
        if probe == "regression":
            metric, chance = "r2", 0.0
        else:
            metric, chance = "accuracy", accuracy(y.mode().values.expand_as(y_test), y_test)
        rows.append(Row(label, name, "chance", metric, chance, seed, {}))
    return rows


def run_probe(
    probe: Name, train: Labelled, test: Labelled, label: str, seed: int, device: str
) -> list[tuple[str, Score, dict[str, Any]]]:
    """(name, score, details) of a probe; low-shot gives one for each share of the labels."""
    if probe == "lowshot":
        found = []
        for fraction in (0.01, 0.1):
            draws = low_shot(train, test, fraction=fraction, settings=LOW_SHOT, seed=seed, device=device)
            score = Score("accuracy", draws.mean, float("nan"), {}, draws.scores[0].predictions, {})
            details = {"spread": draws.spread, "draws": len(draws.scores), "labelled": draws.samples}
            found.append((f"linear, {fraction:.0%} of labels", score, details))
        return found
    if probe == "knn":
        ks = [k for k in (10, 20, 100, 200) if k <= 0.6 * len(train)] or [max(1, len(train) // 4)]
        score = knn_probe(train, test, ks=ks, seed=seed)
    elif probe == "linear":
        score = linear_probe(train, test, seed=seed, device=device)
    elif probe == "regression":
        score = ridge_probe(train, test, seed=seed)
    else:
        settings = AttentiveSettings.vjepa(heads_for(train)) if probe == "attentive" else deep_settings(train)
        score = attentive_probe(train, test, settings, seed=seed, device=device)
    return [(probe, score, {"chosen": dict(score.chosen), **score.details})]


def heads_for(train: Labelled, most: int = 16) -> int:
    """The largest number of heads up to `most` that divides the width."""
    width = train.x.shape[-1]
    return next(heads for heads in range(min(most, width), 0, -1) if width % heads == 0)


def deep_settings(train: Labelled) -> AttentiveSettings:
    return AttentiveSettings.vjepa2(heads_for(train))


def embed(model: Pretrained, data: Mapping[str, Any], settings: Settings) -> str:
    """Write embeddings of the training samples with their names and labels; returns what was written."""
    assert settings.embed is not None
    path = Path(settings.embed)
    if path.suffix not in (".safetensors", ".parquet"):
        raise RecipeError(f"embed={path}: give a file that ends in .safetensors or .parquet")
    dataset = build((data.get("labelled") or {"train": data["dataset"]})["train"], "data", trust=settings.trust)
    encode = encoder_features(model.encoder(settings.which), model.normalize, tokens=False)
    features = extract_part(dataset, data, encode, settings, "embeddings")
    if path.suffix == ".parquet":
        from pandas import DataFrame  # an extra: pip install jepa[parquet]

        columns = {"name": features.names, "embedding": features.x["last"].tolist()}
        labels = {f"label_{name}": label.tolist() for name, label in features.labels.items()}
        DataFrame(columns | labels).to_parquet(path)
    else:
        tensors = {"embedding": features.x["last"]} | {f"label_{n}": v for n, v in features.labels.items()}
        save_file(tensors, path, metadata={"names": json.dumps(features.names)})
    return f"{len(features)} embeddings of width {features.x['last'].shape[1]}: {path}"


def write(rows: Sequence[Row], folder: Path) -> None:
    """evaluation.json and evaluation.csv."""
    listed = [asdict(row) for row in rows]
    (folder / "evaluation.json").write_text(json.dumps(listed, indent=1))
    with (folder / "evaluation.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["task", "probe", "features", "metric", "score", "seed"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(listed)


def table(rows: Sequence[Row]) -> str:
    """Scores by task and probe, the model beside its baselines; means and spreads over seeds."""
    columns = ("model", "random_init", "pixels", "chance")
    lines = [f"{'task':<12}{'probe':<24}{'metric':<10}" + "".join(f"{name:>15}" for name in columns)]
    for task, probe, metric in dict.fromkeys((row.task, row.probe, row.metric) for row in rows):
        cells = []
        for source in columns:
            scores = [r.score for r in rows if (r.task, r.probe, r.features) == (task, probe, source)]
            spread = f" ±{stdev(scores):.3f}" if len(scores) > 1 else ""
            cells.append(f"{mean(scores):.3f}{spread}" if scores else "")
        lines.append(f"{task:<12}{probe:<24}{metric:<10}" + "".join(f"{cell:>15}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
