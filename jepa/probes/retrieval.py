"""Finding the sound of a clip among others, and the clip of a sound: what two modalities know of each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.interfaces import Encoder
from jepa.model import JEPA
from jepa.probes.base import check_features
from jepa.probes.ridge import solutions
from jepa.probes.splits import random_split
from jepa.types import Indices, Input, JointGrid, Tokens, View, each

Pair = tuple[Tensor, Tensor]  # of the one and of the other modality, row by row
KS = (1, 5, 10)
PENALTIES = (0.01, 0.1, 1.0, 10.0)  # of ridge regression, relative to standardised features
HELD_OUT = 0.2  # of the training pairs
_ROUNDING = 1e-12  # of float64, with room: products of equal rows differ by the order of their sums


def recalls(query: Tensor, bank: Tensor, ks: Sequence[int] = KS) -> dict[int, float]:
    """Share of queries whose counterpart is among the k nearest of the bank, by cosine, after each side's mean is taken
    away. Rows as near as the counterpart count as in random order: embeddings that are all one give k / N.

    Args:
        query, bank: (N, D); row i of the one belongs to row i of the other.
        ks: each at most N.

    Raises:
        ValueError: they do not belong together, a k is larger than N, or a row holds NaN or infinity.
    """
    if query.shape != bank.shape or max(ks) > len(query):
        raise ValueError(
            f"need queries and a bank of one shape and {max(ks)} rows or more; got {query.shape}, {bank.shape}"
        )
    check_features(query)
    check_features(bank)
    query, bank = (F.normalize(_centred(x.double()), dim=1) for x in (query, bank))
    cosine = query @ bank.T
    own = cosine.diagonal()[:, None]
    nearer = (cosine > own + _ROUNDING).sum(1)
    equal = ((cosine - own).abs() <= _ROUNDING).sum(1)  # itself among them
    return {k: float(((k - nearer) / equal).clamp(0, 1).double().mean()) for k in ks}


def _centred(x: Tensor) -> Tensor:
    """Less the mean; what is nothing but its rounding becomes zero, which points nowhere."""
    rest = x - x.mean(0)
    return torch.where(rest.abs() <= _ROUNDING * x.abs().amax(0), 0.0, rest)


def mapped(train: Pair, test: Pair, seed: int) -> tuple[dict[int, float], dict[int, float]]:
    """Recalls of the other modality by the one, and of the one by the other, after a ridge regression has taken one of
    them to the other. Which of the two, and its penalty, are those that find most of held-out training pairs.

    Args:
        train, test: embeddings (N, D) of the one and (N, E) of the other modality, row by row.
        seed: of the rows that are held out.

    Raises:
        ValueError: an embedding holds NaN or infinity, or there are too few.
    """
    for x in (*train, *test):
        check_features(x)
    fit, held = ((train[0][rows], train[1][rows]) for rows in random_split(len(train[0]), HELD_OUT, seed))
    k = min(10, len(held[0]))

    worth = {
        (backwards, penalty): forth[k] + back[k]
        for backwards in (False, True)
        for penalty, (forth, back) in zip(PENALTIES, _through(fit, held, backwards, PENALTIES, (k,)), strict=True)
    }
    backwards, penalty = max(worth, key=lambda choice: worth[choice])
    return _through(train, test, backwards, (penalty,))[0]


def _through(
    train: Pair, test: Pair, backwards: bool, penalties: Sequence[float], ks: Sequence[int] = KS
) -> list[tuple[dict[int, float], dict[int, float]]]:
    """As `mapped`, for each penalty of a regression from the one modality to the other, or `backwards`."""
    if backwards:
        turned = _through((train[1], train[0]), (test[1], test[0]), False, penalties, ks)
        return [(forth, back) for back, forth in turned]
    found = []
    for weights, bias in zip(*solutions(*train, torch.tensor(penalties, dtype=torch.float64)), strict=True):
        guess = test[0].double() @ weights + bias
        found.append((recalls(guess, test[1], ks), recalls(test[1], guess, ks)))
    return found


Asks = Callable[[str, str], int]  # (seen, asked) -> number of the task


def joint_embeddings(
    encoder: Encoder, normalize: Callable[[Any], Input], jepa: JEPA | None = None, asks: Asks = lambda seen, asked: 0
) -> Callable[[Input], dict[str, Tensor]]:
    """`encode` for `extract`: of each modality alone the means of its tokens in each step of time (B, T * D, "one in
    time"); where a whole JEPA is given also such means of what is predicted of it from another ("one from other"), and
    of what that is trained to be ("one as target").

    Args:
        encoder: of modalities.
        normalize: brings raw inputs to the encoder's range.
        jepa: the encoder's.
        asks: the task as which its predictor is asked for one modality from another.

    Raises (when called):
        ValueError: the data has one modality.
    """
    device = next(encoder.parameters()).device

    def encode(x: Input) -> dict[str, Tensor]:
        x = normalize(each(x, lambda part: part.to(device)))
        if isinstance(x, Tensor) or len(x) < 2:
            raise ValueError(
                f"one modality is to be found by another, but data.eval_transform leaves "
                f"{'one' if isinstance(x, Tensor) else ', '.join(x)} only"
            )
        grid = encoder.grid(each(x, lambda part: part.shape[2:]))
        assert isinstance(grid, JointGrid)
        found = {
            f"{name} in time": _in_time(encoder(View({name: part})).dense(), grid.parts[name])
            for name, part in x.items()
        }
        if jepa is not None:
            target = jepa.targets(View(x)).dense()
            for name in x:
                found[f"{name} as target"] = _in_time(target[:, grid.cells(name)], grid.parts[name])
            for seen, asked in permutations(x, 2):
                predicted = _predicted(jepa, x, grid, seen, asked, asks(seen, asked))
                found[f"{asked} from {seen}"] = _in_time(predicted.dense(), grid.parts[asked])
        return found

    return encode


def explained(prediction: Tensor, target: Tensor) -> float:
    """Share of the variance of `target` (N, F) over the samples that `prediction` explains. 0: it is no better than
    their mean, or they do not vary; below 0: worse."""
    total = _centred(target).square().sum()
    return float(1 - (prediction - target).square().sum() / total) if total > 0 else 0.0


def _in_time(tokens: Tensor, grid: tuple[int, ...]) -> Tensor:
    """(B, T * D) means of tokens (B, G, D) over all axes of a grid but the first."""
    return tokens.unflatten(1, (grid[0], -1)).mean(2).flatten(1)


def _predicted(jepa: JEPA, x: Any, grid: JointGrid, seen: str, asked: str, task: int) -> Tokens:
    """What is predicted at all positions of one modality, from all of another."""
    samples, device = len(View(x)), next(iter(x.values())).device

    def whole(name: str) -> Indices:
        cells = grid.cells(name)
        places = torch.arange(cells.start, cells.stop, device=device)
        return Indices.of(places.repeat(samples), torch.full((samples,), len(places), device=device), grid)

    context = jepa.encoder(View(x, whole(seen)))
    return jepa.predictor(context, replace(whole(asked), task=task))
