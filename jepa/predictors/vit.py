"""Narrow transformer that fills in mask tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa.interfaces import Predictor
from jepa.nn.attention import Layout
from jepa.nn.blocks import Activation, Transformer
from jepa.nn.init import init_weights, rescale_depth
from jepa.nn.position import AxisOrder, SinCosPosition
from jepa.types import Indices, Tokens


def pair_sequences(context: Indices, query: Indices) -> tuple[Layout, Tensor, Tensor]:
    """Lay out one sequence [context | queried positions] for each queried set.

    Args:
        context: B sets.
        query: B * M sets, the M of a sample together.

    Returns:
        the layout of the B * M sequences; (N,) for each of their tokens its row in cat(context rows, query rows);
        (N of the query,) where the queried tokens stand among them.

    Raises:
        ValueError: the query's sets are not a multiple of the context's, or lie on another grid.
    """
    if len(query) % len(context) or query.grid != context.grid:
        raise ValueError(
            f"{len(query)} queried sets on grid {query.grid} do not belong to {len(context)} context sets on "
            f"grid {context.grid}"
        )
    times = len(query) // len(context)
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
        dim, depth, heads, mlp_ratio: its own shape; the published ones are 384 wide with the encoder's heads.
        axis_order: as the encoder's.
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
        axis_order: AxisOrder = "last_first",
        drop_path: float = 0.0,
        depth_rescale: bool = False,
        grad_checkpointing: bool = False,
        norm_eps: float = 1e-6,
        activation: Activation = "gelu",
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(embed_dim, dim)
        self.position = SinCosPosition(dim, axis_order)
        self.transformer = Transformer(
            dim, depth, heads, mlp_ratio, drop_path, grad_checkpointing, norm_eps, activation
        )
        self.proj = nn.Linear(dim, embed_dim)
        self.apply(init_weights)
        if depth_rescale:
            rescale_depth(self.transformer.blocks)
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))  # 3-D as published, so that it is decayed
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, context: Tokens, query: Indices | Tensor) -> Tokens:
        if not isinstance(query, Indices):
            raise TypeError("ViTPredictor answers positions on a grid, not motions or actions")
        layout, rows, answers = pair_sequences(context.index, query)
        seen = self.embed(context.x) + self.position(context.index)
        asked = self.mask_token[0] + self.position(query)
        x = torch.cat((seen, asked)).index_select(0, rows)
        x = self.transformer(x, layout).index_select(0, answers)
        return Tokens(self.proj(x), query)
