"""The method written down plainly, as a yardstick for speed and for the loss.

All patches are embedded and then gathered, attention spells out its softmax, sequences are dense (B, N, D) with the
context repeated for each target block, and the target encoder follows one parameter at a time. Names of parameters are
those of `jepa`, so that weights can be copied over.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.nn.position import sincos_table


class PlainAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:  # (B, N, D) -> (B, N, D)
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        attention = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        return self.proj((attention @ v).transpose(1, 2).reshape(batch, tokens, dim))


class PlainMlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class PlainBlock(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim, eps=1e-6), PlainAttention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim, eps=1e-6), PlainMlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PlainTransformer(nn.Module):
    def __init__(self, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(PlainBlock(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def gather(x: Tensor, places: Tensor) -> Tensor:  # (B, G, D), (B, K) -> (B, K, D)
    return torch.gather(x, 1, places[..., None].expand(-1, -1, x.shape[-1]))


class PlainEncoder(nn.Module):
    def __init__(self, dim: int, depth: int, heads: int, patch: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dim, patch, stride=patch)})
        self.transformer = PlainTransformer(dim, depth, heads)
        self.table = sincos_table(dim, grid, "last_first")

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2) + self.table
        return self.transformer(x if keep is None else gather(x, keep))


class PlainPredictor(nn.Module):
    def __init__(self, embed_dim: int, dim: int, depth: int, heads: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.embed, self.proj = nn.Linear(embed_dim, dim), nn.Linear(dim, embed_dim)
        self.transformer = PlainTransformer(dim, depth, heads)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.table = sincos_table(dim, grid, "last_first")

    def forward(self, context: Tensor, keep: Tensor, targets: Tensor) -> Tensor:  # targets (M, B, K)
        seen = self.embed(context) + self.table[keep]
        asked = self.mask_token + self.table[targets.flatten(0, 1)]
        x = torch.cat((seen.repeat(len(targets), 1, 1), asked), dim=1)
        return self.proj(self.transformer(x)[:, seen.shape[1] :])


class PlainStep:
    """A training step on masks of equal lengths: forward, backward, AdamW, moving average."""

    def __init__(self, encoder: PlainEncoder, predictor: PlainPredictor) -> None:
        self.encoder, self.predictor = encoder, predictor
        self.target = copy.deepcopy(encoder).requires_grad_(False)
        parameters = [*encoder.parameters(), *predictor.parameters()]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, foreach=True)

    def loss(self, x: Tensor, keep: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            answers = self.target(x)
            answers = F.layer_norm(answers, answers.shape[-1:])
            answers = torch.cat([gather(answers, block) for block in targets])
        return F.smooth_l1_loss(self.predictor(self.encoder(x, keep), keep, targets), answers)

    def __call__(self, x: Tensor, keep: Tensor, targets: Tensor) -> None:
        self.loss(x, keep, targets).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for old, new in zip(self.target.parameters(), self.encoder.parameters(), strict=True):
                old.mul_(0.996).add_(0.004 * new)
