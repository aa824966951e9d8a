"""The shape of a model, read from the shapes of its weights, and its positions from its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isqrt, nextafter, prod
from typing import Any

import torch
from torch import Tensor

from jepa.convert.families import Family
from jepa.convert.keys import ConversionError, Report, Weights, shapes
from jepa.nn.position import AxisOrder, sincos_table

TABLE_TOLERANCE = 1e-6  # two libraries' sines in float64, rounded to float32, differ by less


def encoder_arguments(weights: Weights, family: Family, heads: int | None, where: str) -> dict[str, Any]:
    """Arguments of the encoder that the weights decide.

    Args:
        heads: where the source says; else what the family has at this width.

    Raises:
        ConversionError: there is no patch embedding or no block, or the number of heads is not known.
    """
    found = shapes(weights, family.encoder)
    kernel = found.get("patch_embed.proj.weight")
    if kernel is None or len(kernel) < 3:
        raise ConversionError(f"{where} has no patch embedding where {family.name} has one: give another kind=")
    width = kernel[0]
    if heads is None and width not in family.heads:
        raise ConversionError(f"{where}: a width of {width} does not say how many heads there are: give heads=N")
    return {
        "dim": width,
        **_blocks(found, width, where),
        "heads": heads or family.heads[width],
        "in_chans": kernel[1],
        "patch_size": list(kernel[2:]),
    }


def predictor_arguments(weights: Weights, family: Family, heads: int, where: str) -> dict[str, Any]:
    """Arguments of the predictor that the weights decide.

    Raises:
        ConversionError: there is no predictor.
    """
    found = shapes(weights, family.predictor)
    if "embed.weight" not in found or "mask_token" not in found:
        raise ConversionError(f"{where} has no predictor where {family.name} has one: give another kind=")
    width, tokens = found["embed.weight"][0], found["mask_token"][0]
    many = {"mask_tokens": tokens} if tokens > 1 else {}
    return {"dim": width, **_blocks(found, width, where), "heads": heads, **many}


def _blocks(found: Mapping[str, torch.Size], width: int, where: str) -> dict[str, Any]:
    """Depth, and hidden width of the MLP over the width."""
    depth = sum(key.endswith(".norm1.weight") for key in found)
    if not depth or "transformer.blocks.0.mlp.fc1.weight" not in found:
        raise ConversionError(f"{where} has no transformer blocks: give another kind=")
    hidden = found["transformer.blocks.0.mlp.fc1.weight"][0]
    if "transformer.blocks.0.mlp.fc3.weight" in found:  # SwiGLU is two thirds as wide as the ratio says
        return {"depth": depth, "activation": "swiglu", "mlp_ratio": hidden * 3 // 2 / width}
    return {"depth": depth, "mlp_ratio": mlp_ratio(hidden, width)}


def mlp_ratio(hidden: int, width: int) -> float:
    """The ratio of which int(ratio * width) is `hidden`."""
    ratio = hidden / width
    return ratio if int(ratio * width) == hidden else nextafter(ratio, inf)


def grid_of(positions: int, patch: Sequence[int], size: Sequence[int] | None, where: str) -> tuple[int, ...]:
    """The grid of a position table: of inputs of `size`, or a square.

    Raises:
        ConversionError: the table does not fit it.
    """
    if size is not None:
        grid = tuple(s // p for s, p in zip(size, patch, strict=True))
    else:
        grid = (isqrt(positions),) * len(patch)
    if prod(grid) != positions:
        raise ConversionError(f"{where} has {positions} positions, which is not a grid of {grid}: give size=[...]")
    return grid


def is_sincos(table: Tensor, grid: Sequence[int], axis_order: AxisOrder) -> bool:
    """Whether a table (1, G, D) is the fixed sin-cos one of that grid."""
    ours = sincos_table(table.shape[-1], grid, axis_order)
    if table.shape != (1, *ours.shape) or not table.is_floating_point():
        return False
    tolerance = max(TABLE_TOLERANCE, torch.finfo(table.dtype).eps)
    return bool((table[0].float() - ours).abs().max() <= tolerance)


def take_table(
    weights: Weights, key: str, grid: Sequence[int], axis_order: AxisOrder, report: Report, prefix: str
) -> bool:
    """Remove a table that equals the fixed one, with an entry in the report; returns whether it did."""
    if not is_sincos(weights[key], grid, axis_order):
        return False
    del weights[key]
    size = " x ".join(map(str, grid))
    report.add(
        "unused", prefix + key, "", f"equal to the fixed sin-cos table of {size} positions, which is evaluated here"
    )
    return True
