"""kNN during training: recent embeddings classify the current batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.probes.knn import TEMPERATURE

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class OnlineKNN:
    """A queue of recent embeddings with their labels.

    Older entries come from an older encoder: the score is a lower bound, the tighter the more often batches are added.

    Args:
        size: embeddings that are kept.
        k: neighbours that vote, each with exp(cosine / temperature).
        temperature: of the votes.

    Raises:
        ValueError: k is not between 1 and `size`.
    """

    def __init__(self, *, size: int = 2048, k: int = 20, temperature: float = TEMPERATURE) -> None:
        if not 1 <= k <= size:
            raise ValueError(f"k={k} must lie between 1 and the size of the bank, {size}")
        self.size, self.k, self.temperature = size, k, temperature
        self._x = torch.empty(0, 0)
        self._index = torch.empty(0, dtype=torch.long)
        self._labels: dict[str, Tensor] = {}

    def add(self, x: Tensor, labels: Mapping[str, Tensor], index: Tensor | None = None) -> None:
        """Remember embeddings `x` (B, D). Without labels of integers nothing is kept.

        Args:
            x: embeddings.
            labels: named; vectors of integers (B,) are used.
            index: (B,) positions of the samples in their dataset, not negative.

        Raises:
            ValueError: the names of the labels changed, or their length is not B.
        """
        usable = self._usable(labels, len(x))
        if not usable:
            return
        own = torch.full((len(x),), -1, device=x.device) if index is None else index.to(x.device)
        if not len(self._x):
            self._x, self._index = x.new_empty(0, x.shape[1]), own[:0]
            self._labels = {name: y[:0].to(x.device) for name, y in usable.items()}
        self._x = torch.cat((self._x.to(x.device), F.normalize(x.float(), dim=-1)))[-self.size :]
        self._index = torch.cat((self._index.to(x.device), own))[-self.size :]
        self._labels = {
            name: torch.cat((self._labels[name].to(x.device), y.to(x.device)))[-self.size :]
            for name, y in usable.items()
        }

    def score(self, x: Tensor, labels: Mapping[str, Tensor], index: Tensor | None = None) -> dict[str, float]:
        """`knn/NAME`, the accuracy on embeddings `x` (B, D), and `knn_chance/NAME`, that of the most frequent class.

        Nothing before there are k neighbours for each; a sample's own earlier embeddings are left out.
        """
        usable = self._usable(labels, len(x))
        if not usable or not len(self._x):
            return {}
        cosine = F.normalize(x.float(), dim=-1) @ self._x.to(x.device).T
        if index is not None:
            own = index.to(x.device)[:, None] == self._index.to(x.device)
            cosine = cosine.masked_fill(own, -torch.inf)
        if int(cosine.isfinite().sum(1).min()) < self.k:
            return {}
        near, rows = cosine.topk(self.k)
        weight = ((near - near[:, :1]) / self.temperature).exp()
        found = {}
        for name, y in usable.items():
            classes, codes = torch.unique(self._labels[name].to(x.device), return_inverse=True)
            votes = weight.new_zeros(len(x), len(classes)).scatter_add_(1, codes[rows], weight)
            truth = y.to(x.device)
            found[f"knn/{name}"] = float((classes[votes.argmax(1)] == truth).double().mean())
            found[f"knn_chance/{name}"] = float((classes[codes.bincount().argmax()] == truth).double().mean())
        return found

    def state_dict(self) -> dict[str, Any]:
        """Tensors on the host."""
        return {
            "x": self._x.cpu(),
            "index": self._index.cpu(),
            "labels": {name: y.cpu() for name, y in self._labels.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self._x, self._index, self._labels = state["x"], state["index"], dict(state.get("labels", {}))

    def _usable(self, labels: Mapping[str, Tensor], samples: int) -> dict[str, Tensor]:
        """The labels that are vectors of integers, as int64."""
        usable = {name: y.long() for name, y in labels.items() if y.ndim == 1 and y.dtype in _INTEGERS}
        for name, y in usable.items():
            if len(y) != samples:
                raise ValueError(f"label {name!r} holds {len(y)} values for {samples} samples")
        if usable and len(self._x) and usable.keys() != self._labels.keys():
            raise ValueError(f"labels were {sorted(self._labels)}, now they are {sorted(usable)}")
        return usable
