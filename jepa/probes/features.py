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


class InOrder(Dataset[Sample | str]):
    """Transformed recordings in the dataset's order, x (views, clips, C, *size); an unreadable one is its own reason.

    Most datasets have one clip of each recording. A transform that makes several views of each, in front of its other
    axes, says how many as its attribute `views`.

    Args:
        dataset: raw samples.
        transform: applied to each.
        indices: of the recordings.

    Attributes:
        views, clips: of each recording.
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

    def __getitem__(self, i: int) -> Sample | str:
        first = self.indices[i] * self.clips
        try:
            found = [self.dataset[first + clip] for clip in range(self.clips)]
        except UnreadableSample as error:
            return str(error)
        changed = [self.transform(sample.x) if self.transform else sample.x for sample in found]
        x = stacked([each(x, lambda part: part if self.views else part[None]) for x in changed], dim=1)
        name = found[0].name.removesuffix("#0") if self.clips > 1 else found[0].name
        return Sample(x, found[0].labels, name)


def recordings(dataset: Any) -> int:
    """How many a dataset holds: its samples, unless it has several clips of each."""
    return len(dataset) // getattr(dataset, "clips", 1)


def keep(samples: list[Sample | str]) -> list[Sample | str]:
    """Collate nothing."""
    return samples


@torch.inference_mode()
def extract(
    dataset: Any,
    transform: Transform | None,
    encode: Callable[[Input], dict[str, Tensor]],
    *,
    indices: Sequence[int] | None = None,
    batch_size: int = 64,
    workers: int = 0,
    title: str = "features",
) -> Features:
    """Features of every readable recording: of a dataset with one clip of each, of every sample.

    Embeddings (N, D) are means over all clips and views. Tokens are those of all clips, one after the other: (N, L, D),
    or (N, V, L, D) of V views.

    Args:
        dataset: raw samples.
        transform: applied to each x; it must not be random.
        encode: a batch (B, C, *size) as stacked -> features by kind, first axis B.
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
    read: list[Sample] = []
    for found in tqdm(loader, desc=title, unit="batch", leave=False, dynamic_ncols=True, disable=None):
        samples = [sample for sample in found if isinstance(sample, Sample)]
        for reason in found:
            if isinstance(reason, str):
                log.warning("skipped %s", reason)
        if samples:
            parts.append(whole(encode, stacked([sample.x for sample in samples])))
            read += [Sample(torch.empty(0), own(sample.labels), sample.name) for sample in samples]
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


def whole(encode: Callable[[Input], dict[str, Tensor]], x: Input) -> dict[str, Tensor]:
    """Features of recordings (B, views, clips, C, *size), as `extract` says."""
    found = {}
    shape = any_part(x).shape[:3]
    for kind, features in encode(each(x, lambda part: part.flatten(0, 2))).items():
        apart = features.float().cpu().unflatten(0, shape)
        found[kind] = apart.mean((1, 2)) if apart.ndim == 4 else apart.flatten(2, 3).squeeze(1)
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


def pixel_features(normalize: Callable[[Any], Input]) -> Callable[[Input], dict[str, Tensor]]:
    """`encode` for the raw-input baseline: normalised inputs, averaged down to 16 cells an axis, flattened.

    Of several modalities together, and of each alone by its name.
    """

    def cells(x: Tensor) -> Tensor:
        pool: Callable = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[x.ndim - 3]
        return pool(x, tuple(min(PIXELS, size) for size in x.shape[2:])).flatten(1)

    def encode(x: Input) -> dict[str, Tensor]:
        found = each(normalize(x), cells)
        return {"last": torch.cat(list(found.values()), dim=1), **found} if isinstance(x, Mapping) else {"last": found}

    return encode


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
