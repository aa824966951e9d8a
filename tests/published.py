"""The parameter names of the published I-JEPA and V-JEPA, mapped to this project's."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

ENCODER = [(r"^patch_embed\.proj\.", "patch_embed.proj."), (r"^(blocks|norm)\.", r"transformer.\1.")]
PREDICTOR = [
    (r"^predictor_blocks\.", "transformer.blocks."),
    (r"^predictor_norm\.", "transformer.norm."),
    (r"^predictor_(embed|proj)\.", r"\1."),
    (r"^mask_tokens\.\d+$", "mask_token"),
]


def rename(key: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def load_published(module: nn.Module, weights: dict[str, Tensor], rules: list[tuple[str, str]]) -> dict[str, str]:
    """Load weights with published names, strictly; returns published name -> our name. Position tables are compared
    with the evaluated formula by the caller and dropped here."""
    names = {key: rename(key, rules) for key in weights if not key.endswith("pos_embed")}
    state = {ours: torch.full_like(value, torch.nan) for ours, value in module.state_dict().items()}
    for key, ours in names.items():
        own_part(state[ours], key).copy_(weights[key].reshape(own_part(state[ours], key).shape))
    assert not [name for name, value in state.items() if value.isnan().any()]
    module.load_state_dict(state)
    return names


def own_part(ours: Tensor, key: str) -> Tensor:
    """What a published key names of our tensor: V-JEPA's mask tokens are tensors of their own, ours are rows of one."""
    return ours[int(key.rpartition(".")[2])] if re.search(r"mask_tokens\.\d+$", key) else ours


def relative_error(ours: Tensor | float, theirs: Tensor | float) -> float:
    """Largest absolute difference over the reference's largest absolute value."""
    ours, theirs = (torch.as_tensor(value, dtype=torch.float64).detach() for value in (ours, theirs))
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30))
