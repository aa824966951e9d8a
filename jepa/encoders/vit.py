"""Vision transformer over an n-D grid of patches: pictures, clips, spectrograms, signals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from jepa.interfaces import Encoder
from jepa.nn.attention import Layout
from jepa.nn.blocks import Activation, Transformer
from jepa.nn.init import init_weights, rescale_depth
from jepa.nn.patch import PatchEmbed
from jepa.nn.position import AxisOrder, LearnedPosition, SinCosPosition
from jepa.nn.rotary import RopeStyle, RotaryPosition, rotary_width
from jepa.types import Indices, Tokens, View


class ViT(Encoder):
    """ViT without class token or registers, as in I-JEPA (Assran et al. 2023, section 4 and appendix A).

    Args:
        dim, depth, heads, mlp_ratio: width D, blocks, heads and hidden width of the MLP over D.
        patch_size: size of a patch along each axis; its length is the number of axes (one number: a 2-D square).
        in_chans: channels C of the input.
        position: "sincos" (fixed, evaluated for any grid), "learned" (interpolated; needs `grid_size`) or "rope" (turns
            queries and keys; nothing is added).
        axis_order: which axis the first sin-cos features encode; "last_first" is I-JEPA's, "first_first" V-JEPA's.
        uniform_power: whether sin-cos features are shared equally by the axes; otherwise the first has half of them.
        rope_style: "interleaved" frequencies are a rotation; "tiled" ones are the published V-JEPA 2's.
        grid_size: the grid that learned positions live on.
        drop_path: stochastic depth rate of the last block.
        depth_rescale: divide the last projections of block l by sqrt(2 l); effective in V-JEPA 2, not in I-JEPA.
        grad_checkpointing: recompute blocks in the backward pass: less memory, about a third more time.
        norm_eps: epsilon of every LayerNorm; published weights were trained with 1e-6.
        activation: of the MLPs; "gelu" is the exact one, as published; "swiglu" is gated (`SwiGLU`).

    Raises:
        ValueError: learned positions without `grid_size`, a `grid_size` that nothing would use, or heads too narrow for
            rotary positions.
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        patch_size: int | Sequence[int] = 16,
        in_chans: int = 3,
        position: Literal["sincos", "learned", "rope"] = "sincos",
        axis_order: AxisOrder = "last_first",
        uniform_power: bool = True,
        rope_style: RopeStyle = "interleaved",
        grid_size: Sequence[int] | None = None,
        drop_path: float = 0.0,
        depth_rescale: bool = False,
        grad_checkpointing: bool = False,
        norm_eps: float = 1e-6,
        activation: Activation = "gelu",
    ) -> None:
        super().__init__()
        if (position == "learned") != (grid_size is not None):
            raise ValueError(f"position={position!r} and grid_size={grid_size}: learned positions need it, others not")
        patch = (patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)
        self.embed_dim = dim
        self.patch_embed = PatchEmbed(in_chans, patch, dim)
        self.transformer = Transformer(
            dim, depth, heads, mlp_ratio, drop_path, grad_checkpointing, norm_eps, activation
        )
        self.apply(init_weights)
        if depth_rescale:
            rescale_depth(self.transformer.blocks)
        self.position: SinCosPosition | LearnedPosition | None = None
        self.rotary: RotaryPosition | None = None
        if position == "rope":
            rotary_width(dim // heads, len(patch))
            self.rotary = RotaryPosition(dim // heads, rope_style)
        elif grid_size is None:
            self.position = SinCosPosition(dim, axis_order, uniform_power)
        else:
            self.position = LearnedPosition(dim, grid_size)

    def grid(self, input_size: Sequence[int]) -> tuple[int, ...]:
        return self.patch_embed.grid(input_size)

    def forward(self, view: View) -> Tokens:
        x, layout, index = self._embed(view)
        return Tokens(self.transformer(x, layout), index)

    def features(self, view: View, layers: Sequence[int]) -> list[Tokens]:
        x, layout, index = self._embed(view)
        return [Tokens(out, index) for out in self.transformer.intermediates(x, layout, layers)]

    def _embed(self, view: View) -> tuple[Tensor, Layout, Indices]:
        signal = view.signal
        index = view.keep or Indices.all(signal.shape[0], self.grid(signal.shape[2:]), signal.device)
        x = self.patch_embed(signal, index)
        if self.rotary is not None:  # the residual stream is in single precision under autocast too
            return x.to(torch.promote_types(x.dtype, torch.float32)), Layout.of(index, self.rotary(index)), index
        assert self.position is not None
        return x + self.position(index), Layout.of(index), index
