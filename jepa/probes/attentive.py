"""Attentive pooling: a learned query reads the tokens of a frozen encoder (Bardes et al. 2024; Assran et al. 2025)."""

from __future__ import annotations

from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.nn.attention import Layout
from jepa.nn.blocks import Activation, Block, Mlp
from jepa.nn.init import init_weights, rescale_depth
from jepa.types import Indices


class CrossAttention(nn.Module):
    """softmax(q k^T / sqrt(D / H)) v of given queries over LN(x), without an output projection.

    All samples share the queries, so neither keys nor values of tokens are computed: scores are products of tokens with
    W_k^T q, and W_v is applied to what was read, as are scale and shift of the LayerNorm. For Q queries that is Q H / D
    of the work. (What keys have in common, like their bias, adds the same to all scores of a query: softmax takes it
    away.)

    Args:
        dim, heads: width D and number of heads, which must divide it.
        unused_proj: see `AttentivePooler`.
    """

    def __init__(self, dim: int, heads: int, unused_proj: bool) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads={heads} does not divide the width {dim}")
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        if unused_proj:
            self.proj = nn.Linear(dim, dim).requires_grad_(False)

    def forward(self, query: Tensor, x: Tensor, norm: nn.LayerNorm) -> Tensor:  # (Q, D), (B, L, D) -> (B, Q, D)
        keys, values = self.kv.weight.unflatten(0, (2, self.heads, -1))  # (H, D / H, D) each
        q = self.q(query).unflatten(-1, (self.heads, -1)) / sqrt(keys.shape[1])
        sought = norm.weight * torch.einsum("qhc,hcd->qhd", q, keys).flatten(0, 1)
        x = F.layer_norm(x, norm.normalized_shape, eps=norm.eps)
        weights = (x @ sought.T).softmax(1)  # (B, L, Q H)
        read = norm.weight * (weights.mT @ x).unflatten(1, (-1, self.heads)) + norm.bias
        bias = self.kv.bias.chunk(2)[1]
        return torch.einsum("bqhd,hcd->bqhc", read, values).flatten(2) + bias


class CrossAttentionBlock(nn.Module):
    """query + CrossAttention(query, LN(x)), then q + MLP(LN(q)). The query itself is not normalised before."""

    def __init__(
        self, dim: int, heads: int, mlp_ratio: float, norm_eps: float, activation: Activation, unused_proj: bool
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.xattn = CrossAttention(dim, heads, unused_proj)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), activation)

    def forward(self, query: Tensor, x: Tensor) -> Tensor:  # (Q, D), (B, L, D) -> (B, Q, D)
        q = query + self.xattn(query, x, self.norm1)
        return q + self.mlp(self.norm2(q))


class AttentivePooler(nn.Module):
    """Tokens (B, L, D) to one embedding (B, D), by one learned query.

    `depth - 1` self-attention blocks over all tokens come before the pooling block. Depth 1 is V-JEPA's probe, depth 4
    V-JEPA 2's. (V-JEPA's own code puts further blocks after the pooling, where they see the query alone; nothing
    published uses that, and it is not offered.) Weights start truncated-normal (0.02), biases at 0; the last
    projections of self-attention block l are divided by sqrt(2 l), the pooling block's by the square root of twice the
    number of self-attention blocks (sqrt(2) when there are none), all as published.

    Args:
        dim, heads: width D and number of heads.
        depth: blocks altogether.
        mlp_ratio: hidden width of the MLPs over D.
        norm_eps, activation: of LayerNorms and MLPs; the published probes have 1e-5 and "gelu".
        unused_proj: hold the output projection of the cross-attention that V-JEPA's code declares and never applies. It
            counts in the published number of parameters and is in published checkpoints; here as there it has no
            effect, and it is not trained.

    Raises:
        ValueError: `depth` is below 1, or `heads` does not divide `dim`.
    """

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        depth: int = 1,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-5,
        activation: Activation = "gelu",
        unused_proj: bool = False,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth={depth} must be at least 1")
        self.query_tokens = nn.Parameter(torch.empty(1, 1, dim))
        self.cross_attention_block = CrossAttentionBlock(dim, heads, mlp_ratio, norm_eps, activation, unused_proj)
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio, norm_eps, activation) for _ in range(depth - 1))
        nn.init.trunc_normal_(self.query_tokens, std=0.02, a=-2.0, b=2.0)
        self.apply(init_weights)
        rescale_depth(self.blocks)
        with torch.no_grad():
            self.cross_attention_block.mlp.fc2.weight.div_(sqrt(2 * max(1, depth - 1)))

    def forward(self, x: Tensor) -> Tensor:  # (B, L, D) -> (B, D)
        if len(self.blocks):
            samples, length, _ = x.shape
            layout = Layout.of(Indices.all(samples, (length,), x.device))
            packed = x.flatten(0, 1)
            for block in self.blocks:
                packed = block(packed, layout)
            x = packed.view_as(x)
        return self.cross_attention_block(self.query_tokens[0], x).squeeze(1)


class AttentiveClassifier(nn.Module):
    """Attentive pooling and a linear layer (PyTorch's default start): tokens (B, L, D) to logits (B, classes).

    Args:
        classes: number of classes.
        dim, heads, depth, mlp_ratio, norm_eps, activation, unused_proj: of the `AttentivePooler`.
    """

    def __init__(
        self,
        *,
        classes: int,
        dim: int,
        heads: int,
        depth: int = 1,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-5,
        activation: Activation = "gelu",
        unused_proj: bool = False,
    ) -> None:
        super().__init__()
        self.pooler = AttentivePooler(
            dim=dim,
            heads=heads,
            depth=depth,
            mlp_ratio=mlp_ratio,
            norm_eps=norm_eps,
            activation=activation,
            unused_proj=unused_proj,
        )
        self.linear = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.pooler(x))
