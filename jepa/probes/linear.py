"""Linear probe: multinomial logistic regression on frozen features, a grid of settings trained in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import ceil, cos, nan, pi

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.probes.base import Labelled, Score, accuracy, best_setting, check_features, check_widths, class_codes
from jepa.probes.splits import held_out_split
from jepa.seeding import Stream, generator

_ORDER = 4  # first counter of the stream that orders the samples


@dataclass(frozen=True)
class LinearSettings:
    """How a linear probe is trained and chosen.

    Attributes:
        lrs: learning rates of Adam, each falling to 0 as a half cosine. These two converge within `min_steps` unless
            the decay is tiny; smaller ones stop early, which the held-out part may prefer by chance.
        weight_decays: coefficients w of w / 2 |W|^2 beside the mean cross-entropy; biases are free. In scikit-learn's
            terms w = 1 / (C N). Far above 10,000 samples add smaller ones; below, those fit the training samples
            perfectly, and only slowly.
        epochs: passes over the samples; continued until at least `min_steps` steps were taken.
        min_steps: for small data.
        batch_size: samples in a step.
        held_out: share of the training samples that settings are chosen by, in proportion to the classes.
        splits: how many such parts the choice is averaged over; more than one for few labels.
    """

    lrs: tuple[float, ...] = (1e-1, 3e-2)
    weight_decays: tuple[float, ...] = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
    epochs: int = 50
    min_steps: int = 1000
    batch_size: int = 1024
    held_out: float = 0.2
    splits: int = 1

    def __post_init__(self) -> None:
        if not self.lrs or not self.weight_decays or min(self.lrs) <= 0 or min(self.weight_decays) < 0:
            raise ValueError(f"lrs={self.lrs} must be positive and weight_decays={self.weight_decays} not negative")
        if min(self.epochs, self.min_steps, self.batch_size, self.splits) < 1:
            raise ValueError("epochs, min_steps, batch_size and splits must be at least 1")

    @property
    def grid(self) -> list[tuple[float, float]]:
        """(learning rate, weight decay) of each head."""
        return list(product(self.lrs, self.weight_decays))

    @property
    def default(self) -> int:
        """The head to take where nothing can be held out: the middle of each list."""
        return len(self.lrs) // 2 * len(self.weight_decays) + len(self.weight_decays) // 2


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """Trained heads: logits = (x - mean) @ basis @ weight + bias.

    Attributes:
        classes: (K,) labels, ascending.
        mean: (D,) of the training features.
        basis: (D, R) standardises each dimension and turns to principal axes.
        weight: (heads, R, K).
        bias: (heads, K).
    """

    classes: Tensor
    mean: Tensor
    basis: Tensor
    weight: Tensor
    bias: Tensor

    def logits(self, x: Tensor) -> Tensor:
        """(heads, n, K) for features `x` (n, D)."""
        return _apply((x.to(self.mean) - self.mean) @ self.basis, self.weight, self.bias)

    def predict(self, x: Tensor) -> Tensor:
        """Classes (n,) by the first head."""
        check_features(x)
        first = LinearProbe(self.classes, self.mean, self.basis, self.weight[:1], self.bias[:1])
        return torch.cat([self.classes[first.logits(part)[0].argmax(1)] for part in x.split(8192)])


def _apply(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """z @ weight + bias for every head as one product: (n, R), (heads, R, K), (heads, K) -> (heads, n, K)."""
    joint = torch.addmm(bias.flatten(), z, weight.transpose(0, 1).flatten(1))
    return joint.view(len(z), *bias.shape).transpose(0, 1)


def _standardise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and basis (D, R) of features (N, D): standardised, then turned to their principal axes.

    Turning leaves the regularised problem unchanged and makes its Hessian nearly diagonal, which Adam's step per
    coordinate needs on features of low rank. Constant dimensions and axes without variance are left out.
    """
    mean = x.mean(0, dtype=torch.float64)
    # in chunks: the features may be large, and half precision
    std = torch.stack([(part.double() - mean).square().sum(0) for part in x.split(8192)]).sum(0).div(len(x)).sqrt()
    scale = torch.where(std > 1e-6 * std.max(), 1 / std, torch.zeros_like(std))
    if len(x) < x.shape[1]:  # as with pixels of clips: products of samples have the same variances, and are fewer
        z = (x.double() - mean) * scale
        values, mixtures = torch.linalg.eigh(z @ z.T / len(x))
        kept = values > 1e-7 * values[-1]
        axes = z.T @ (mixtures[:, kept] / (len(x) * values[kept]).sqrt())
    else:
        parts = (((part.double() - mean) * scale) for part in x.split(8192))
        covariance = sum(part.T @ part for part in parts) / len(x)
        assert isinstance(covariance, Tensor)
        values, axes = torch.linalg.eigh(covariance)
        axes = axes[:, values > 1e-7 * values[-1]]
    return mean.float(), (scale[:, None] * axes.flip(1)).float()


def _batches(total: int, settings: LinearSettings, rng: torch.Generator) -> Iterator[tuple[float, Tensor]]:
    """The learning rate's share and the rows of each step."""
    size = min(settings.batch_size, total)
    per_epoch = ceil(total / size)
    epochs = max(settings.epochs, ceil(settings.min_steps / per_epoch))
    for epoch in range(epochs):
        for number, rows in enumerate(torch.randperm(total, generator=rng).tensor_split(per_epoch)):
            yield 0.5 * (1 + cos(pi * (epoch + number / per_epoch) / epochs)), rows


def _train(
    data: Labelled,
    grid: list[tuple[float, float]],
    settings: LinearSettings,
    rng: torch.Generator,
    device: torch.device,
) -> LinearProbe:
    """One head for each (learning rate, weight decay) of `grid`, all trained on the same batches."""
    classes, codes = class_codes(data.y)
    mean, basis = (t.to(device) for t in _standardise(data.x))
    z = torch.cat([(part.to(mean) - mean) @ basis for part in data.x.split(8192)])
    codes = codes.to(device)
    lrs = sorted({lr for lr, _ in grid})
    heads = [[i for i, (own, _) in enumerate(grid) if own == lr] for lr in lrs]  # of each learning rate
    decay = torch.tensor([grid[i][1] for members in heads for i in members], device=device)
    weights = [torch.zeros(len(m), basis.shape[1], len(classes), device=device, requires_grad=True) for m in heads]
    biases = [torch.zeros(len(m), len(classes), device=device, requires_grad=True) for m in heads]
    groups = [{"params": pair} for pair in zip(weights, biases, strict=True)]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    for share, rows in _batches(len(data), settings, rng):
        for lr, group in zip(lrs, optimizer.param_groups, strict=True):
            group["lr"] = lr * share
        rows = rows.to(device)
        weight, bias = torch.cat(weights), torch.cat(biases)
        logits = _apply(z[rows], weight, bias)
        # sums over heads: each gets the gradient of its own loss alone
        loss = F.cross_entropy(logits.flatten(0, 1), codes[rows].repeat(len(grid)), reduction="sum") / len(rows)
        loss = loss + 0.5 * (decay * weight.square().sum((1, 2))).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    order = torch.tensor([i for members in heads for i in members], device=device).argsort()
    weight, bias = torch.cat(weights).detach()[order], torch.cat(biases).detach()[order]
    return LinearProbe(classes.to(device), mean, basis, weight, bias)


@torch.no_grad()
def _validate(probe: LinearProbe, held: Labelled) -> tuple[Tensor, Tensor]:
    """Accuracy (heads,) and cross-entropy (heads,) on held-out samples, all of known classes."""
    correct = torch.zeros(len(probe.weight), dtype=torch.float64)
    loss = torch.zeros_like(correct)
    target = torch.searchsorted(probe.classes, held.y.to(probe.classes))
    for x, y in zip(held.x.split(8192), target.split(8192), strict=True):
        logits = probe.logits(x)
        correct += (logits.argmax(-1) == y).sum(1).cpu()
        log_p = logits.log_softmax(-1).gather(2, y.expand(len(logits), -1)[..., None])
        loss -= log_p.double().sum((1, 2)).cpu()
    return correct / len(held), loss / len(held)


def fit_linear(
    train: Labelled, settings: LinearSettings | None = None, *, seed: int = 0, device: torch.device | str | None = None
) -> tuple[LinearProbe, dict[str, float]]:
    """The best setting of the grid, trained again on all samples, and what it was chosen by.

    The choice: the highest accuracy on held-out training samples; of equals, the lowest cross-entropy there. Where no
    class has two samples nothing can be held out, and the middle of each list is taken.

    Args:
        train: features (N, D), on any device.
        settings: how to train.
        seed: of the split and of the order of the samples.
        device: where the heads are trained; by default where the features are.

    Returns:
        The probe and {"lr", "weight_decay", "validation"}, the last NaN where nothing could be held out.

    Raises:
        ValueError: unusable features or labels, or one class.
    """
    settings = settings or LinearSettings()
    if train.x.ndim != 2:
        raise ValueError(f"a linear probe takes pooled features (N, D), got {tuple(train.x.shape)}")
    class_codes(train.y)
    place = torch.device(device) if device is not None else train.x.device
    grid = settings.grid
    best, validation = settings.default, nan
    splits = [held_out_split(train.y, settings.held_out, seed, number) for number in range(settings.splits)]
    if len(splits[0][1]):
        measured = []
        for number, (rows, held) in enumerate(splits):
            heads = _train(train.take(rows), grid, settings, generator(seed, Stream.PROBE, _ORDER, number), place)
            measured.append(_validate(heads, train.take(held)))
        correct, loss = (torch.stack(parts).mean(0).tolist() for parts in zip(*measured, strict=True))
        best = best_setting(correct, loss)
        validation = correct[best]
    probe = _train(train, [grid[best]], settings, generator(seed, Stream.PROBE, _ORDER, settings.splits), place)
    return probe, {"lr": grid[best][0], "weight_decay": grid[best][1], "validation": validation}


def linear_probe(
    train: Labelled,
    test: Labelled,
    settings: LinearSettings | None = None,
    *,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Score:
    """Accuracy on `test` of the probe that `fit_linear` chooses on `train`.

    Raises:
        ValueError: unusable features or labels, one class, or features of another width.
    """
    check_widths(train, test)
    probe, chosen = fit_linear(train, settings, seed=seed, device=device)
    predictions = probe.predict(test.x)
    validation = chosen.pop("validation")
    return Score("accuracy", accuracy(predictions, test.y), validation, chosen, predictions, {})
