"""Training attentive probes on cached token features, a grid of settings side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import ceil, isfinite, log, nan

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.probes.attentive import AttentiveClassifier
from jepa.probes.base import Labelled, Score, accuracy, best_setting, check_features, check_widths, class_codes
from jepa.probes.multilabel import check_several, mean_average_precision, scored_map
from jepa.probes.splits import held_out_split, random_split
from jepa.schedules import Cosine
from jepa.seeding import Stream, generator, isolated

LEAST_STEPS, LEAST_BATCH = 2000, 32
_ORDER, _INIT = 5, 6  # first counters of the streams for the order of samples and for the start of the weights


@dataclass(frozen=True)
class AttentiveSettings:
    """How attentive probes are built, trained and chosen. See `vjepa` and `vjepa2` for the published ones.

    Attributes:
        heads, depth, unused_proj: of the `AttentivePooler`.
        lrs: learning rates of AdamW, each falling to 0 as a half cosine, without warmup.
        weight_decays: decoupled weight decays.
        final_weight_decay: where each weight decay ends, as a half cosine; None: constant.
        decay_all: decay biases, LayerNorms and the query too.
        clip: largest gradient norm of a head; None: no limit.
        epochs: passes over the training samples.
        batch_size: samples of a step, and fewer, down to `LEAST_BATCH`, where there would not be `LEAST_STEPS` steps:
            few samples make no more work, but as many steps as a probe needs to begin to learn (docs/results.md).
        held_out: share of the training samples that settings are chosen by, in proportion to the classes.
        refit: train the chosen settings again on all training samples.
    """

    heads: int
    depth: int = 1
    unused_proj: bool = False
    lrs: tuple[float, ...] = (3e-3, 1e-3, 3e-4)
    weight_decays: tuple[float, ...] = (1e-2, 1e-3)
    final_weight_decay: float | None = None
    decay_all: bool = False
    clip: float | None = None
    epochs: int = 20
    batch_size: int = 256
    held_out: float = 0.1
    refit: bool = True

    def __post_init__(self) -> None:
        if not self.lrs or not self.weight_decays or min(self.lrs) <= 0 or min(self.weight_decays) < 0:
            raise ValueError(f"lrs={self.lrs} must be positive and weight_decays={self.weight_decays} not negative")
        if min(self.epochs, self.batch_size) < 1:
            raise ValueError("epochs and batch_size must be at least 1")

    def steps_per_epoch(self, samples: int) -> int:
        """So that batches are of equal size, as nearly as they can be."""
        batch = min(self.batch_size, max(LEAST_BATCH, self.epochs * samples // LEAST_STEPS))
        return ceil(samples / batch)

    @classmethod
    def vjepa(cls, heads: int) -> AttentiveSettings:
        """V-JEPA's probe and protocol. `heads` are the encoder's.

        Published are lr 1e-3 with weight decay .01 (video) and .001 (pictures), both in this grid.
        """
        return cls(heads, unused_proj=True, final_weight_decay=1e-6, clip=1.0)

    @classmethod
    def vjepa2(cls, heads: int = 16) -> AttentiveSettings:
        """V-JEPA 2's probe and its grid of 20 settings."""
        lrs, weight_decays = (5e-3, 3e-3, 1e-3, 3e-4, 1e-4), (0.01, 0.1, 0.4, 0.8)
        return cls(heads, depth=4, lrs=lrs, weight_decays=weight_decays, decay_all=True)


@dataclass(frozen=True, eq=False)
class AttentiveProbe:
    """A trained head and the labels (K,) of its outputs; `several`: whether a sample may have any number of them."""

    classes: Tensor
    head: AttentiveClassifier
    several: bool = False

    def log_probabilities(self, x: Tensor) -> Tensor:
        """(n, K) of tokens `x` (n, L, D); of several views (n, V, L, D) the logarithm of their mean probability."""
        logits = self.head(x.to(self.head.linear.weight).flatten(0, -3))
        of_views = (F.logsigmoid(logits) if self.several else logits.log_softmax(1)).unflatten(0, (len(x), -1))
        return of_views.logsumexp(1) - log(of_views.shape[1])

    @torch.no_grad()
    def predict(self, x: Tensor, batch_size: int = 256) -> Tensor:
        """Of tokens `x` (n, L, D) or (n, V, L, D) the class (n,), or the probability of each of several (n, K)."""
        check_features(x)
        known = torch.cat([self.log_probabilities(part) for part in x.split(batch_size)])
        return known.exp() if self.several else self.classes[known.argmax(1)]


def _optimizer(heads: list[AttentiveClassifier], decay_all: bool) -> torch.optim.AdamW:
    """One AdamW for all heads: groups know the number of their head and whether they are decayed."""
    groups = []
    for number, head in enumerate(heads):
        trained = [(name, p) for name, p in head.named_parameters() if p.requires_grad]
        plain = [p for name, p in trained if not decay_all and (p.ndim == 1 or "bias" in name)]
        decayed = [p for name, p in trained if decay_all or not (p.ndim == 1 or "bias" in name)]
        groups.append({"params": decayed, "head": number, "decay": True})
        if plain:
            groups.append({"params": plain, "head": number, "decay": False})
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0)


def _steps(total: int, settings: AttentiveSettings, rng: torch.Generator) -> Iterator[Tensor]:
    """The rows of each step."""
    for _ in range(settings.epochs):
        yield from torch.randperm(total, generator=rng).tensor_split(settings.steps_per_epoch(total))


def _train(
    data: Labelled,
    grid: list[tuple[float, float]],
    settings: AttentiveSettings,
    seed: int,
    number: int,
    device: torch.device,
) -> list[AttentiveProbe]:
    """One probe for each (learning rate, weight decay) of `grid`: equal starts, equal batches. Every view counts."""
    classes, codes = _targets(data.y)
    heads = []
    for _ in grid:
        with isolated(seed, Stream.PROBE, _INIT):
            head = AttentiveClassifier(
                classes=len(classes),
                dim=data.x.shape[-1],
                heads=settings.heads,
                depth=settings.depth,
                unused_proj=settings.unused_proj,
            )
        heads.append(head.to(device))
    optimizer = _optimizer(heads, settings.decay_all)
    total = settings.epochs * settings.steps_per_epoch(len(data))
    rng = generator(seed, Stream.PROBE, _ORDER, number)
    for step, rows in enumerate(_steps(len(data), settings, rng), start=1):
        for group in optimizer.param_groups:
            lr, decay = grid[group["head"]]
            final = decay if settings.final_weight_decay is None else settings.final_weight_decay
            group["lr"] = Cosine(lr, 0.0, total)(step)
            group["weight_decay"] = Cosine(decay, final, total)(step) if group["decay"] else 0.0
        x = data.x[rows.to(data.x.device)].to(device, torch.float32).flatten(0, -3)  # views are samples
        target = codes[rows.to(codes.device)].to(device).repeat_interleave(len(x) // len(rows), dim=0)
        optimizer.zero_grad()
        for head in heads:
            _loss(head(x), target).backward()
            if settings.clip is not None:
                nn.utils.clip_grad_norm_(head.parameters(), settings.clip)
        optimizer.step()
    return [AttentiveProbe(classes.to(device), head, codes.ndim == 2) for head in heads]


def _targets(y: Tensor) -> tuple[Tensor, Tensor]:
    """Labels (K,) of a head's outputs, and what it learns: codes (N,), or zeros and ones (N, K) of several classes."""
    if y.ndim != 2:
        return class_codes(y)
    check_several(y)
    return torch.arange(y.shape[1]), y.float()


def _loss(logits: Tensor, target: Tensor) -> Tensor:
    if target.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits, target)
    return F.cross_entropy(logits, target)


@torch.no_grad()
def _validate(probe: AttentiveProbe, held: Labelled, batch_size: int) -> tuple[float, float]:
    """Accuracy, or mean average precision, and cross-entropy on held-out samples, all of known classes."""
    if probe.several:
        shares, truth = probe.predict(held.x, batch_size).cpu(), held.y.float().cpu()
        worth = mean_average_precision(shares, truth)
        return worth if isfinite(worth) else 0.0, float(F.binary_cross_entropy(shares, truth))
    correct = loss = 0.0
    for x, y in zip(held.x.split(batch_size), held.y.split(batch_size), strict=True):
        known = probe.log_probabilities(x)
        target = torch.searchsorted(probe.classes, y.to(probe.classes))
        correct += float((known.argmax(1) == target).sum())
        loss += float(F.nll_loss(known, target, reduction="sum"))
    return correct / len(held), loss / len(held)


def fit_attentive(
    train: Labelled, settings: AttentiveSettings, *, seed: int = 0, device: torch.device | str | None = None
) -> tuple[AttentiveProbe, dict[str, float]]:
    """The best probe of the grid, and what it was chosen by.

    The choice: the highest accuracy on held-out training samples, of several classes at once the highest mean average
    precision; of equals, the lowest cross-entropy there. (V-JEPA 2 reports the maximum over heads on the test set
    itself.) Where no class has two samples nothing can be held out, and the middle of each list is taken.

    Args:
        train: tokens (N, L, D) or (N, V, L, D), on any device and in any floating dtype; batches are moved to `device`
            in float32. Labels are classes (N,), or zeros and ones (N, K).
        settings: how to train.
        seed: of the split, the order of the samples and the start of the weights.
        device: where the heads are trained; by default where the features are.

    Raises:
        ValueError: unusable features or labels, or one class.
    """
    if train.x.ndim < 3:
        raise ValueError(f"an attentive probe takes tokens (N, L, D) or (N, V, L, D), got {tuple(train.x.shape)}")
    _targets(train.y)
    place = torch.device(device) if device is not None else train.x.device
    grid = list(product(settings.lrs, settings.weight_decays))
    if train.y.ndim == 2:
        rows, held_rows = random_split(len(train), settings.held_out, seed)
    else:
        rows, held_rows = held_out_split(train.y, settings.held_out, seed)
    probes: list[AttentiveProbe] = []
    if len(held_rows):
        held = train.take(held_rows)
        probes = _train(train.take(rows), grid, settings, seed, 0, place)
        measured = [_validate(probe, held, settings.batch_size) for probe in probes]
        best = best_setting([a for a, _ in measured], [loss for _, loss in measured])
        validation = measured[best][0]
    else:
        best = len(settings.lrs) // 2 * len(settings.weight_decays) + len(settings.weight_decays) // 2
        validation = nan
    refit = settings.refit or not probes
    probe = _train(train, [grid[best]], settings, seed, 1, place)[0] if refit else probes[best]
    return probe, {"lr": grid[best][0], "weight_decay": grid[best][1], "validation": validation}


def attentive_probe(
    train: Labelled,
    test: Labelled,
    settings: AttentiveSettings,
    *,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Score:
    """Accuracy on `test` of the probe that `fit_attentive` chooses on `train`; of several classes at once, mean average
    precision, as "map".

    Raises:
        ValueError: unusable features or labels, one class, test samples of no class, or features of another shape.
    """
    check_widths(train, test)
    probe, chosen = fit_attentive(train, settings, seed=seed, device=device)
    predictions = probe.predict(test.x, settings.batch_size)
    validation = chosen.pop("validation")
    if probe.several:
        score = scored_map(predictions.cpu(), test.y.cpu())
        return Score("map", score, validation, chosen, predictions, {})
    return Score("accuracy", accuracy(predictions, test.y), validation, chosen, predictions, {})
