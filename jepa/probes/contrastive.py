"""Two attentive poolers over frozen tokens, one for each modality, trained so that what belongs together is near."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.probes.attentive import AttentivePooler
from jepa.probes.base import check_features
from jepa.probes.retrieval import Pair, recalls
from jepa.probes.splits import random_split
from jepa.schedules import Cosine
from jepa.seeding import Stream, generator, isolated

_ORDER, _INIT = 7, 8  # first counters of the streams for the order of samples and for the start of the weights


@dataclass(frozen=True)
class ContrastiveSettings:
    """How poolers are built, trained and chosen.

    Attributes:
        heads: of both poolers; must divide both widths.
        width: of the space in which the two meet.
        temperature: where it starts; it is learned, and stays above .01 (Radford et al. 2021, section 2.5).
        lrs: peak learning rates of AdamW, each falling to 0 as a half cosine.
        weight_decay: decoupled.
        batch_size: pairs of a step; all others of the batch are what a pair is told apart from.
        steps: about so many, in whole passes over the training pairs. A pooler needs some hundred before it begins to
            learn, however few pairs there are.
        held_out: share of the training pairs that the learning rate is chosen by.
    """

    heads: int
    width: int = 64
    temperature: float = 0.07
    lrs: tuple[float, ...] = (3e-3, 1e-3)
    weight_decay: float = 1e-2
    batch_size: int = 128
    steps: int = 2000
    held_out: float = 0.1


class Towers(nn.Module):
    """Tokens of either modality to points (B, width) on one sphere.

    Args:
        dims: widths of the tokens of the one and of the other modality.
        settings: the rest.
    """

    def __init__(self, dims: Sequence[int], settings: ContrastiveSettings) -> None:
        super().__init__()
        self.poolers = nn.ModuleList(AttentivePooler(dim=dim, heads=settings.heads) for dim in dims)
        self.heads = nn.ModuleList(nn.Sequential(nn.LayerNorm(d), nn.Linear(d, settings.width)) for d in dims)
        self.log_scale = nn.Parameter(torch.tensor(log(1 / settings.temperature)))

    def forward(self, pair: Pair) -> Pair:
        one, other = (
            F.normalize(head(pooler(x)), dim=1) for pooler, head, x in zip(self.poolers, self.heads, pair, strict=True)
        )
        return one, other

    def loss(self, pair: Pair) -> Tensor:
        """InfoNCE in both directions over the batch (van den Oord et al. 2018; Radford et al. 2021, figure 3)."""
        one, other = self(pair)
        logits = self.log_scale.clamp(max=log(100)).exp() * one @ other.T
        own = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def _train(
    pair: Pair, lr: float, settings: ContrastiveSettings, seed: int, number: int, device: torch.device
) -> Towers:
    count = len(pair[0])
    with isolated(seed, Stream.PROBE, _INIT):
        towers = Towers([x.shape[-1] for x in pair], settings).to(device)
    optimizer = torch.optim.AdamW(towers.parameters(), lr=lr, weight_decay=settings.weight_decay)
    batches = ceil(count / settings.batch_size)
    epochs = ceil(settings.steps / batches)
    rate = Cosine(lr, 0.0, epochs * batches)
    rng = generator(seed, Stream.PROBE, _ORDER, number)
    for epoch in range(epochs):
        for step, rows in enumerate(torch.randperm(count, generator=rng).tensor_split(batches), start=1):
            for group in optimizer.param_groups:
                group["lr"] = rate(epoch * batches + step)
            optimizer.zero_grad()
            towers.loss((pair[0][rows].to(device), pair[1][rows].to(device))).backward()
            optimizer.step()
    return towers


@torch.no_grad()
def _embedded(towers: Towers, pair: Pair, device: torch.device, batch_size: int = 256) -> Pair:
    parts = [
        towers((one.to(device), other.to(device)))
        for one, other in zip(*(x.split(batch_size) for x in pair), strict=True)
    ]
    one, other = (torch.cat(side).cpu() for side in zip(*parts, strict=True))
    return one, other


def _best_rate(pair: Pair, settings: ContrastiveSettings, seed: int, device: torch.device) -> float:
    fit, held = ((pair[0][r], pair[1][r]) for r in random_split(len(pair[0]), settings.held_out, seed))
    k = min(10, len(held[0]))

    def worth(lr: float) -> float:
        one, other = _embedded(_train(fit, lr, settings, seed, 0, device), held, device)
        return recalls(one, other, (k,))[k] + recalls(other, one, (k,))[k]

    return max(settings.lrs, key=worth)


def attended(
    train: Pair, test: Pair, settings: ContrastiveSettings, *, seed: int = 0, device: torch.device | str = "cpu"
) -> tuple[dict[int, float], dict[int, float]]:
    """Recalls of the other modality by the one, and of the one by the other, among the test pairs.

    The learning rate is the one that finds most of held-out training pairs; the towers are then trained anew on all.

    Args:
        train, test: tokens (N, L, D) of the one and (N, M, E) of the other modality; frozen.
        settings: how to train.
        seed: of the split, the order of pairs and the start of the weights.
        device: where the towers are trained.

    Raises:
        ValueError: tokens do not belong together, hold NaN or infinity, or are too few.
    """
    for name, (one, other) in (("training", train), ("test", test)):
        if one.ndim != 3 or other.ndim != 3 or len(one) != len(other):
            raise ValueError(f"{name} tokens {tuple(one.shape)} and {tuple(other.shape)} are not pairs of (N, L, D)")
        check_features(one)
        check_features(other)
    place = torch.device(device)
    lr = settings.lrs[0] if len(settings.lrs) == 1 else _best_rate(train, settings, seed, place)
    one, other = _embedded(_train(train, lr, settings, seed, 1, place), test, place)
    return recalls(one, other), recalls(other, one)
