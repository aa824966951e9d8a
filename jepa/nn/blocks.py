"""The pre-norm transformer over packed tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from jepa.nn.attention import Attention, Layout


class Mlp(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class DropPath(nn.Module):
    """Drops a residual branch for whole sequences (stochastic depth, Huang et al. 2016).

    Raises:
        ValueError: `rate` is not in [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"drop_path={rate} must lie in [0, 1)")
        self.rate = rate

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        if self.rate == 0 or not self.training:
            return x
        kept = torch.rand(len(layout.lengths), device=x.device) >= self.rate
        return x * (kept.to(x.dtype) / (1 - self.rate))[layout.sequence, None]


class Block(nn.Module):
    """x + Attention(LN(x)), then x + MLP(LN(x)); LayerNorm epsilon 1e-6."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:  # (N, D) -> (N, D)
        x = x + self.drop_path(self.attn(self.norm1(x), layout), layout)
        return x + self.drop_path(self.mlp(self.norm2(x)), layout)


class Transformer(nn.Module):
    """A stack of blocks and a final LayerNorm.

    Args:
        dim, depth, heads, mlp_ratio: its shape.
        drop_path: stochastic depth rate of the last block, rising linearly from 0 at the first.
        grad_checkpointing: recompute each block in the backward pass instead of keeping its activations.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        rates = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio, rate) for rate in rates)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.grad_checkpointing = grad_checkpointing

    def forward(self, x: Tensor, layout: Layout) -> Tensor:  # (N, D) -> (N, D)
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, layout, use_reentrant=False)
            else:
                x = block(x, layout)
        return self.norm(x)

    def intermediates(self, x: Tensor, layout: Layout, layers: Sequence[int]) -> list[Tensor]:
        """Outputs (N, D) after the given blocks (-1: the last), each through the final LayerNorm.

        Raises:
            ValueError: there is no such block.
        """
        depth = len(self.blocks)
        if any(not -depth <= layer < depth for layer in layers):
            raise ValueError(f"layers {list(layers)}: there are {depth} blocks, counted 0..{depth - 1} or from -1 down")
        outputs = []
        for block in self.blocks:
            x = block(x, layout)
            outputs.append(x)
        return [self.norm(outputs[layer]) for layer in layers]


def compile_blocks(model: nn.Module) -> None:
    """Compile every block in place, for any number of tokens."""
    for module in model.modules():
        if isinstance(module, Block):
            module.compile(dynamic=True)
