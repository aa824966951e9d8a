"""The pre-norm transformer over packed tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from jepa.nn.attention import Attention, Layout

Activation = Literal["gelu", "gelu_tanh", "relu", "silu", "swiglu"]
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,  # exact, of the error function
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


class Mlp(nn.Module):
    """Linear, activation, Linear."""

    def __init__(self, dim: int, hidden: int, activation: Activation = "gelu") -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))


class SwiGLU(nn.Module):
    """fc3(SiLU(fc1(x)) * fc2(x)) (Shazeer 2020), as wide as makes it cost what an `Mlp` of `hidden` does.

    Two thirds of `hidden`, rounded up to a multiple of 8, as in V-JEPA 2.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        hidden = -(-(2 * hidden // 3) // 8) * 8
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(dim, hidden)
        self.fc3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(F.silu(self.fc1(x)) * self.fc2(x))


class Block(nn.Module):
    """x + Attention(LN(x)), then x + MLP(LN(x))."""

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-6,
        activation: Activation = "gelu",
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        hidden = int(dim * mlp_ratio)
        self.mlp = SwiGLU(dim, hidden) if activation == "swiglu" else Mlp(dim, hidden, activation)

    def forward(self, x: Tensor, layout: Layout, factors: Tensor | None = None) -> Tensor:  # (N, D) -> (N, D)
        """`factors` (2, S), if given, scale the two residual branches of each sequence."""
        seen = self.attn(self.norm1(x), layout)
        x = x + (seen if factors is None else seen * factors[0, layout.sequence, None])
        thought = self.mlp(self.norm2(x))
        return x + (thought if factors is None else thought * factors[1, layout.sequence, None])


def drop_path_factors(rate: float, sequences: int, like: Tensor) -> Tensor:
    """(2, S) factors that drop residual branches for whole sequences with probability `rate` and keep their mean
    (stochastic depth, Huang et al. 2016)."""
    kept = torch.rand(2, sequences, device=like.device) >= rate
    return kept.to(like.dtype) / (1 - rate)


class Transformer(nn.Module):
    """A stack of blocks and a final LayerNorm.

    Args:
        dim, depth, heads, mlp_ratio: its shape.
        drop_path: stochastic depth rate of the last block, rising linearly from 0 at the first.
        grad_checkpointing: recompute each block in the backward pass instead of keeping its activations.
        norm_eps: epsilon of every LayerNorm.
        activation: of the MLPs; "swiglu" is a `SwiGLU` instead of an `Mlp`.

    Raises:
        ValueError: `drop_path` is not in [0, 1).
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        grad_checkpointing: bool = False,
        norm_eps: float = 1e-6,
        activation: Activation = "gelu",
    ) -> None:
        super().__init__()
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path={drop_path} must lie in [0, 1)")
        self.drop_rates = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio, norm_eps, activation) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.grad_checkpointing = grad_checkpointing

    def forward(self, x: Tensor, layout: Layout) -> Tensor:  # (N, D) -> (N, D)
        drops = self.training and any(self.drop_rates)
        for block, rate in zip(self.blocks, self.drop_rates, strict=True):
            # drawn here: within a compiled block every rate would be a program of its own
            factors = drop_path_factors(rate, len(layout.lengths), x) if drops else None
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, layout, factors, use_reentrant=False)
            else:
                x = block(x, layout, factors)
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


def compile_blocks(model: nn.Module, backend: str = "inductor") -> None:
    """Compile every block in place, once for any number and any lengths of sequences.

    All blocks of one width share their programs: one for equal and one for ragged lengths, with and without gradients.
    """
    torch.compiler.config.recompile_limit = max(torch.compiler.config.recompile_limit, 32)  # more: silently eager
    for module in model.modules():
        if isinstance(module, Block):
            module.compile(dynamic=True, backend=backend)
