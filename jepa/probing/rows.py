"""Lines of an evaluation: every probe, on every source of features."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any

import torch
from torch import Tensor

from jepa.build import build
from jepa.data.base import DataError
from jepa.interfaces import Masker
from jepa.maskers import Joint
from jepa.probes.attentive_fit import AttentiveSettings, attentive_probe
from jepa.probes.base import Labelled, Score, accuracy
from jepa.probes.finetune import finetune
from jepa.probes.knn import knn_probe
from jepa.probes.linear import LinearSettings, linear_probe
from jepa.probes.lowshot import low_shot
from jepa.probes.movement import MOVEMENT, movement_probe
from jepa.probes.multilabel import mean_average_precision, multilabel_probe
from jepa.probes.retrieval import KS, explained, joint_embeddings, mapped, recalls
from jepa.probes.ridge import ridge_probe
from jepa.probes.trained import TrainedProbe
from jepa.probing.sources import Name, Sources, Split
from jepa.types import Input, View, each

log = logging.getLogger(__name__)

LOW_SHOT = LinearSettings(lrs=(1e-1,), min_steps=200, splits=3)  # a small grid: it is searched ten times
DEEP = ("linear", "regression")  # probes that are run on the last four blocks too
SEVERAL = ("linear", "attentive", "attentive_deep")  # probes for labels of several classes at once


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


def evaluate(sources: Sources) -> Iterator[list[Row]]:
    """Rows of every probe, on every label it can use, for every seed, as soon as there are some.

    Raises:
        DataError: there are no labels, none that the probes are for, or a probe cannot use one (a single class, say).
    """
    settings = sources.settings
    unlabelled = {"movement": movement_rows, "retrieval": retrieval_rows}
    of_labels = [probe for probe in settings.probes if probe not in unlabelled]
    if of_labels and not sources.labels:
        raise DataError("the data has no labels to probe: use sub-folders, a list with labels, or another data=NAME")
    scored = False
    for seed in settings.seeds:
        for probe, rows_of in unlabelled.items():
            if probe in settings.probes:
                scored = True
                yield rows_of(sources, seed)
        if not of_labels:
            continue
        splits = sources.splits(seed, sources.features)
        first = next(iter(splits.values()))
        for label, classes in sources.labels.items():
            numeric = classes is None
            for probe in of_labels:
                several = not numeric and first.train.labels[label].ndim == 2
                if (probe == "regression") != numeric or (several and probe not in SEVERAL):
                    continue
                try:
                    if probe == "finetune":
                        found = finetune_rows(sources, label, seed)
                    else:
                        found = probe_rows(probe, label, splits, seed, settings.device)
                except ValueError as error:
                    raise DataError(f"label {label!r}, probe {probe}: {error}") from error
                if found:
                    scored = True
                    yield found + chances(found, first.train.labels[label], first.test.labels[label])
    if not scored:
        raise DataError(
            f"probes=[{', '.join(settings.probes)}] with sources=[{', '.join(settings.sources)}] score nothing on the "
            f"labels {', '.join(sources.labels)}: regression is for quantities, other probes are for classes, "
            f"and for several classes at once {', '.join(SEVERAL)}"
        )


def score_trained(sources: Sources, probe: TrainedProbe) -> list[Row]:
    """The model's tokens through a probe that was trained before, on every label with as many classes as it has.

    All test samples are scored, or all labelled ones where there is no test set: nothing is trained.

    Raises:
        DataError: no label has as many classes, one gives a sample several, or the model's tokens are not as wide as
            the probe takes.
    """
    settings, many, device = sources.settings, probe.settings.classes, sources.settings.device
    fitting = {label: names for label, names in sources.labels.items() if names is not None and len(names) == many}
    if not fitting:
        counts = [f"{label} {len(names)}" for label, names in sources.labels.items() if names is not None]
        raise DataError(
            f"trained_probe={settings.trained_probe} has {many} classes; labels of the data and their classes: "
            f"{', '.join(counts) or 'none'}"
        )
    encoder, head = sources.encoder("model", 0), probe.head.to(device)
    if encoder.embed_dim != probe.settings.dim:
        raise DataError(
            f"trained_probe={settings.trained_probe} takes tokens of width {probe.settings.dim}, this model's are "
            f"{encoder.embed_dim} wide"
        )

    def encode(x: Input) -> dict[str, Tensor]:
        view = View(sources.model.normalize(each(x, lambda part: part.to(device))))
        return {"tokens": encoder.features(view, (-1,))[0].dense()}

    def finish(found: dict[str, Tensor]) -> dict[str, Tensor]:
        """Probabilities of tokens of all clips together, averaged over views."""
        tokens = found["tokens"].to(device)
        shares = head(tokens.flatten(0, -3)).softmax(-1)
        return {"shares": shares.unflatten(0, (len(tokens), -1)).mean(1).cpu()}

    dataset = sources.train if sources.test is None else sources.test
    scored = sources.extract(dataset, encode, "trained probe", finish=finish)
    rows: list[Row] = []
    for label, names in fitting.items():
        if probe.names is not None and sorted(probe.names) != sorted(names):
            log.warning("%s: the probe's classes have other names than the data's: matched by number", label)
        y, predicted = scored.labels[label], probe.codes(names)[scored.x["shares"].argmax(1)]
        if y.ndim != 1:
            raise DataError(f"label {label!r} gives samples several classes: trained_probe= tells which one it is")
        details = {"probe": probe.source, "samples": len(scored)}
        found = Row(label, "trained attentive", "model", "accuracy", accuracy(predicted, y), 0, details)
        rows += [found, *chances([found], y, y)]
    return rows


def chances(rows: list[Row], y: Tensor, y_test: Tensor) -> list[Row]:
    """Beside each probe the score of the most frequent class, of the mean, or of no order at all."""
    found = {}
    for row in rows:
        if row.metric == "map":
            score = mean_average_precision(torch.zeros_like(y_test, dtype=torch.float32), y_test)
        else:
            score = 0.0 if row.metric == "r2" else accuracy(y.mode().values.expand_as(y_test), y_test)
        found[row.probe] = Row(row.task, row.probe, "chance", row.metric, score, row.seed, {})
    return [row for probe, row in found.items() if not probe.endswith(" last4")]


def probe_rows(probe: Name, label: str, sources: Mapping[str, Split], seed: int, device: str) -> list[Row]:
    """One probe on one label: a row for each source of features."""
    rows: list[Row] = []
    for source, split in sources.items():
        for kind in split.train.x:
            if (kind == "tokens") != probe.startswith("attentive") or (kind == "last4" and probe not in DEEP):
                continue
            train = Labelled(split.train.x[kind], split.train.labels[label])
            test = Labelled(split.test.x[kind], split.test.labels[label])
            suffix = "" if kind in ("last", "tokens") else f" {kind}"
            for name, score, details in run_probe(probe, train, test, label, seed, device):
                rows.append(Row(label, f"{name}{suffix}", source, score.metric, score.score, seed, details))
    return rows


def movement_rows(sources: Sources, seed: int) -> list[Row]:
    """Each component of movements, for each source and kind of features of pairs."""
    rows = []
    for source, split in sources.splits(seed, sources.pairs).items():
        for kind in (kind for kind in split.train.x if kind != MOVEMENT):
            train, test = (Labelled(part.x[kind], part.x[MOVEMENT]) for part in (split.train, split.test))
            probe = "movement" if kind == "last" else f"movement {kind}"
            for name, score in movement_probe(train, test, seed=seed).items():
                details = {"chosen": dict(score.chosen), **score.details}
                rows.append(Row(name, probe, source, score.metric, score.score, seed, details))
    tasks = dict.fromkeys(row.task for row in rows)
    return rows + [Row(task, "movement", "chance", "r2", 0.0, seed, {}) for task in tasks]


def retrieval_rows(sources: Sources, seed: int) -> list[Row]:
    """How often what belongs to one modality is found by the other: with a linear map between their embeddings and with
    what the model itself predicts; of that also how much it explains.

    Raises:
        DataError: the model or the data has one modality, no encoder is asked for, or its embeddings cannot be used.
    """
    if not sources.encoder("model", seed).modalities:
        raise DataError("probes=[retrieval] needs a model that joins modalities, as recipe=avjepa_tiny trains")
    encoders = {source: sources.encoder(source, seed) for source in sources.settings.sources if source != "pixels"}
    if not encoders:
        raise DataError("probes=[retrieval] compares embeddings: name model or random_init in sources=[...]")
    rows: list[Row] = []
    asks = task_of(sources)
    for source, encoder in encoders.items():
        whole = sources.model.model if source == "model" else None
        encode = joint_embeddings(encoder, sources.model.normalize, whole, asks)
        try:
            split = sources.split(lambda data, part: sources.extract(data, encode, f"{source}, {part}"), seed)  # noqa: B023
            found = found_by_others(split, encoder.modalities, whole is not None, seed)
        except ValueError as error:
            raise DataError(f"probe retrieval, {source}: {error}") from error
        for (task, way), scores in found.items():
            for metric, score in scores.items():
                rows.append(Row(task, f"retrieval, {way}", source, metric, score, seed, {}))
    chance = {f"recall@{k}": k / len(split.test) for k in KS} | {"r2": 0.0}
    kinds = dict.fromkeys((row.task, row.probe, row.metric) for row in rows)
    return rows + [Row(task, probe, "chance", metric, chance[metric], seed, {}) for task, probe, metric in kinds]


def task_of(sources: Sources) -> Callable[[str, str], int]:
    """The task of the run's masker that asks for one modality from another."""
    masker: Masker = build(sources.model.recipe["masker"], "masker", trust=sources.settings.trust)
    joint = next((kind for _, kind in masker.kinds() if isinstance(kind, Joint)), None)
    return (lambda seen, asked: 0) if joint is None else joint.asks


def found_by_others(
    split: Split, modalities: Sequence[str], predicted: bool, seed: int
) -> dict[tuple[str, str], dict[str, float]]:
    """Scores by task ("sound of clip") and way: by a linear map, and where there are any by predictions."""
    train, test = split.train.x, split.test.x
    found = {}
    present = [name for name in modalities if f"{name} in time" in test]
    for one, other in combinations(present, 2):
        fit, held = ((x[f"{one} in time"], x[f"{other} in time"]) for x in (train, test))
        for task, recall in zip((f"{other} of {one}", f"{one} of {other}"), mapped(fit, held, seed), strict=True):
            found[task, "linear map"] = named(recall)
    for seen, asked in permutations(present, 2) if predicted else ():
        guess = test[f"{asked} from {seen}"]
        scores = named(recalls(guess, test[f"{asked} in time"]))
        found[f"{asked} of {seen}", "predictor"] = scores | {"r2": explained(guess, test[f"{asked} as target"])}
    return found


def named(recall: Mapping[int, float]) -> dict[str, float]:
    return {f"recall@{k}": score for k, score in recall.items()}


def finetune_rows(sources: Sources, label: str, seed: int) -> list[Row]:
    """The model fine-tuned, and the same architecture trained from scratch."""
    train, test = sources.items(seed)
    rows = []
    for source in sources.settings.sources:
        if source == "pixels":
            continue
        score = finetune(
            sources.encoder(source, seed),
            sources.model.normalize,
            train,
            test,
            label,
            seed=seed,
            workers=sources.data["workers"],
        )
        rows.append(Row(label, "finetune", source, "accuracy", score, seed, {}))
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
        ks = [k for k in (10, 20, 100, 200) if k <= 0.6 * len(train)] or [10]  # which says that these are too few
        score = knn_probe(train, test, ks=ks, seed=seed)
    elif probe == "linear" and train.y.ndim == 2:
        score = multilabel_probe(train, test, seed=seed, device=device)
    elif probe == "linear":
        score = linear_probe(train, test, seed=seed, device=device)
    elif probe == "regression":
        score = ridge_probe(train, test, seed=seed)
    else:
        heads = heads_for(train.x.shape[-1])
        settings = AttentiveSettings.vjepa(heads) if probe == "attentive" else AttentiveSettings.vjepa2(heads)
        score = attentive_probe(train, test, settings, seed=seed, device=device)
    return [(probe, score, {"chosen": dict(score.chosen), **score.details})]


def heads_for(width: int, most: int = 16) -> int:
    """The largest number of heads up to `most` that divides the width."""
    return next(heads for heads in range(min(most, width), 0, -1) if width % heads == 0)
