"""The published I-JEPA's parameter names, mapped to this project's."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

ENCODER = [(r"^patch_embed\.proj\.", "patch_embed.proj."), (r"^(blocks|norm)\.", r"transformer.\1.")]
PREDICTOR = [
    (r"^predictor_blocks\.", "transformer.blocks."),
    (r"^predictor_norm\.", "transformer.norm."),
    (r"^predictor_(embed|proj)\.", r"\1."),
]


def rename(key: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def load_published(module: nn.Module, weights: dict[str, Tensor], rules: list[tuple[str, str]]) -> dict[str, str]:
    """Load weights with published names, strictly; returns published name -> our name. Position tables are compared
    with the evaluated formula by the caller and dropped here."""
    names = {key: rename(key, rules) for key in weights if not key.endswith("pos_embed")}
    state = module.state_dict()
    module.load_state_dict({ours: weights[key].reshape(state[ours].shape) for key, ours in names.items()})
    return names


def relative_error(ours: Tensor | float, theirs: Tensor | float) -> float:
    """Largest absolute difference over the reference's largest absolute value."""
    ours, theirs = (torch.as_tensor(value, dtype=torch.float64).detach() for value in (ours, theirs))
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30))
