"""Initialisation of vision transformers as published."""

from __future__ import annotations

from math import sqrt

import torch
from torch import nn

from jepa.nn.blocks import Block, SwiGLU


def init_weights(module: nn.Module, std: float = 0.02) -> None:
    """Every Linear weight truncated-normal, biases 0; LayerNorm 1 and 0. For `module.apply`.

    The published code draws with absolute bounds of +-2, which is 100 standard deviations: a plain normal but for a
    rare outlier of -2.0 that its arithmetic produces and this does not.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=std, a=-2.0, b=2.0)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


@torch.no_grad()
def rescale_depth(blocks: nn.ModuleList) -> None:
    """Divide the last projections of the l-th block by sqrt(2 l), l from 1 (BEiT, Bao et al. 2022).

    The published I-JEPA and V-JEPA write this down and then undo it with a second initialisation; V-JEPA 2 keeps it.
    (With SwiGLU its code divides the gate's linear branch, fc2; no released model has one. Here it is the last one.)
    """
    for depth, block in enumerate(blocks, start=1):
        assert isinstance(block, Block)
        block.attn.proj.weight.div_(sqrt(2 * depth))
        last = block.mlp.fc3 if isinstance(block.mlp, SwiGLU) else block.mlp.fc2
        last.weight.div_(sqrt(2 * depth))
