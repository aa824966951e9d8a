"""Weights made to fit a model with other inputs: patches inflated, positions interpolated, tokens repeated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.patch_embed import resample_patch_embed
from torch import Tensor

from jepa.checkpoint import CheckpointError

Weights = Mapping[str, Tensor]
COPIED = "target_encoder."


def adapt(
    weights: Weights, into: Weights, old: Mapping[str, Any], new: Mapping[str, Any]
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights for a model whose input has another size, other channels, another number of frames or other patches.

    Args:
        weights: of the source.
        into: of the new model; what the source has nothing for stays as it is there.
        old, new: arguments of both encoders: `patch_size`, `in_chans`, and `grid_size` where positions are learned.

    Returns:
        weights with the new model's keys and shapes, and a line for everything that is not simply copied.

    Raises:
        CheckpointError: a weight has another shape for which there is no rule.
    """
    found: dict[str, Tensor] = {}
    lines: list[str] = []
    anew: dict[str, int] = {}
    for key, target in into.items():
        name = key
        if key not in weights and key.startswith(COPIED):
            name = key.replace(COPIED, "encoder.", 1)
        value = weights.get(name)
        if value is None:
            if not key.startswith("predictor.") or any(other.startswith("predictor.") for other in weights):
                raise CheckpointError(f"the source has no {key}: width, depth and kind of encoder must be the same")
            found[key] = target
            anew["predictor"] = anew.get("predictor", 0) + target.numel()
            continue
        if name != key and f"{COPIED}*" not in anew:
            anew[f"{COPIED}*"] = 0
            lines.append("target_encoder: a copy of the source's only encoder")
        if value.shape != target.shape:
            value, said = _fitted(key, value, target.shape, old, new)
            lines.append(f"{key}: {said}")
        found[key] = value.to(target)
    if "predictor" in anew:
        lines.append(f"predictor: starts anew ({anew['predictor']:,} parameters): the source has none")
    unused = [key for key in weights if key not in into]
    dropped = [key for key in unused if key.startswith(COPIED)]
    if len(dropped) < len(unused):
        other = next(key for key in unused if key not in dropped)
        raise CheckpointError(f"the new model has no {other}: width, depth and kind of its parts must be the same")
    if dropped:
        lines.append(f"target_encoder: not used ({len(dropped)} tensors), the new encoder is its own target")
    return found, lines


def _fitted(
    key: str, value: Tensor, shape: Sequence[int], old: Mapping[str, Any], new: Mapping[str, Any]
) -> tuple[Tensor, str]:
    if key.endswith("patch_embed.proj.weight") and len(value) == shape[0]:
        before, after = ((m["in_chans"], *_patch(m["patch_size"])) for m in (old, new))
        if value.shape[1] == prod(before):
            kernel = inflate(value.view(-1, *before), after)
            return kernel.flatten(1), f"patches {list(before)} made {list(after)} (channels, then sizes)"
    if key.endswith("position.table") and value.shape[1] == shape[1]:
        before_grid, after_grid = old.get("grid_size"), new.get("grid_size")
        if before_grid is not None and after_grid is not None:
            said = f"positions interpolated from {list(before_grid)} to {list(after_grid)}"
            return interpolate(value, before_grid, after_grid), said
    if key.endswith("mask_token") and value.shape[1:] == tuple(shape[1:]):
        return value[torch.arange(shape[0]) % len(value)], f"{shape[0]} mask tokens from {len(value)}"
    raise CheckpointError(
        f"{key} is {tuple(value.shape)} in the source and {tuple(shape)} in the recipe: only patches, channels, "
        f"learned positions and the number of mask tokens can be adapted"
    )


def _patch(size: int | Sequence[int]) -> tuple[int, ...]:
    return (size, size) if isinstance(size, int) else tuple(size)


def inflate(kernel: Tensor, after: Sequence[int]) -> Tensor:
    """A patch embedding (D, C, *patch) for inputs with other channels and patches, `after` = (C, *patch).

    What it answers to stays: to equal channels, to a clip that stands still (Carreira & Zisserman 2017), and to patches
    enlarged smoothly (Beyer et al. 2023, FlexiViT).

    Raises:
        CheckpointError: the numbers of axes differ by more than a first one for time.
    """
    channels, *patch = after
    if kernel.shape[1] != channels:
        kernel = kernel.sum(1, keepdim=True).expand(-1, channels, *kernel.shape[2:]) / channels
    more = len(patch) - (kernel.ndim - 2)
    if more == 1:
        kernel = kernel.unsqueeze(2)
    elif more == -1:
        kernel = kernel.sum(2)
    elif more:
        raise CheckpointError(f"patches of {kernel.ndim - 2} axes cannot be made patches of {len(patch)}")
    if len(patch) == 3 and kernel.shape[2] != patch[0]:
        kernel = kernel.sum(2, keepdim=True).expand(-1, -1, patch[0], -1, -1) / patch[0]
    if list(kernel.shape[-2:]) != patch[-2:] and len(patch) > 1:
        flat = kernel.reshape(len(kernel), -1, *kernel.shape[-2:])
        kernel = resample_patch_embed(flat, patch[-2:]).view(*kernel.shape[:-2], *patch[-2:])
    if kernel.shape[1:] != tuple(after):
        raise CheckpointError(f"patches {tuple(kernel.shape[1:])} cannot be made {tuple(after)}")
    return kernel


def interpolate(table: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Learned positions (G, D) on another grid, n-linear; a new first axis for time repeats them.

    Raises:
        CheckpointError: the grids differ by more than that.
    """
    volume = table.T.unflatten(1, tuple(old))[None]  # (1, D, *old)
    if len(new) == len(old) + 1:
        volume, old = volume.unsqueeze(2), (1, *old)
    if len(new) != len(old) or len(new) > 3:
        raise CheckpointError(f"positions on a grid of {list(old)} cannot serve a grid of {list(new)}")
    mode = ("linear", "bilinear", "trilinear")[len(new) - 1]
    return F.interpolate(volume, size=tuple(new), mode=mode, align_corners=False)[0].flatten(1).T.contiguous()
