"""The pluggable parts. A part of your own is a subclass in your own file, named by its dotted path in a recipe."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from jepa.types import Indices, Masks, Motions, Outcome, Tokens, View


class Encoder(nn.Module, ABC):
    """Turns a view into tokens, one for each position that the view keeps.

    Attributes:
        embed_dim: width D of the tokens.
        modalities: names of those that it joins; none where its input is one tensor.
        hides: whether it can leave out what a view does not keep. A ConvNet cannot: it takes no masks.
        statistics: (mean, std) of each channel that its weights were trained with; None where any will do.
    """

    embed_dim: int
    modalities: tuple[str, ...] = ()
    hides: bool = True
    statistics: tuple[Sequence[float], Sequence[float]] | None = None

    @abstractmethod
    def grid(self, input_size: Sequence[int]) -> tuple[int, ...]:
        """Grid of tokens for an input of `input_size` (without batch and channels); where the encoder joins modalities,
        a `JointGrid` for the sizes by name.

        Raises:
            ValueError: the encoder cannot take an input of this size.
        """

    def begin(self) -> None:
        """Load weights that this encoder starts from: called once before the first step of a run, of its target encoder
        too, but not when a trained model is loaded.

        Raises:
            ValueError, OSError: they cannot be used.
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

    The constructor must take the keyword `embed_dim`, the encoder's width: recipes leave it out and it is filled in; so
    are `modalities`, if it takes them, the names of those that the encoder joins.

    Attributes:
        answers: the type of queries that it understands: `Indices`, `Tensor` (motions or actions), or `object` (any).
    """

    answers: type = object

    @abstractmethod
    def forward(self, context: Tokens, query: Indices | Tensor) -> Tokens:
        """One token (N, D) for each queried position, in the query's order.

        The query holds M sets for each of the context's, sample after sample; each is predicted on its own. A motion
        or action (B, A) asks for one token for each position of the whole grid.
        """


class Regularizer(nn.Module, ABC):
    """A part of the loss beside the criterion."""

    @abstractmethod
    def forward(self, outcome: Outcome) -> dict[str, Tensor]:
        """Named, weighted scalars that are added to the loss.

        Each is that of all processes together. As DDP averages gradients, the gradient that a process is handed must be
        its own share times the number of processes; `jepa.losses.moments` has what makes it so.
        """


class JointRegularizer(nn.Module, ABC):
    """A part of the loss that looks at all tasks of a batch together."""

    @abstractmethod
    def forward(self, outcomes: Sequence[Outcome]) -> dict[str, Tensor]:
        """Named, weighted scalars of the tasks' outcomes, as for `Regularizer`."""


class Masker(ABC):
    """Draws prediction problems. Pure: all randomness comes from the generator it is handed."""

    def check(self, grid: tuple[int, ...]) -> None:  # noqa: B027 - most maskers can serve any grid
        """Refuse a grid that these settings cannot serve.

        Called once before training starts, so that an impossible setting never reaches a data worker.

        Raises:
            ValueError: naming the setting and what would work.
        """

    def at(self, progress: float) -> Masker:
        """The masker to draw with when this share of the run's steps has been taken, 0 at the first step.

        It must serve every grid that this one serves. Most do not change.
        """
        return self

    def kinds(self) -> Sequence[tuple[float, Masker]]:
        """The maskers that draw for this one, and the share of batches that each draws: itself, all of them, unless it
        leaves them to others. Each is tried before training starts, and shown in a dry run."""
        return [(1.0, self)]

    @abstractmethod
    def sample(self, batch_size: int, grid: tuple[int, ...], generator: torch.Generator) -> Sequence[Masks | Motions]:
        """Boolean maps or motions for `batch_size` samples, one entry for each task.

        It is called with the size of the *global* batch and each process takes its slice, so that masks depend on the
        seed and the step alone. Every context and target set must hold at least one position.
        """


class TargetUpdater(ABC):
    """How the target encoder follows the encoder.

    Attributes:
        gradient: whether gradients flow through the targets into the encoder.
        train_mode: whether a target encoder of its own is in training mode during training.
        learned: which of the two holds what was learned, for features and probes: "target", unless the target encoder
            is a teacher that does not follow.
    """

    gradient: bool = False
    train_mode: bool = False
    learned: Literal["target", "context"] = "target"

    @abstractmethod
    def make_target(self, encoder: Encoder) -> Encoder | None:
        """The target encoder at the start of training; None where the encoder is its own target."""

    def begin(self, target: Encoder | None) -> None:  # noqa: B027 - most start from the encoder
        """Called once before the first step of a run, not when a trained model is loaded.

        Raises:
            ValueError, OSError: what the target should start from cannot be used.
        """

    @abstractmethod
    def momentum(self, step: int, total_steps: int) -> float:
        """Share of the old target that survives the update after optimiser step `step` (1-based)."""

    @abstractmethod
    def update(self, encoder: Encoder, target: Encoder | None, momentum: float) -> None:
        """Move `target` towards `encoder` after an optimiser step."""
