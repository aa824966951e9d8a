"""Regression probe: ridge regression on frozen features, in closed form over a grid of penalties.

It serves positions, sizes and distances, and counting: counts are regressed like other numbers, because being off by
one is better than being off by three, and columns of whole numbers also get the accuracy of the rounded prediction.
Counts may as well be given to the linear probe as classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jepa.probes.base import Labelled, Score, check_features, check_widths
from jepa.probes.splits import random_split

LAMBDAS = tuple(10.0**power for power in range(-6, 4))


def solutions(x: Tensor, y: Tensor, lambdas: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (lambdas, D, T) and bias (lambdas, T) for raw features, from one eigendecomposition in float64.

    They minimise the mean squared error plus lambda |W|^2 on standardised features; the bias is free.
    """
    x, y = x.double(), y.double()
    mean, std = x.mean(0), x.std(0, unbiased=False)
    scale = torch.where(std > 1e-6 * std.max(), 1 / std, torch.zeros_like(std))  # constant dimensions are left out
    z = (x - mean) * scale
    wide = z.shape[1] > len(z)  # pixels of clips: the same weights from products of samples, not of features
    values, axes = torch.linalg.eigh((z @ z.T if wide else z.T @ z) / len(z))
    centred = (y - y.mean(0)) / len(z)
    projected = axes.T @ (centred if wide else z.T @ centred)
    solved = axes @ (projected / (values.clamp(min=0)[:, None] + lambdas[:, None, None]))
    weights = scale[:, None] * (z.T @ solved if wide else solved)
    return weights, y.mean(0) - mean @ weights


def _r2(prediction: Tensor, y: Tensor) -> Tensor:
    """Coefficient of determination of each column; of a constant column 1 if it is met exactly, else 0."""
    residual, total = (y - prediction).square().sum(0), (y - y.mean(0)).square().sum(0)
    return torch.where(total > 0, 1 - residual / total, (residual == 0).double())


def _table(y: Tensor, names: Sequence[str] | None) -> tuple[Tensor, list[str]]:
    """Labels as a table (N, T) in float64, and its names."""
    table = (y[:, None] if y.ndim == 1 else y).double()
    if table.ndim != 2 or not torch.isfinite(table).all():
        raise ValueError(f"expected finite numbers (N,) or (N, T), got {tuple(y.shape)}")
    named = [str(i) for i in range(table.shape[1])] if names is None else list(names)
    if len(named) != table.shape[1]:
        raise ValueError(f"{len(named)} names for {table.shape[1]} columns")
    return table, named


def ridge_probe(
    train: Labelled,
    test: Labelled,
    *,
    names: Sequence[str] | None = None,
    lambdas: Sequence[float] = LAMBDAS,
    held_out: float = 0.2,
    seed: int = 0,
) -> Score:
    """Mean R^2 over the columns of `test`, predicted by ridge regression on `train`.

    Each column has its own lambda, chosen by the error on a random held-out part of `train` and then used on all of it.
    Details per column: "r2/NAME", "mae/NAME" and, where the training numbers are whole, "rounded_accuracy/NAME".

    Args:
        train, test: features (N, D) with numbers (N,) or (N, T).
        names: of the columns; by default "0", "1", ...
        lambdas: penalties, relative to standardised features and the mean squared error.
        held_out, seed: the split that lambda is chosen on.

    Raises:
        ValueError: unusable features or numbers, a training column with a single value, or a lambda <= 0.
    """
    check_widths(train, test)
    check_features(test.x)
    if train.x.ndim != 2 or not lambdas or min(lambdas) <= 0:
        raise ValueError(f"expected features (N, D), got {tuple(train.x.shape)}, and lambdas > 0, got {list(lambdas)}")
    (y, named), (y_test, _) = _table(train.y, names), _table(test.y, names)
    if y.shape[1] != y_test.shape[1]:
        raise ValueError(f"{y.shape[1]} training columns but {y_test.shape[1]} test columns")
    for column, name in enumerate(named):
        if (y[:, column] == y[0, column]).all():
            raise ValueError(f"column {name!r} is {float(y[0, column])} in all training samples: nothing to regress")
    device = train.x.device
    y = y.to(device)
    grid = torch.tensor(list(lambdas), dtype=torch.float64, device=device)
    fit, held = (rows.to(device) for rows in random_split(len(train), held_out, seed))
    weights, bias = solutions(train.x[fit], y[fit], grid)
    errors = (train.x[held].double() @ weights + bias[:, None] - y[held]).square().mean(1)  # (lambdas, T)
    best = errors.argmin(0)
    columns = torch.arange(len(named), device=device)
    predicted = (train.x[held].double() @ weights + bias[:, None])[best, :, columns].T
    validation = float(_r2(predicted, y[held]).mean())

    weights, bias = solutions(train.x, y, grid)
    predictions = (test.x.to(device).double() @ weights + bias[:, None])[best, :, columns].T
    y_test = y_test.to(device)
    r2, mae = _r2(predictions, y_test), (predictions - y_test).abs().mean(0)
    details = {f"r2/{name}": float(value) for name, value in zip(named, r2, strict=True)}
    details |= {f"mae/{name}": float(value) for name, value in zip(named, mae, strict=True)}
    for column, name in enumerate(named):
        if (y[:, column] == y[:, column].round()).all():
            hits = predictions[:, column].round() == y_test[:, column]
            details[f"rounded_accuracy/{name}"] = float(hits.double().mean())
    chosen = {f"lambda/{name}": float(grid[i]) for name, i in zip(named, best, strict=True)}
    return Score("r2", float(r2.mean()), validation, chosen, predictions, details)
