"""Labelled samples as features of a model and of its baselines."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict, field_validator
from torch import Tensor

from jepa.build import build, build_model, nearest
from jepa.data import Saccades, center_crop
from jepa.data.base import DataError, SampleDataset, fingerprint_of
from jepa.interfaces import Encoder
from jepa.loading import Pretrained, Which
from jepa.maskers import Saccade
from jepa.probes.features import (
    Features,
    InOrder,
    cached,
    encoder_features,
    extract,
    pixel_features,
    recordings,
)
from jepa.probes.movement import pair_features, token_features
from jepa.probes.splits import held_out_split, random_split
from jepa.seeding import Stream, generator, key

log = logging.getLogger(__name__)

Name = Literal[
    "knn", "linear", "lowshot", "regression", "attentive", "attentive_deep", "finetune", "movement", "retrieval"
]
Source = Literal["model", "random_init", "pixels"]
HELD_OUT = 0.2  # of the labelled samples, where there is no test set


class Settings(BaseModel):
    """What the command line may set, besides data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    probes: tuple[Name, ...] = ("knn", "linear", "lowshot", "regression")
    sources: tuple[Source, ...] = get_args(Source)
    which: Which | None = None
    seeds: tuple[int, ...] = (0,)
    limit: int | None = None
    labels: tuple[str, ...] | None = None
    device: str = "cpu"
    embed: str | None = None
    trained_probe: str | None = None
    trust: tuple[str, ...] = ()

    @field_validator("probes", "sources", "seeds", "labels")
    @classmethod
    def _some(cls, given: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if given == ():
            raise ValueError("name at least one")
        return given


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled features of training and test samples from one source."""

    train: Features
    test: Features


class Sources:
    """Labelled samples, as features of the model, of a randomly initialised encoder, and as pixels.

    Args:
        model: the run.
        data: the section `data` of a recipe.
        settings: of the command line.

    Raises:
        DataError: no labels, training and test labels that differ, or a setting names one that there is not.
    """

    def __init__(self, model: Pretrained, data: Mapping[str, Any], settings: Settings) -> None:
        self.model, self.data, self.settings = model, data, settings
        nodes = data.get("labelled") or {"train": data["dataset"], "test": None}
        self.train: SampleDataset = self._build(nodes["train"], "data.labelled.train")
        node = nodes["test"]
        given = node is not None and node.get("root", "") is not None
        self.test: SampleDataset | None = self._build(node, "data.labelled.test") if given else None
        self.labels = self.train.label_names
        if self.test is not None and self.test.label_names != self.labels:
            raise DataError(f"training and test labels differ: {self.labels} and {self.test.label_names}")
        if settings.labels is not None:
            for label in set(settings.labels) - set(self.labels):
                raise DataError(f"labels: no {label!r} in the data, {nearest(label, self.labels)}")
            self.labels = {label: self.labels[label] for label in settings.labels}

    @cached_property
    def fingerprint(self) -> str:
        """Of what is probed, and on which samples: scores with another one are not to be compared."""
        data, model, which = self.data, self.model, self.settings.which or self.model.learned
        parts = [part.fingerprint for part in (self.train, self.test) if part is not None]
        given = [self.train.label_names, *(data[key] for key in ("eval_transform", "batch_transform", "size"))]
        return fingerprint_of([model.fingerprint, which, *parts, repr([*given, self.settings.limit])])

    def splits(self, seed: int, make: Callable[[Source, int, SampleDataset, str], Features]) -> dict[str, Split]:
        """Training and test features of each source, made by `features` or `pairs`."""
        return {source: self.split(partial(make, source, seed), seed) for source in self.settings.sources}

    def split(self, make: Callable[[SampleDataset, str], Features], seed: int) -> Split:
        """Features of training and of test samples, as `make` gives them for a dataset and what it is called."""
        fit = make(self.train, "train")
        if self.test is not None:
            return Split(fit, make(self.test, "test"))
        kept, held = self._hold_out(fit, seed)
        return Split(fit.take(kept), fit.take(held))

    def features(self, source: Source, seed: int, dataset: SampleDataset, part: str) -> Features:
        """Features of a dataset, from the cache in the run directory if they are there."""
        data, settings, model = self.data, self.settings, self.model
        tokens = any(probe.startswith("attentive") for probe in settings.probes)
        patches = source == "pixels" and tokens and model.model.encoder.hides
        identity = {
            "source": source,
            "weights": {"model": model.fingerprint, "random_init": seed, "pixels": None}[source],
            "encoder": model.recipe["encoder"],
            "which": settings.which or model.learned,
            "tokens": tokens,
            "data": [dataset.fingerprint, data["eval_transform"], data["batch_transform"], data["size"]],
            "labels": dataset.label_names,
            "limit": settings.limit,
            "part": part,
        }

        def make() -> Features:
            if source == "pixels":
                encode = pixel_features(model.normalize, model.model.encoder.grid if patches else None)
            else:
                encode = encoder_features(self.encoder(source, seed), model.normalize, tokens=tokens)
            return self.extract(dataset, encode, f"{source}, {part}")

        if patches:  # as large as the data itself: read again
            return make()
        return cached(Path(settings.run) / "features", identity, make)

    def extract(self, dataset: SampleDataset, encode: Callable, title: str, **more: Any) -> Features:
        return self._extract(dataset, self.transform, encode, title, **more)

    def _extract(
        self, dataset: SampleDataset, transform: Callable | None, encode: Callable, title: str, **more: Any
    ) -> Features:
        indices = None
        count, limit = recordings(dataset), self.settings.limit
        if limit is not None and limit < count:
            order = torch.randperm(count, generator=generator(0, Stream.PROBE, 100))
            indices = order[:limit].sort().values.tolist()
        workers = self.data["workers"]
        return extract(dataset, transform, encode, indices=indices, workers=workers, title=title, **more)

    def encoder(self, source: str, seed: int) -> Encoder:
        """The model's encoder, or an untrained one of the same architecture."""
        if source == "model":
            return self.model.encoder(self.settings.which)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key(seed, Stream.PROBE, 101))
            fresh = build_model(self.model.recipe, trust=self.settings.trust)
        return fresh.encoder.eval().requires_grad_(False).to(self.settings.device)

    def items(self, seed: int) -> tuple[InOrder, InOrder]:
        """Transformed training and test samples, for what trains on inputs."""
        if self.test is not None:
            parts = [(part, list(range(recordings(part)))) for part in (self.train, self.test)]
        else:
            parts = [(self.train, rows.tolist()) for rows in random_split(recordings(self.train), HELD_OUT, seed)]
        limit = self.settings.limit
        kept, held = (InOrder(dataset, self.transform, rows[:limit]) for dataset, rows in parts)
        return kept, held

    @cached_property
    def transform(self) -> Callable[[Tensor], Tensor] | None:
        node = self.data["eval_transform"]
        return self._build(node, "data.eval_transform") if node else None

    def pairs(self, source: Source, seed: int, dataset: SampleDataset, part: str) -> Features:
        """Features of views before and after the movements of the run's masker, and these movements.

        Raises:
            DataError: the run's views do not move.
        """
        masker = self._build(self.model.recipe["masker"], "masker")
        cut = self._build(self.data["batch_transform"], "data.batch_transform")
        if not isinstance(masker, Saccade) or not isinstance(cut, Saccades):
            raise DataError(
                "probes=[movement] is for runs whose views move: masker jepa.maskers.Saccade and "
                "data.batch_transform jepa.data.Saccades"
            )
        whole = cut.raw_shape((1, *cut.size))[1:]
        encode = pixel_features(cut.normalize)
        if source != "pixels":
            encode = partial(token_features, self.encoder(source, seed))
        random = generator(seed, Stream.PROBE, 102, ("train", "test").index(part))

        def sample(count: int) -> Tensor:
            return masker.sample(count, (1,), random)[0].motion

        pairs = pair_features(cut, encode, sample, self.settings.device)
        return self._extract(dataset, center_crop(whole, whole), pairs, f"{source}, pairs, {part}")

    def _build(self, node: Mapping[str, Any], where: str) -> Any:
        return build(node, where, trust=self.settings.trust)

    def _hold_out(self, features: Features, seed: int) -> tuple[Tensor, Tensor]:
        """Rows to train and to test on, in proportion to the first label of classes."""
        known = (features.labels[name] for name, classes in self.labels.items() if classes is not None)
        classes = next((label for label in known if label.ndim == 1), None)
        if classes is None:
            return random_split(len(features), HELD_OUT, seed)
        return held_out_split(classes, HELD_OUT, seed)
