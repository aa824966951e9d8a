"""The collapse panel: what is measured on a training step, kept, and judged."""

from __future__ import annotations

from collections.abc import Mapping
from math import nan, prod
from typing import Any

import torch
from torch import Tensor

from jepa.probes.diagnostics import agreement, mean_cosine, position_variance, rank_me, spread
from jepa.probes.online import OnlineKNN
from jepa.probes.verdict import Thresholds, Verdict, judge
from jepa.seeding import Stream, generator
from jepa.types import Indices, Tokens


def _subset(total: int, most: int, device: torch.device) -> Tensor:
    """At most `most` of `total` rows, scattered; a function of the two numbers alone."""
    if total <= most:
        return torch.arange(total, device=device)
    return torch.randperm(total, generator=generator(0, Stream.PROBE, total))[:most].to(device)


def measure(intermediates: Mapping[str, Any], *, max_samples: int = 64, max_tokens: int = 512) -> dict[str, float]:
    """The named numbers of one step, each from at most so many samples and tokens of this process's share.

    - `target_rank`, `context_rank`: RankMe of tokens; `target_rank_share`, `context_rank_share`: of min(D, tokens used)
    - `target_std`: standard deviation over target tokens, mean over dimensions
    - `target_cosine`: mean cosine between two target tokens
    - `sample_cosine`: mean cosine between two samples, each the mean of its target tokens
    - `position_share`: share of the target tokens' variance explained by position alone
    - `agreement`: mean cosine of predictions with their target
    - `agreement_same_position`: with the target of another sample at that position. A predictor that uses nothing but
      the position gets as much.
    - `agreement_anywhere`: with any target token of the batch. A predictor that answers one vector gets as much.
    - `agreement_gain`: (agreement - same position) / (1 - same position)

    The last six need two samples and are left out otherwise. All are NaN if the embeddings are not finite.

    Args:
        intermediates: of a `StepOutput`.
        max_samples, max_tokens: cap the cost, which is that of two singular value decompositions.
    """
    target: Tokens = intermediates["target"]
    tasks = intermediates["tasks"]
    few = target.x[_subset(len(target.x), max_tokens, target.x.device)].float()
    seen = tasks[0]["context"].x
    seen = seen[_subset(len(seen), max_tokens, seen.device)].float()
    values = {"target_rank": nan, "context_rank": nan, "target_std": nan, "target_cosine": nan}
    if not (torch.isfinite(few).all() and torch.isfinite(seen).all()):
        return values
    target_rank, context_rank = rank_me(few), rank_me(seen)
    values = {
        "target_rank": target_rank,
        "target_rank_share": target_rank / min(few.shape),
        "context_rank": context_rank,
        "context_rank_share": context_rank / min(seen.shape),
        "target_std": spread(few),
        "target_cosine": mean_cosine(few),
    }
    samples = min(len(target.index), max_samples)
    if samples < 2:
        return values
    cells = prod(target.index.grid)
    part = target.x[: samples * cells].view(samples, cells, -1)
    values["sample_cosine"] = mean_cosine(part.mean(1, dtype=torch.float32))
    values["position_share"] = position_variance(part)
    return values | _agreements(target, tasks, max_tokens)


def _agreements(target: Tokens, tasks: list[dict[str, Any]], max_tokens: int) -> dict[str, float]:
    """Agreement of predictions with their target, and with the two kinds of shuffled targets; means over tasks."""
    cells, total = prod(target.index.grid), len(target.x)
    found: dict[str, float] = dict.fromkeys(("agreement", "agreement_same_position", "agreement_anywhere"), 0.0)
    for task in tasks:
        prediction, query = task["prediction"].x, task["query"]
        rows = _subset(len(prediction), max_tokens, prediction.device)
        if isinstance(query, Indices):
            sample = query.sets[rows] // (len(query) // len(target.index))
            own = sample * cells + query.values[rows]
        else:  # a motion: one prediction for each target token
            own = rows
        anywhere = torch.randint(total, (len(own),), generator=generator(0, Stream.PROBE, total)).to(own.device)
        for name, answer in (("", own), ("_same_position", (own + cells) % total), ("_anywhere", anywhere)):
            found[f"agreement{name}"] += agreement(prediction[rows], target.x[answer]) / len(tasks)
    same = found["agreement_same_position"]
    found["agreement_gain"] = (found["agreement"] - same) / max(1 - same, 1e-6)
    return found


class CollapsePanel:
    """Measures steps of a run, keeps what it measured, and judges it.

    Everything is measured on this process's share of the batch, meant to be that of rank 0: no process waits for it.

    Args:
        thresholds: of the verdict.
        max_samples, max_tokens: most that a measurement uses; see `measure`.
        bank_size: samples that the online kNN remembers.
        k: its neighbours.

    Attributes:
        history: what was measured, oldest first.
    """

    def __init__(
        self,
        *,
        thresholds: Thresholds | None = None,
        max_samples: int = 64,
        max_tokens: int = 512,
        bank_size: int = 2048,
        k: int = 20,
    ) -> None:
        if max_samples < 2 or max_tokens < 2:
            raise ValueError(f"max_samples={max_samples} and max_tokens={max_tokens} must be at least 2")
        self.thresholds = thresholds or Thresholds()
        self.max_samples, self.max_tokens = max_samples, max_tokens
        self.knn = OnlineKNN(size=bank_size, k=k)
        self.history: list[dict[str, float]] = []

    @torch.no_grad()
    def remember(
        self, intermediates: Mapping[str, Any], labels: Mapping[str, Tensor], index: Tensor | None = None
    ) -> None:
        """Give the online kNN a batch that is not measured, so that what it knows is recent. Cheap."""
        self.knn.add(_samples(intermediates["target"]), labels, index)

    @torch.no_grad()
    def measure(
        self, intermediates: Mapping[str, Any], labels: Mapping[str, Tensor], index: Tensor | None = None
    ) -> dict[str, float]:
        """The numbers of `measure`, and `knn/NAME` and `knn_chance/NAME` for each label of integers.

        The online kNN classifies the batch by earlier ones, and then remembers it.

        Args:
            intermediates: of a `StepOutput`.
            labels: of the batch, named, (B, ...); only vectors of integers are used.
            index: (B,) positions of the samples in their dataset: a sample is never classified by its own past.
        """
        values = measure(intermediates, max_samples=self.max_samples, max_tokens=self.max_tokens)
        x = _samples(intermediates["target"])
        values |= self.knn.score(x, labels, index)
        self.knn.add(x, labels, index)
        self.history.append(values)
        return dict(values)

    def verdict(self) -> Verdict:
        """What `judge` makes of the history."""
        return judge(self.history, self.thresholds)

    def state_dict(self) -> dict[str, Any]:
        """Tensors, in nested dictionaries: what a resumed run needs to go on exactly."""
        names = sorted({name for row in self.history for name in row})
        return {
            "measured": {n: torch.tensor([n in row for row in self.history]) for n in names},
            "history": {n: torch.tensor([row.get(n, nan) for row in self.history], dtype=torch.float64) for n in names},
            "knn": self.knn.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        columns = {name: column.tolist() for name, column in state.get("history", {}).items()}
        measured = {name: column.tolist() for name, column in state.get("measured", {}).items()}
        rows = len(next(iter(columns.values()), []))
        self.history = [{n: columns[n][i] for n in columns if measured[n][i]} for i in range(rows)]
        self.knn.load_state_dict(state["knn"])


def _samples(target: Tokens) -> Tensor:
    """(B, D) mean of each sample's target tokens, in float32."""
    return target.x.view(len(target.index), -1, target.x.shape[1]).mean(1, dtype=torch.float32)
