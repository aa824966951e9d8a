"""Encode what is seen, and predict the embedding of what is not, told only where it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.interfaces import Encoder, JointRegularizer, Predictor, Regularizer, TargetUpdater
from jepa.types import Indices, JepaBatch, Outcome, StepOutput, Task, Tokens, View

CRITERION = ""  # the part of the loss whose terms keep their names


class JEPA(nn.Module):
    """Encoder, target encoder and predictor as one module; its forward is the method.

    Args:
        encoder: sees the context.
        predictor: predicts target embeddings from context tokens and a query.
        target: makes and moves the target encoder.
        criterion: (prediction (N, D), target (N, D)) -> scalar mean, or named scalars.
        regularizers: by name, each adds named, weighted scalars to the loss. Where several parts of the loss have a
            term of one name, it is "REGULARIZER/TERM".
        normalize_targets: layer-norm the targets over D without affine parameters (epsilon 1e-5), as published.
        prediction_weight: of the criterion in the loss.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        predictor: Predictor,
        target: TargetUpdater,
        criterion: nn.Module,
        regularizers: Mapping[str, Regularizer | JointRegularizer] | None = None,
        normalize_targets: bool = True,
        prediction_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.predictor = predictor
        self.criterion = criterion
        self.regularizers = nn.ModuleDict(regularizers)
        self.normalize_targets, self.prediction_weight = normalize_targets, prediction_weight
        self.updater = target
        self.target_encoder = target.make_target(encoder)  # None: the encoder is its own target

    @property
    def teacher(self) -> Encoder:
        """The encoder that makes the targets."""
        return self.encoder if self.target_encoder is None else self.target_encoder

    @property
    def learned(self) -> Encoder:
        """The encoder that holds what was learned: the one whose features are used."""
        return self.encoder if self.updater.learned == "context" else self.teacher

    def train(self, mode: bool = True) -> JEPA:
        """A target encoder of its own stays in evaluation mode, unless its updater says otherwise."""
        super().train(mode)
        if self.target_encoder is not None:
            self.target_encoder.train(mode and self.updater.train_mode)
        return self

    def targets(self, view: View) -> Tokens:
        """Target embeddings of a view, normalised."""
        with torch.set_grad_enabled(self.updater.gradient and torch.is_grad_enabled()):
            tokens = self.teacher(view)
            x = tokens.x.float()
            return Tokens(F.layer_norm(x, x.shape[-1:]) if self.normalize_targets else x, tokens.index)

    def answer(self, target: Tokens, task: Task) -> Tensor:
        """What a prediction is compared with, (N of the query, D)."""
        return target.at(task.query) if isinstance(task.query, Indices) else target.x

    def forward(self, batch: JepaBatch) -> StepOutput:
        target = self.targets(batch.target)
        terms: dict[tuple[str, str], Tensor] = {}
        seen: list[dict[str, Any]] = []
        outcomes: list[Outcome] = []

        def add(part: str, found: Mapping[str, Tensor], weight: float) -> None:
            for name, term in found.items():
                terms[part, name] = terms.get((part, name), 0) + term * weight

        for task in batch.tasks:
            context = self.encoder(task.context)
            prediction = self.predictor(context, task.query)
            outcomes.append(Outcome(context, prediction, target, task.query, self.predictor))
            add(CRITERION, self.compare(prediction, self.answer(target, task)), task.share / len(batch.tasks))
            for name, regularizer in self.regularizers.items():
                if not isinstance(regularizer, JointRegularizer):
                    add(name, regularizer(outcomes[-1]), batch.share / len(batch.tasks))
            seen.append(
                {
                    "context": Tokens(context.x.detach(), context.index),
                    "prediction": Tokens(prediction.x.detach(), prediction.index),
                    "query": task.query,
                }
            )
        for name, regularizer in self.regularizers.items():
            if isinstance(regularizer, JointRegularizer):
                add(name, regularizer(outcomes), batch.share)
        loss = torch.stack(list(terms.values())).sum()
        detached = {name: term.detach() for name, term in distinct(terms).items()}
        return StepOutput(loss, detached, {"target": Tokens(target.x.detach(), target.index), "tasks": seen})

    def compare(self, prediction: Tokens, answer: Tensor) -> Mapping[str, Tensor]:
        """Named, weighted parts of the criterion."""
        found = self.criterion(prediction.x.float(), answer)
        found = found if isinstance(found, Mapping) else {"prediction": found}
        return {name: self.prediction_weight * term for name, term in found.items()}

    def update_target(self, momentum: float) -> None:
        """Move the target encoder after an optimiser step."""
        self.updater.update(self.encoder, self.target_encoder, momentum)


def distinct(terms: Mapping[tuple[str, str], Tensor]) -> dict[str, Tensor]:
    """Terms of (part of the loss, term) by the name of the term, with the part before it where others have that too."""
    count = Counter(name for _, name in terms)
    alone = {(part, name): part == CRITERION or count[name] == 1 for part, name in terms}
    return {name if alone[part, name] else f"{part}/{name}": term for (part, name), term in terms.items()}
