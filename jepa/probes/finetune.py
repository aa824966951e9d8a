"""Fine-tuning: the encoder trained on with a linear head, lower layers more slowly."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import cos, pi
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from jepa.interfaces import Encoder
from jepa.probes.features import InOrder, Recording, flat, keep
from jepa.seeding import Stream, key
from jepa.types import Input, View, each


@dataclass(frozen=True)
class FinetuneSettings:
    """How an encoder is fine-tuned.

    Attributes:
        lr: AdamW's learning rate of the head and the last norm, after warmup; it falls to 0 as a half cosine.
        layer_decay: factor of the learning rate for each layer further down (Clark et al. 2020; BEiT, Bao et al. 2022).
        weight_decay: of matrices.
        epochs, batch_size: length of training; the latter in inputs of the encoder.
        warmup: share of the steps over which the learning rate rises.
        clip: largest norm of the gradient.
    """

    lr: float = 1e-3
    layer_decay: float = 0.75
    weight_decay: float = 0.05
    epochs: int = 10
    batch_size: int = 64
    warmup: float = 0.1
    clip: float = 1.0


class Classifier(nn.Module):
    """Mean of the encoder's tokens, normalised without affine parameters, and a linear head."""

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.embed_dim, classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Input) -> Tensor:  # (B, C, *size) -> (B, classes)
        pooled = self.encoder(View(x)).dense().mean(1)
        return self.head(F.layer_norm(pooled, pooled.shape[-1:]))


def layer_groups(model: Classifier, settings: FinetuneSettings) -> list[dict]:
    """Parameter groups with "scale", the factor of their layer: embeddings below block 0, norm and head on top."""
    named = list(model.named_parameters())
    blocks = {name: int(m[1]) for name, _ in named if (m := re.search(r"\bblocks\.(\d+)\.", name))}
    depth = max(blocks.values(), default=-1) + 1
    first = next((i for i, (name, _) in enumerate(named) if name in blocks), 0)
    groups: dict[tuple[int, bool], dict] = {}
    for i, (name, parameter) in enumerate(named):
        layer = blocks[name] + 1 if name in blocks else 0 if i < first else depth + 1
        group = groups.setdefault(
            (layer, parameter.ndim > 1),
            {
                "params": [],
                "scale": settings.layer_decay ** (depth + 1 - layer),
                "weight_decay": settings.weight_decay if parameter.ndim > 1 else 0.0,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def finetune(
    encoder: Encoder,
    normalize: Callable[[Any], Input],
    train: InOrder,
    test: InOrder,
    label: str,
    settings: FinetuneSettings | None = None,
    *,
    seed: int = 0,
    workers: int = 0,
) -> float:
    """Accuracy on `test` of a copy of `encoder` that was trained on with the labels of `train`.

    It is trained on every view of every clip; probabilities of a test sample are means over its own.

    Nothing is chosen by the test samples: the settings are fixed and the last weights count.

    Args:
        encoder: left as it is.
        normalize: brings raw inputs to the encoder's range.
        train, test: transformed samples.
        label: name of a label of integer classes 0, 1, ...

    Raises:
        ValueError: nothing could be read, or fewer than two classes.
    """
    settings = settings or FinetuneSettings()
    at_once = max(1, settings.batch_size // train.inputs)
    device = next(encoder.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(seed, Stream.PROBE, 200))
        targets = [y for _, labels, _ in batches(train, label, at_once, workers) for y in labels.tolist()]
        if len(set(targets)) < 2:
            raise ValueError(f"label {label!r} has {len(set(targets))} classes in the training samples: need two")
        model = Classifier(copy.deepcopy(encoder).requires_grad_(True), max(targets) + 1).to(device).train()
        groups = layer_groups(model, settings)
        optimizer = torch.optim.AdamW(groups, lr=settings.lr)
        steps = settings.epochs * -(-len(train) // at_once)
        with tqdm(total=steps, desc="fine-tuning", unit="step", leave=False, disable=None) as bar:
            for epoch in range(settings.epochs):
                for x, y, counts in batches(train, label, at_once, workers, shuffle=key(seed, Stream.PROBE, epoch)):
                    step = int(bar.n)
                    for group in optimizer.param_groups:
                        group["lr"] = settings.lr * group["scale"] * rise_and_fall(step, steps, settings.warmup)
                    logits = model(normalize(each(x, lambda part: part.to(device))))
                    loss = F.cross_entropy(logits, y.repeat_interleave(torch.tensor(counts)).to(device))
                    optimizer.zero_grad()
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
                    optimizer.step()
                    bar.update(1)
    model.eval()
    right = total = 0
    with torch.inference_mode():
        for x, y, counts in batches(test, label, at_once, workers):
            logits = model(normalize(each(x, lambda part: part.to(device))))
            probabilities = torch.stack([own.mean(0) for own in logits.softmax(1).split(counts)])
            right += int((probabilities.argmax(1).cpu() == y).sum())
            total += len(y)
    if not total:
        raise ValueError("none of the test samples could be read")
    return right / total


def rise_and_fall(step: int, steps: int, warmup: float) -> float:
    """Share of the peak: a linear rise, then half a cosine to 0."""
    rise = max(1, round(steps * warmup))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + cos(pi * (step - rise) / max(1, steps - rise)))


def batches(
    items: InOrder, label: str, batch_size: int, workers: int, shuffle: int | None = None
) -> Iterator[tuple[Input, Tensor, list[int]]]:
    """Inputs of the readable samples as one batch, y (B,) of the samples, and how many inputs each has; in an order of
    the seed `shuffle`, if given."""
    order = None if shuffle is None else torch.Generator().manual_seed(shuffle)
    loader = DataLoader(
        items, batch_size, shuffle=order is not None, generator=order, num_workers=workers, collate_fn=keep
    )
    for found in loader:
        samples = [sample for sample in found if isinstance(sample, Recording)]
        if samples:
            x, counts = flat([sample.x for sample in samples])
            yield x, torch.stack([torch.as_tensor(sample.labels[label]) for sample in samples]).long(), counts
