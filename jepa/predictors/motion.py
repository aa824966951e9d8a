"""Predictors that are told a movement of the view, or nothing at all."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from jepa.interfaces import Predictor
from jepa.nn import motion
from jepa.nn.attention import Layout
from jepa.nn.blocks import Transformer
from jepa.nn.init import init_weights
from jepa.nn.mlp import by_view, mlp
from jepa.nn.position import AxisOrder, SinCosPosition
from jepa.types import Indices, Tokens


def motion_codes(context: Tokens, query: Indices | Tensor) -> Tensor:
    """`jepa.nn.motion.features` of each context token's movement: (N, FEATURES).

    Raises:
        TypeError: the query is not one movement for each sample.
    """
    if isinstance(query, Indices) or query.shape != (len(context.index), len(motion.NAMES)):
        raise TypeError(
            f"this predictor answers movements ({len(context.index)}, {len(motion.NAMES)}), as jepa.maskers.Saccade's"
        )
    return motion.features(query).index_select(0, context.index.sets)


class MotionMLP(Predictor):
    """The embedding of the moved view from that of the view, token by token: meant for one pooled token.

    Args:
        embed_dim: the encoder's width, in and out.
        hidden: width of the hidden layers; None: the encoder's.
        depth: Linear layers after the code was added.
    """

    answers = Tensor

    def __init__(self, *, embed_dim: int, hidden: int | None = None, depth: int = 3) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth={depth} must be at least 1")
        self.code = nn.Linear(motion.FEATURES, embed_dim)
        self.mlp = mlp([embed_dim, *[hidden or embed_dim] * (depth - 1), embed_dim], nn.GELU)

    def forward(self, context: Tokens, query: Indices | Tensor) -> Tokens:
        return Tokens(self.mlp(context.x + self.code(F.gelu(motion_codes(context, query)))), context.index)


class MotionTransformer(Predictor):
    """Every token of the moved view from all tokens of the view, with the code of the movement added to each.

    Args:
        embed_dim: the encoder's width, in and out.
        dim, depth, heads, mlp_ratio: its own shape.
        axis_order: of its positions.
        drop_path: stochastic depth rate of the last block.
        grad_checkpointing: recompute blocks in the backward pass.
    """

    answers = Tensor

    def __init__(
        self,
        *,
        embed_dim: int,
        dim: int = 384,
        depth: int = 6,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        axis_order: AxisOrder = "last_first",
        drop_path: float = 0.0,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(embed_dim, dim)
        self.code = nn.Linear(motion.FEATURES, dim)
        self.position = SinCosPosition(dim, axis_order)
        self.transformer = Transformer(dim, depth, heads, mlp_ratio, drop_path, grad_checkpointing)
        self.proj = nn.Linear(dim, embed_dim)
        self.apply(init_weights)

    def forward(self, context: Tokens, query: Indices | Tensor) -> Tokens:
        code = self.code(F.gelu(motion_codes(context, query)))
        x = self.embed(context.x) + self.position(context.index) + code
        return Tokens(self.proj(self.transformer(x, Layout.of(context.index))), context.index)


class MLP(Predictor):
    """Token by token and told nothing: the predictor of BYOL (4096 hidden) and SimSiam (512 hidden).

    Args:
        embed_dim: the encoder's width, in and out.
        hidden: width of its one hidden layer, which has batch norm and a ReLU.
        views: that a training batch holds of each sample, one after the other; each has batch statistics of its own.

    Raises:
        ValueError: no views.
    """

    answers = Tensor

    def __init__(self, *, embed_dim: int, hidden: int, views: int = 1) -> None:
        super().__init__()
        if views < 1:
            raise ValueError(f"views={views} must be at least 1")
        self.mlp = mlp([embed_dim, hidden, embed_dim], nn.ReLU, batch_norm=True)
        self.views = views

    def forward(self, context: Tokens, query: Indices | Tensor) -> Tokens:
        return Tokens(by_view(self.mlp, context.x, self.views, self.training), context.index)


class Identity(Predictor):
    """The context is the prediction: for methods without a predictor, as VICReg, Barlow Twins and LeJEPA.

    Args:
        embed_dim: the encoder's width.
    """

    answers = Tensor

    def __init__(self, *, embed_dim: int) -> None:
        super().__init__()

    def forward(self, context: Tokens, query: Indices | Tensor) -> Tokens:
        return context
