"""What a run left, and samples of its data as its model sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from jepa import recipe as recipes
from jepa import seeding
from jepa.assemble import input_size
from jepa.build import build
from jepa.data.base import DataError, SampleDataset
from jepa.data.batches import MAX_CONSECUTIVE_UNREADABLE, collate, some
from jepa.interfaces import Masker
from jepa.loading import Pretrained, load
from jepa.metrics import read_metrics
from jepa.other_data import data_section
from jepa.pictures import of_modality, sounds_of, upright, within
from jepa.predictors import NoPredictor
from jepa.report.blocks import Picture, picture
from jepa.seeding import Stream
from jepa.settings import TrainSettings
from jepa.types import (
    Indices,
    Input,
    JepaBatch,
    JointGrid,
    Sample,
    StepOutput,
    Tokens,
    UnreadableSample,
    View,
    each,
)

ENCODED_AT_ONCE = 32
MOST_TOKENS = 65_536  # kept for the search among patches
POSED = 64  # samples that prediction problems are posed on


class Settings(BaseModel):
    """What the command line may set: the run, how many and which samples, and where the model goes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    samples: int = Field(512, ge=16)
    seed: int = Field(0, ge=0)
    device: str = "cpu"
    trust: tuple[str, ...] = ()

    @field_validator("device")
    @classmethod
    def _is_there(cls, device: str) -> str:
        if device != "cpu" and not (device.partition(":")[0] == "cuda" and torch.cuda.is_available()):
            raise ValueError("give cpu, or cuda where there is a CUDA device")
        return device


@dataclass(frozen=True, eq=False)
class Run:
    """What a run directory holds.

    Attributes:
        path: the directory.
        pretrained: its model and recipe.
        torch: version that it was trained with.
        dataset: what it is trained on.
        steps: its length.
        rows: of metrics.jsonl.
        evaluation: rows of evaluation.json; None where there is none.
    """

    path: Path
    pretrained: Pretrained
    torch: str
    dataset: SampleDataset
    steps: int
    rows: Sequence[Mapping[str, Any]]
    evaluation: Sequence[Mapping[str, Any]] | None

    @property
    def recipe(self) -> Mapping[str, Any]:
        return self.pretrained.recipe

    @property
    def settings(self) -> TrainSettings:
        return recipes.train_settings(self.recipe)


@dataclass(frozen=True, eq=False)
class Material:
    """Samples of the run's data and what its model makes of them; n samples, of which the first m with all tokens.

    Attributes:
        x: (n, C, *size) as the dataset and its transform made them; of one modality.
        names: n of them.
        labels: named, (n, ...).
        grid: of the tokens.
        tokens: (m, G, D) output of the encoder that learned.
        targets: (m, G, D) that of the target encoder, as the loss sees it.
        pooled: (n, D) mean of each sample's tokens.
        batch: prediction problems on the first samples, inputs as in `x`; where views are moved or augmented, those.
        output: the model's answer to them; None from a model without a predictor.
        skipped: samples that could not be read.
        source: all that an encoder is given of these samples: `x`, or that of each modality by name.
        cells: where the tokens of `x` lie among those of all modalities.
        modality: which one `x` is of, where there are several.
        spectrograms: whether `x` are (time, frequency).
        waves: (n, C, samples) what is heard: the sounds that `x` shows, or that belong to it.
        rate: of the sounds, samples per second.
    """

    x: Tensor
    names: Sequence[str]
    labels: Mapping[str, Tensor]
    grid: tuple[int, ...]
    tokens: Tensor
    targets: Tensor
    pooled: Tensor
    batch: JepaBatch
    output: StepOutput | None
    skipped: Sequence[str]
    source: Input
    cells: slice = field(default_factory=lambda: slice(None))
    modality: str = ""
    spectrograms: bool = False
    waves: Tensor | None = None
    rate: int = 0

    def picture(self, rgb: Tensor, caption: str = "", sound: str = "") -> Picture:
        """A picture of this material for the page."""
        return picture(upright(rgb) if self.spectrograms else rgb, caption, sound)


def open_run(settings: Settings, data: Sequence[str] = ()) -> Run:
    """The run that a report is about.

    Args:
        settings: which.
        data: overrides, to look at it with other data.

    Raises:
        RecipeError, CheckpointError, DataError, MetricsError: no run, no checkpoint, no data, or damaged files.
    """
    path = Path(settings.run).expanduser()
    pretrained = load(path, trust=settings.trust, device=settings.device)
    pretrained.recipe = {**pretrained.recipe, "data": data_section(pretrained.recipe["data"], data)}
    dataset: SampleDataset = build(pretrained.recipe["data"]["dataset"], "data.dataset", trust=settings.trust)
    metrics = path / "metrics.jsonl"
    return Run(
        path=path,
        pretrained=pretrained,
        torch=str(pretrained.facts.get("torch", "a version that is not known")),
        dataset=dataset,
        steps=recipes.total_steps(recipes.train_settings(pretrained.recipe), len(dataset)),
        rows=read_metrics(metrics) if metrics.is_file() else [],
        evaluation=pretrained.facts.get("evaluation"),
    )


@torch.inference_mode()
def gather(run: Run, settings: Settings, advance: Callable[[int], object]) -> list[Material]:
    """Samples, embeddings and answers, for each modality.

    Args:
        run: whose model and data are used.
        settings: how many samples, and which.
        advance: told how many samples were encoded.

    Raises:
        DataError: hardly any sample can be read, or they do not fit the encoder.
    """
    model = run.pretrained.model
    samples, skipped = draw(run, settings)
    everything = collate(samples, [], [])
    raw_x = everything.target.x
    x = shown(run, raw_x)
    grid = model.teacher.grid(each(x, lambda part: part.shape[2:]))
    places = {name: grid.cells(name) for name in grid.parts} if isinstance(grid, JointGrid) else {"": slice(None)}
    tokens, pooled = encode(run.pretrained, x, max(POSED, MOST_TOKENS // prod(grid)), advance, list(places.values()))
    batch_transform = build(run.recipe["data"]["batch_transform"], "data.batch_transform", trust=settings.trust)
    rates = sounds_of(batch_transform)
    wanted = each(x, lambda part: tuple(part.shape[1:]))
    makes_views = hasattr(batch_transform, "raw_shape") and batch_transform.raw_shape(wanted) != wanted
    raw = draw(run, settings, most=min(POSED, len(samples)), kind="transform")[0] if makes_views else samples[:POSED]
    batch = pose(run, raw, grid, settings)
    views = batch_transform(batch.to(settings.device))
    output = None if isinstance(model.predictor, NoPredictor) else model(views)
    batch = views.to("cpu") if makes_views else batch
    targets = targets_of(run.pretrained, x, tokens)
    return [
        Material(
            x=x[name] if isinstance(x, Mapping) else x,
            names=[sample.name for sample in samples],
            labels=everything.labels,
            grid=grid.parts[name] if isinstance(grid, JointGrid) else grid,
            tokens=tokens[:, cells],
            targets=targets[:, cells],
            pooled=mean,
            batch=of_modality(batch, name) if name else batch,
            output=answered(output, name) if output and name else output,
            skipped=skipped,
            source=x,
            cells=cells,
            modality=name,
            spectrograms=name in rates and (x[name] if isinstance(x, Mapping) else x).ndim == 4,
            **heard_beside(raw_x, rates, name),
        )
        for (name, cells), mean in zip(places.items(), pooled, strict=True)
    ]


def heard_beside(x: Input, rates: Mapping[str, int], name: str) -> dict[str, Any]:
    """`waves` and `rate` of a modality that is a sound, or else of the first one that is; nothing where none is."""
    parts = x if isinstance(x, Mapping) else {"": x}
    sounds = [sound for sound in parts if sound in rates and parts[sound].ndim == 3]
    sound = name if name in sounds else next(iter(sounds), None)
    return {} if sound is None else {"waves": parts[sound], "rate": rates[sound]}


def shown(run: Run, x: Input) -> Input:
    """Inputs as pictures show them: of waveforms, what the batch transform makes of them."""
    size = input_size(run.recipe["data"]["size"])
    if each(x, lambda part: part.ndim - 2) != each(size, len):
        return run.pretrained.normalize(x)
    return x


def answered(output: StepOutput, name: str) -> StepOutput:
    """What of a model's answers is of one modality; a task that does not ask for it has no "prediction"."""
    tasks = []
    for task in output.intermediates["tasks"]:
        whole: Tokens = task["prediction"]
        index = within(whole.index.apply(lambda tensor: tensor.cpu()), name)
        assert isinstance(whole.index.grid, JointGrid)
        cells = whole.index.grid.cells(name)
        here = (whole.index.values >= cells.start) & (whole.index.values < cells.stop)
        held = index.lengths > 0  # a set lies in one modality
        found = Indices(index.values, index.lengths[held], index.grid, index.min_length, index.max_length)
        tasks.append({"prediction": Tokens(whole.x[here], found)} if held.any() else {})
    return StepOutput(output.loss, output.terms, {"tasks": tasks})


def draw(
    run: Run, settings: Settings, *, most: int | None = None, kind: str = "eval_transform"
) -> tuple[list[Sample], list[str]]:
    """Random samples as evaluation sees them, or as training does (`kind` "transform"), at most `most`
    (None: as many as asked for), and which could not be read.

    Raises:
        DataError: fewer than two can be read, or too many in a row cannot.
    """
    node, where = run.recipe["data"].get(kind), f"data.{kind}"
    if node is None:
        node, where = run.recipe["data"]["transform"], "data.transform"
    transform = build(node, where, trust=settings.trust) if node else None
    dataset, seed = run.dataset, settings.seed
    order = torch.randperm(len(dataset), generator=seeding.generator(seed, Stream.PROBE, len(dataset)))
    samples: list[Sample] = []
    skipped: list[str] = []
    in_a_row = 0
    for i in order.tolist():
        if len(samples) == (most or settings.samples) or in_a_row == MAX_CONSECUTIVE_UNREADABLE:
            break
        try:
            with seeding.isolated(seed, Stream.SAMPLE, i):
                sample = dataset[i]
                x = transform(sample.x) if transform else sample.x
                if kind == "eval_transform" and hasattr(transform, "views"):
                    x = x[len(x) // 2]  # the middle one of several views of it
        except UnreadableSample as error:
            skipped.append(str(error))
            in_a_row += 1
        else:
            samples.append(Sample(x, sample.labels, sample.name))
            in_a_row = 0
    if len(samples) < 2 or in_a_row == MAX_CONSECUTIVE_UNREADABLE:
        raise DataError(f"{len(samples)} samples could be read and {len(skipped)} not: {'; '.join(skipped[:3])}")
    return samples, skipped


def encode(
    pretrained: Pretrained, x: Input, keep: int, advance: Callable[[int], object], parts: Sequence[slice]
) -> tuple[Tensor, list[Tensor]]:
    """Tokens (m, G, D) of the first `keep` inputs at the most, and mean embeddings (n, D) of all, for each part of the
    grid.

    Raises:
        DataError: they are not finite.
    """
    tokens: list[Tensor] = []
    pooled: list[list[Tensor]] = []
    held = 0
    for start in range(0, len(View(x)), ENCODED_AT_ONCE):
        piece = each(x, lambda part: part[start : start + ENCODED_AT_ONCE])  # noqa: B023 - used at once
        found = pretrained.features(piece, pool="none").flatten(1, -2)
        pooled.append([found[:, cells].mean(1) for cells in parts])
        if held < keep:
            tokens.append(found[: keep - held])
            held += len(tokens[-1])
        advance(len(found))
    means = [torch.cat(of_part) for of_part in zip(*pooled, strict=True)]
    if not all(torch.isfinite(mean).all() for mean in means):
        raise DataError(f"the embeddings of step {pretrained.step} are not finite: there is nothing to show")
    return torch.cat(tokens), means


def targets_of(pretrained: Pretrained, x: Input, tokens: Tensor) -> Tensor:
    """What the loss compares with, as JEPA.targets: the target encoder's tokens (m, G, D) of the first m inputs, which
    are `tokens` unless another encoder learned."""
    model = pretrained.model
    if model.learned is not model.teacher:
        first = each(x, lambda part: part[: len(tokens)])
        pieces = pretrained.features(first, pool="none", which="target", batch_size=ENCODED_AT_ONCE)
        tokens = pieces.flatten(1, -2)
    return F.layer_norm(tokens, tokens.shape[-1:]) if model.normalize_targets else tokens


def pose(run: Run, samples: Sequence[Sample], grid: tuple[int, ...], settings: Settings) -> JepaBatch:
    """The prediction problems that the run poses at the shown step, on these samples."""
    masker: Masker = build(run.recipe["masker"], "masker", trust=settings.trust)
    masker = masker.at(min(1.0, run.pretrained.step / run.steps))
    count = len(samples)
    whole = max(count, run.settings.batch_size)  # masks of the published kind depend on the batch that they are part of
    drawn = masker.sample(whole, grid, seeding.generator(settings.seed, Stream.MASK, 1))
    return collate(samples, [some(masks, 0, count) for masks in drawn], [1.0] * len(drawn), grid=grid)
