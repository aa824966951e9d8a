"""The pluggable parts. A part of your own is a subclass in your own file, named by its dotted path in a recipe."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from jepa.types import Indices, Masks, Tokens, View


class Encoder(nn.Module, ABC):
    """Turns a view into tokens, one for each position that the view keeps.

    Attributes:
        embed_dim: width D of the tokens.
    """

    embed_dim: int

    @abstractmethod
    def grid(self, input_size: Sequence[int]) -> tuple[int, ...]:
        """Grid of tokens for an input of `input_size` (without batch and channels).

        Raises:
            ValueError: the encoder cannot take an input of this size.
        """

    @abstractmethod
    def forward(self, view: View) -> Tokens:
        """Tokens (N, D) at `view.keep`, or at every position of the grid when that is None."""

    def features(self, view: View, layers: Sequence[int]) -> list[Tokens]:
        """Tokens after each of the given layers, -1 being the output. Encoders with more to show override this.

        Raises:
            ValueError: a layer that the encoder does not have.
        """
        if any(layer != -1 for layer in layers):
            raise ValueError(f"{type(self).__name__} offers its output (layer -1) only, not {list(layers)}")
        return [self(view)] * len(layers)


class Predictor(nn.Module, ABC):
    """Predicts embeddings from context tokens and a query.

    The constructor must take the keyword `embed_dim`, the encoder's width: recipes leave it out and it is filled in.
    """

    @abstractmethod
    def forward(self, context: Tokens, query: Indices | Tensor) -> Tokens:
        """One token (N, D) for each queried position, in the query's order.

        The query holds M sets for each of the context's, sample after sample; each is predicted on its own.
        """


class Masker(ABC):
    """Draws prediction problems. Pure: all randomness comes from the generator it is handed."""

    def check(self, grid: tuple[int, ...]) -> None:  # noqa: B027 - most maskers can serve any grid
        """Refuse a grid that these settings cannot serve.

        Called once before training starts, so that an impossible setting never reaches a data worker.

        Raises:
            ValueError: naming the setting and what would work.
        """

    @abstractmethod
    def sample(self, batch_size: int, grid: tuple[int, ...], generator: torch.Generator) -> list[Masks]:
        """Boolean maps for `batch_size` samples, one entry for each task.

        It is called with the size of the *global* batch and each process takes its slice, so that masks depend on the
        seed and the step alone. Every context and target set must hold at least one position.
        """


class TargetUpdater(ABC):
    """How the target encoder follows the encoder.

    Attributes:
        gradient: whether gradients flow through the targets into the encoder.
    """

    gradient: bool = False

    @abstractmethod
    def make_target(self, encoder: Encoder) -> Encoder | None:
        """The target encoder at the start of training; None where the encoder is its own target."""

    @abstractmethod
    def momentum(self, step: int, total_steps: int) -> float:
        """Share of the old target that survives the update after optimiser step `step` (1-based)."""

    @abstractmethod
    def update(self, encoder: Encoder, target: Encoder | None, momentum: float) -> None:
        """Move `target` towards `encoder` after an optimiser step."""
