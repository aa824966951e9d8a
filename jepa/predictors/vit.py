"""Narrow transformer that fills in mask tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from jepa.interfaces import Predictor
from jepa.nn.attention import Layout
from jepa.nn.blocks import Activation, Transformer
from jepa.nn.init import init_weights, rescale_depth
from jepa.nn.position import AxisOrder, ModalityEmbedding, SinCosPosition
from jepa.nn.rotary import RopeStyle, RotaryPosition
from jepa.types import Indices, JointGrid, Tokens


def sets_each(context: Indices, query: Indices) -> int:
    """Queried sets M of each context set.

    Raises:
        ValueError: the query's sets are not a multiple of the context's, or lie on another grid.
    """
    if len(query) % len(context) or query.grid != context.grid:
        raise ValueError(
            f"{len(query)} queried sets on grid {query.grid} do not belong to {len(context)} context sets on "
            f"grid {context.grid}"
        )
    return len(query) // len(context)


def pair_sequences(context: Indices, query: Indices) -> tuple[Layout, Tensor, Tensor]:
    """Lay out one sequence [context | queried positions] for each queried set.

    Args:
        context: B sets.
        query: B * M sets, the M of a sample together.

    Returns:
        the layout of the B * M sequences; (N,) for each of their tokens its row in cat(context rows, query rows);
        (N of the query,) where the queried tokens stand among them.

    Raises:
        ValueError: see `sets_each`.
    """
    times = sets_each(context, query)
    head = context.lengths.repeat_interleave(times)  # (S,) context tokens of each sequence
    layout = Layout(
        lengths=head + query.lengths,
        total=context.total * times + query.total,
        min_length=context.min_length + query.min_length,
        max_length=context.max_length + query.max_length,
    )
    head_start = context.offsets[:-1].repeat_interleave(times)
    tail_start = query.offsets[:-1] + context.total - head
    sequence, offset = layout.sequence, layout.offset
    start = torch.where(offset < head[sequence], head_start[sequence], tail_start[sequence])
    answers = torch.arange(query.total, device=query.values.device) + head.cumsum(0)[query.sets]
    return layout, start + offset, answers


class ViTPredictor(Predictor):
    """Predictor of I-JEPA (Assran et al. 2023, section 3 and appendix A): every target set is predicted on its own,
    from the context tokens and one mask token for each of its positions.

    Args:
        embed_dim: the encoder's width, in and out.
        dim, depth, heads, mlp_ratio: its own shape; the published ones are 384 wide, with the encoder's heads in
            I-JEPA and V-JEPA, with 12 in V-JEPA 2.
        position, axis_order, uniform_power, rope_style: as the encoder's.
        mask_tokens: how many; the i-th task of a batch uses number i modulo this. V-JEPA has one for each of its tasks
            (Bardes et al. 2024), I-JEPA and V-JEPA 2 one altogether.
        modalities: names, where the encoder joins several: each adds a learned vector to its positions. Recipes leave
            them out and they are filled in.
        zero_init_mask_tokens: start them at zero, as V-JEPA, instead of at random.
        drop_path: stochastic depth rate of the last block.
        depth_rescale: divide the last projections of block l by sqrt(2 l).
        grad_checkpointing: recompute blocks in the backward pass.
        norm_eps, activation: as the encoder's.
    """

    answers = Indices

    def __init__(
        self,
        *,
        embed_dim: int,
        dim: int = 384,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        position: Literal["sincos", "rope"] = "sincos",
        axis_order: AxisOrder = "last_first",
        uniform_power: bool = True,
        rope_style: RopeStyle = "interleaved",
        modalities: Sequence[str] = (),
        mask_tokens: int = 1,
        zero_init_mask_tokens: bool = False,
        drop_path: float = 0.0,
        depth_rescale: bool = False,
        grad_checkpointing: bool = False,
        norm_eps: float = 1e-6,
        activation: Activation = "gelu",
    ) -> None:
        super().__init__()
        if mask_tokens < 1:
            raise ValueError(f"mask_tokens={mask_tokens} must be at least 1")
        self.embed = nn.Linear(embed_dim, dim)
        turns = position == "rope"
        self.position = None if turns else SinCosPosition(dim, axis_order, uniform_power)
        self.modality = ModalityEmbedding(modalities, dim) if modalities else None
        self.transformer = Transformer(
            dim, depth, heads, mlp_ratio, drop_path, grad_checkpointing, norm_eps, activation
        )
        self.rotary = RotaryPosition(dim // heads, rope_style) if turns else None
        self.proj = nn.Linear(dim, embed_dim)
        self.apply(init_weights)
        if depth_rescale:
            rescale_depth(self.transformer.blocks)
        self.mask_token = nn.Parameter(torch.zeros(mask_tokens, 1, dim))  # 3-D as published, so that it is decayed
        if not zero_init_mask_tokens:
            nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, context: Tokens, query: Indices | Tensor) -> Tokens:
        if not isinstance(query, Indices):
            raise TypeError("ViTPredictor answers positions on a grid, not motions or actions")
        if self.modality is None and isinstance(query.grid, JointGrid) and len(query.grid.parts) > 1:
            raise ValueError(f"ViTPredictor needs modalities={[*query.grid.parts]}: it could not tell them apart")
        layout, rows, answers = pair_sequences(context.index, query)
        seen = self.embed(context.x)
        asked = self.mask_token[query.task % len(self.mask_token)].expand(query.total, -1)
        for place in (self.position, self.modality):
            if place is not None:
                seen, asked = seen + place(context.index), asked + place(query)
        if self.rotary is not None:
            known, unknown = self.rotary(context.index), self.rotary(query)
            cos, sin = (torch.cat(pair).index_select(0, rows) for pair in zip(known, unknown, strict=True))
            layout.rotary = cos, sin
        x = torch.cat((seen, asked)).index_select(0, rows)
        x = self.transformer(x, layout).index_select(0, answers)
        return Tokens(self.proj(x), query)
