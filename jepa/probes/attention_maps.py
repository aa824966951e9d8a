"""What each token attends to: the softmax that fused attention never writes down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from jepa.interfaces import Encoder
from jepa.nn.attention import Attention, Layout
from jepa.types import View


def attention_layers(encoder: Encoder) -> list[Attention]:
    """The self-attention layers of an encoder, first to last; none if it is built from other parts."""
    return [module for module in encoder.modules() if isinstance(module, Attention)]


@torch.no_grad()
def attention_weights(encoder: Encoder, view: View, layers: Sequence[int] = (-1,)) -> list[Tensor]:
    """softmax(q k^T / sqrt(D / H)) of the given layers, computed again from what each is given.

    Args:
        encoder: in evaluation mode.
        view: whose samples keep equally many tokens.
        layers: of `attention_layers`, -1 the last.

    Returns:
        for each layer (B, H, L, L): row i is what token i attends to and sums to 1; column j is who attends to j.

    Raises:
        ValueError: no such layer, samples of different lengths, or a layer that computes something else.
    """
    found = attention_layers(encoder)
    if any(not -len(found) <= layer < len(found) for layer in layers):
        raise ValueError(f"layers {list(layers)}: {type(encoder).__name__} has {len(found)} self-attention layers")
    chosen = [found[layer] for layer in layers]
    weights: dict[Attention, Tensor] = {}

    def look(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        assert isinstance(module, Attention)
        weights[module] = _weights(module, inputs[0], inputs[1], output)

    handles = [module.register_forward_hook(look) for module in dict.fromkeys(chosen)]
    try:
        encoder(view)
    finally:
        for handle in handles:
            handle.remove()
    return [weights[module] for module in chosen]


def _weights(module: Attention, x: Tensor, layout: Layout, output: Tensor) -> Tensor:
    """(S, H, L, L), checked against the layer's own output: one that does more must not be shown as if it did not."""
    if layout.min_length != layout.max_length:
        raise ValueError(f"samples keep {layout.min_length} to {layout.max_length} tokens: show views of equal length")
    q, k, v = (
        t.unflatten(0, (-1, layout.max_length)).transpose(1, 2) for t in module.project(x, layout)
    )  # (S, H, L, D / H)
    weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
    again = module.proj((weights @ v).transpose(1, 2).flatten(2).flatten(0, 1))
    if not torch.allclose(again, output, rtol=1e-2, atol=1e-2 * float(output.abs().max())):
        raise ValueError(f"{type(module).__name__} computes more than softmax(q k^T): its weights cannot be shown")
    return weights
