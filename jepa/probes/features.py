"""Frozen features of a labelled dataset, in the dataset's order, cached on disk."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from jepa.interfaces import Encoder
from jepa.nn.patch import cut
from jepa.nn.position import sincos_table
from jepa.types import Input, Sample, UnreadableSample, View, any_part, each

log = logging.getLogger(__name__)

Transform = Callable[[Tensor], Tensor]
PIXELS = 16  # cells along each axis that raw inputs are averaged down to for their baseline


@dataclass(frozen=True, eq=False)
class Features:
    """What probes work on.

    Attributes:
        x: by kind, (N, D), (N, L, D) or (N, V, L, D).
        labels: by name, (N, ...).
        names: of the samples.
    """

    x: dict[str, Tensor]
    labels: dict[str, Tensor]
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: Tensor) -> Features:
        return Features(
            {kind: x[rows] for kind, x in self.x.items()},
            {name: label[rows] for name, label in self.labels.items()},
            [self.names[i] for i in rows.tolist()],
        )


@dataclass(frozen=True, eq=False)
class Recording(Sample):
    """What could be read of a recording: x (views, clips, C, *size).

    Attributes:
        lost: why other clips of it could not be, as "name: reason".
    """

    lost: tuple[str, ...] = ()


class InOrder(Dataset[Recording | str]):
    """Transformed recordings in the dataset's order; one of which nothing can be read is its own reason.

    Most datasets have one clip of each recording. A transform that makes several views of each, in front of its other
    axes, says how many as its attribute `views`.

    Args:
        dataset: raw samples.
        transform: applied to each.
        indices: of the recordings.

    Attributes:
        views, clips: of each recording, if all can be read.
    """

    def __init__(self, dataset: Any, transform: Transform | None, indices: Sequence[int]) -> None:
        self.dataset, self.transform, self.indices = dataset, transform, indices
        self.clips = getattr(dataset, "clips", 1)
        self.views: int | None = getattr(transform, "views", None)

    @property
    def inputs(self) -> int:
        """Of the encoder, for each recording."""
        return self.clips * (self.views or 1)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Recording | str:
        first = self.indices[i] * self.clips
        found: dict[int, Sample] = {}
        lost: list[str] = []
        for clip in range(self.clips):
            try:
                found[clip] = self.dataset[first + clip]
            except UnreadableSample as error:
                lost.append(str(error))
        if not found:
            return "; ".join(dict.fromkeys(lost))
        changed = [self.transform(sample.x) if self.transform else sample.x for sample in found.values()]
        x = stacked([each(x, lambda part: part if self.views else part[None]) for x in changed], dim=1)
        clip, sample = next(iter(found.items()))
        name = sample.name.removesuffix(f"#{clip}") if self.clips > 1 else sample.name
        return Recording(x, sample.labels, name, tuple(lost))


def recordings(dataset: Any) -> int:
    """How many a dataset holds: its samples, unless it has several clips of each."""
    return len(dataset) // getattr(dataset, "clips", 1)


def keep(samples: list[Recording | str]) -> list[Recording | str]:
    """Collate nothing."""
    return samples


@torch.inference_mode()
def extract(
    dataset: Any,
    transform: Transform | None,
    encode: Callable[[Input], dict[str, Tensor]],
    *,
    finish: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda found: found,
    indices: Sequence[int] | None = None,
    batch_size: int = 64,
    workers: int = 0,
    title: str = "features",
) -> Features:
    """Features of every readable recording: of a dataset with one clip of each, of every sample.

    Embeddings (N, D) are means over all views and readable clips. Tokens are those of all clips, one after the other:
    (N, L, D), or (N, V, L, D) of V views; where some cannot be read, those that can follow again in their place.

    Args:
        dataset: raw samples.
        transform: applied to each x; it must not be random.
        encode: a batch (B, C, *size) as stacked -> features by kind, first axis B.
        finish: features of some whole recordings -> what is kept of them, where that is less.
        indices: of the recordings to use; all by default.
        batch_size: inputs of the encoder at a time.
        workers: of the loader.
        title: for the progress bar.

    Raises:
        ValueError: no sample could be read.
    """
    chosen = range(recordings(dataset)) if indices is None else indices
    items = InOrder(dataset, transform, chosen)
    at_once = max(1, batch_size // items.inputs)
    loader = DataLoader(items, batch_size=at_once, num_workers=workers, collate_fn=keep)
    parts: list[dict[str, Tensor]] = []
    read: list[Recording] = []
    for found in tqdm(loader, desc=title, unit="batch", leave=False, dynamic_ncols=True, disable=None):
        samples = [sample for sample in found if isinstance(sample, Recording)]
        for unread in found:
            for reason in unread.lost if isinstance(unread, Recording) else (unread,):
                log.warning("skipped %s", reason)
        if samples:
            parts.append(finish(whole(encode, [sample.x for sample in samples], items.clips)))
            read += [Recording(torch.empty(0), own(sample.labels), sample.name) for sample in samples]
    if not read:
        raise ValueError(f"none of {len(items)} samples could be read")
    return Features(
        {kind: torch.cat([part[kind] for part in parts]) for kind in parts[0]},
        {name: torch.stack([torch.as_tensor(sample.labels[name]) for sample in read]) for name in read[0].labels},
        [sample.name for sample in read],
    )


def stacked(inputs: Sequence[Any], dim: int = 0) -> Input:
    """Inputs as one, modality by modality."""
    if isinstance(inputs[0], Mapping):
        return {name: torch.stack([x[name] for x in inputs], dim) for name in inputs[0]}
    return torch.stack(list(inputs), dim)


def flat(recordings: Sequence[Any]) -> tuple[Input, list[int]]:
    """Inputs (views, clips, C, *size) of recordings as one batch (B, C, *size), and how many each has."""
    inputs = [each(x, lambda part: part.flatten(0, 1)) for x in recordings]
    joined = (
        {name: torch.cat([x[name] for x in inputs]) for name in inputs[0]}
        if isinstance(inputs[0], Mapping)
        else torch.cat(inputs)
    )
    return joined, [len(any_part(x)) for x in inputs]


def whole(encode: Callable[[Input], dict[str, Tensor]], recordings: Sequence[Any], clips: int) -> dict[str, Tensor]:
    """Features of recordings (views, clips, C, *size) that have so many clips where all can be read, as `extract`
    says."""
    found = {}
    x, counts = flat(recordings)
    views = len(any_part(recordings[0]))
    for kind, features in encode(x).items():
        apart = [part.unflatten(0, (views, -1)) for part in features.float().cpu().split(counts)]
        if features.ndim == 2:
            found[kind] = torch.stack([part.mean((0, 1)) for part in apart])
        else:
            again = [part[:, torch.arange(clips) % part.shape[1]] for part in apart]
            found[kind] = torch.stack(again).flatten(2, 3).squeeze(1)
    return found


def own(labels: Mapping[str, int | float | Tensor]) -> dict[str, Tensor]:
    """Labels in this process's own memory: each tensor of a data worker's holds a file open, and those run out."""
    return {name: torch.as_tensor(label).clone() for name, label in labels.items()}


def encoder_features(encoder: Encoder, normalize: Callable[[Any], Input], *, tokens: bool) -> Callable:
    """`encode` for an encoder: "last" and, where it shows its blocks, "last4", average-pooled; "tokens" on demand.

    Of several modalities these are of all together, and by its name "last" of each one alone.
    """
    device = next(encoder.parameters()).device

    def encode(x: Input) -> dict[str, Tensor]:
        x = normalize(each(x, lambda part: part.to(device)))
        try:
            layers = encoder.features(View(x), (-4, -3, -2, -1))
        except ValueError:  # fewer than four blocks, or none to show
            layers = encoder.features(View(x), (-1,))
        pooled = [layer.dense().mean(1) for layer in layers]
        found = {"last": pooled[-1]} | ({"last4": torch.cat(pooled, dim=1)} if len(pooled) == 4 else {})
        for name, part in x.items() if isinstance(x, Mapping) else ():
            found[name] = encoder.features(View({name: part}), (-1,))[0].dense().mean(1)
        return found | ({"tokens": layers[-1].dense()} if tokens else {})

    return encode


def pixel_features(
    normalize: Callable[[Any], Input], grid_of: Callable[[tuple[int, ...]], tuple[int, ...]] | None = None
) -> Callable[[Input], dict[str, Tensor]]:
    """`encode` for the raw-input baseline: normalised inputs, averaged down to 16 cells an axis, flattened.

    Of several modalities together, and of each alone by its name. Where `grid_of` tells an encoder's grid for inputs of
    a size, also "tokens" (B, L, C * values of a patch): the patches as they are, with sin-cos positions added.
    """

    def cells(x: Tensor) -> Tensor:
        pool: Callable = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[x.ndim - 3]
        return pool(x, tuple(min(PIXELS, size) for size in x.shape[2:])).flatten(1)

    def encode(x: Input) -> dict[str, Tensor]:
        x = normalize(x)
        found = each(x, cells)
        if isinstance(x, Mapping):
            return {"last": torch.cat(list(found.values()), dim=1), **found}
        return {"last": found} | ({} if grid_of is None else {"tokens": raw_patches(x, grid_of(x.shape[2:]))})

    return encode


def raw_patches(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """(B, C, *size) as tokens (B, L, C * values of a patch): what an encoder with this grid is given, and where."""
    for axis, cells in enumerate(grid, start=2):
        x = x.narrow(axis, 0, x.shape[axis] // cells * cells)
    patches = cut(x, grid).flatten(1).unflatten(0, (len(x), -1))
    width = patches.shape[-1]
    return patches + sincos_table(width + width % 2, grid)[:, :width]


def cached(folder: Path, key: Mapping[str, Any], make: Callable[[], Features]) -> Features:
    """Features from `folder` if they were made there with the same key, else made and kept."""
    text = json.dumps(key, sort_keys=True, default=str)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.safetensors"
    if path.is_file():
        try:
            return _read(path)
        except (SafetensorError, OSError, KeyError) as error:
            log.warning("%s cannot be read (%s): made again", path, error)
    features = make()
    folder.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    tensors = {f"x/{k}": v for k, v in features.x.items()} | {f"labels/{k}": v for k, v in features.labels.items()}
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        draft,
        metadata={"names": json.dumps(features.names), "key": text},
    )
    draft.replace(path)
    return features


def _read(path: Path) -> Features:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        names = json.loads(file.metadata()["names"])
    parts: dict[str, dict[str, Tensor]] = {"x": {}, "labels": {}}
    for name, tensor in tensors.items():
        group, kind = name.split("/", 1)
        parts[group][kind] = tensor
    return Features(parts["x"], parts["labels"], names)
