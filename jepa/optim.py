"""AdamW with the published parameter groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def trained_parts(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Names and parameters of what is trained, for each of the model's parts (its encoder, its predictor, ...)."""
    parts: dict[str, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts.setdefault(name.split(".")[0], []).append((name, parameter))
    return parts


def parameter_groups(
    model: nn.Module, *, decay_all: bool = False, fixed_rates: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Trained parameters in groups: with and without weight decay, for each of the model's parts.

    Biases and one-dimensional tensors are not decayed; everything else is, mask tokens included. Each group keeps its
    parameters' names under "names", whether it is decayed under "decay", and a learning rate of its own under "rate".

    Args:
        decay_all: decay biases and one-dimensional tensors too.
        fixed_rates: parts of the model whose learning rate is this, from the first step to the last.

    Raises:
        ValueError: a part that has nothing to train.
    """
    parts, fixed = trained_parts(model), dict(fixed_rates or {})
    for part in fixed.keys() - parts.keys():
        raise ValueError(f"a learning rate for {part}, which has nothing to train; these have: {', '.join(parts)}")
    groups = []
    for decay in (True, False):
        for part, members in parts.items():
            chosen = [(n, p) for n, p in members if decay == (decay_all or (p.ndim > 1 and "bias" not in n))]
            if chosen:
                names, parameters = zip(*chosen, strict=True)
                kept = {"names": list(names), "decay": decay, "rate": fixed.get(part)}
                groups.append({"params": list(parameters), **kept})
    return groups


def adamw(
    model: nn.Module, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, **grouping: Any
) -> torch.optim.AdamW:
    """Fused AdamW over `parameter_groups`, which takes `grouping`; learning rate and weight decay are set before every
    step."""
    groups = parameter_groups(model, **grouping)
    if not groups:
        raise ValueError("the model has no parameters to train")
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, weight_decay=0.0, fused=True)


def set_hyperparameters(optimizer: torch.optim.Optimizer, *, lr: float, weight_decay: float) -> None:
    """Learning rate of every group that has none of its own, weight decay of those that are decayed."""
    for group in optimizer.param_groups:
        group["lr"] = lr if group["rate"] is None else group["rate"]
        group["weight_decay"] = weight_decay if group["decay"] else 0.0
