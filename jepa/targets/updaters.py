"""How the target encoder follows the encoder."""

from __future__ import annotations

import copy
from typing import Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from jepa.interfaces import Encoder, TargetUpdater
from jepa.schedules import Cosine, Linear

Shape = Literal["linear", "cosine"]


class EMA(TargetUpdater):
    """Exponential moving average of parameters and floating buffers; other buffers are copied.

    After optimiser step s of T, target = m * target + (1 - m) * encoder with m rising from `start` at s = 1 towards
    `end`: linearly (Assran et al. 2023, appendix A.1), or along half a cosine (Grill et al. 2020, section 3.2).

    Batch norm: in evaluation mode the target normalises with running statistics, which are averaged as the weights are.
    In training mode it normalises with those of the batch and keeps running ones of its own, so its buffers are left
    alone. Dropout and stochastic depth then act on targets too.

    Args:
        start, end: momentum at the first step and towards the end of the run, in [0, 1]; `start` is .996 by default.
        horizon: run lengths after which `end` would be reached; V-JEPA stretches its schedules to 1.25.
        shape: of the way from `start` to `end`, "linear" or "cosine".
        half_life: instead of `start`: steps after which half of the target's first weights is forgotten. A recipe may
            state it in samples ("11000 samples"), which holds for any batch size.
        train_mode: the target encoder is in training mode during training, as published for BYOL.

    Raises:
        ValueError: a momentum outside [0, 1], a horizon that is not positive, an unknown shape, or both `start` and
            `half_life`.
    """

    def __init__(
        self,
        *,
        start: float | None = None,
        end: float = 1.0,
        horizon: float = 1.0,
        shape: Shape = "linear",
        half_life: int | None = None,
        train_mode: bool = False,
    ) -> None:
        if half_life is not None:
            if start is not None or half_life < 1:
                raise ValueError(f"target.half_life={half_life}: at least a step, and target.start=null beside it")
            start = 0.5 ** (1 / half_life)
        start = 0.996 if start is None else start
        for name, value in (("start", start), ("end", end)):
            if not 0 <= value <= 1:
                raise ValueError(f"target.{name}={value}: a momentum lies in [0, 1]")
        if horizon <= 0:
            raise ValueError(f"target.horizon={horizon} must be positive")
        if shape not in get_args(Shape):
            raise ValueError(f"target.shape={shape!r}: one of {', '.join(get_args(Shape))}")
        self.shape: Shape = shape
        self.start, self.end, self.horizon, self.train_mode = start, end, horizon, train_mode

    def make_target(self, encoder: Encoder) -> Encoder:
        return frozen_copy(encoder)

    def momentum(self, step: int, total_steps: int) -> float:
        length = max(1, int(self.horizon * total_steps))
        if self.shape == "cosine":
            momentum = Cosine(self.start, self.end, length)(step - 1)
        else:
            momentum = Linear(self.start, self.end, length)(step)
        return min(momentum, self.end) if self.start <= self.end else max(momentum, self.end)

    @torch.no_grad()
    def update(self, encoder: Encoder, target: Encoder | None, momentum: float) -> None:
        assert target is not None
        old, new = self._followed(target), self._followed(encoder)
        floating = [i for i, tensor in enumerate(old) if tensor.is_floating_point()]
        if floating:
            torch._foreach_lerp_([old[i] for i in floating], [new[i] for i in floating], 1 - momentum)
        for i in set(range(len(old))) - set(floating):
            old[i].copy_(new[i])

    def _followed(self, encoder: Encoder) -> list[Tensor]:
        return [*encoder.parameters(), *([] if self.train_mode else encoder.buffers())]


class Frozen(TargetUpdater):
    """A target encoder that never moves: a fixed teacher (SALT, Li et al. 2025).

    Args:
        weights: of the teacher, which has the encoder's architecture: `model.safetensors` of a checkpoint, of which the
            target encoder is taken, or the encoder where it is its own target. None: the encoder as initialised.
    """

    learned = "context"

    def __init__(self, *, weights: str | None = None) -> None:
        self.weights = weights

    def begin(self, target: Encoder | None) -> None:
        """Load the teacher.

        Raises:
            ValueError, OSError: the file cannot be read, or is not of this architecture.
        """
        if self.weights is None:
            return
        assert target is not None
        try:
            stored = load_file(self.weights)
        except SafetensorError as error:
            raise ValueError(f"target.weights={self.weights} is not a safetensors file: {error}") from error
        prefix = next((p for p in ("target_encoder.", "encoder.") if any(key.startswith(p) for key in stored)), "")
        teacher = {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
        own = target.state_dict()
        differ = sorted(own.keys() ^ teacher.keys()) or [k for k in own if own[k].shape != teacher[k].shape]
        if differ:
            raise ValueError(
                f"target.weights={self.weights} is no teacher of this encoder's architecture: "
                f"{len(differ)} tensors differ, as {differ[:3]}"
            )
        target.load_state_dict(teacher)

    def make_target(self, encoder: Encoder) -> Encoder:
        return frozen_copy(encoder)

    def momentum(self, step: int, total_steps: int) -> float:
        return 1.0

    def update(self, encoder: Encoder, target: Encoder | None, momentum: float) -> None:
        """Nothing moves."""


class StopGradient(TargetUpdater):
    """The encoder is its own target, without gradient (SimSiam, Chen & He 2021)."""

    def make_target(self, encoder: Encoder) -> None:
        return None

    def momentum(self, step: int, total_steps: int) -> float:
        return 0.0

    def update(self, encoder: Encoder, target: Encoder | None, momentum: float) -> None:
        """The target is the encoder: it has moved already."""


class Shared(StopGradient):
    """The encoder is its own target and receives gradients from both sides; a regulariser must prevent collapse."""

    gradient = True


def frozen_copy(encoder: Encoder) -> Encoder:
    """A deep copy that takes no gradients, in evaluation mode."""
    return copy.deepcopy(encoder).requires_grad_(False).eval()
