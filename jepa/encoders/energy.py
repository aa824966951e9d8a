"""Energy Transformer: an encoder that walks downhill on an energy that can be written down."""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.interfaces import Encoder
from jepa.nn.attention import Layout
from jepa.nn.patch import PatchEmbed
from jepa.nn.position import AxisOrder, SinCosPosition
from jepa.types import Indices, Tokens, View


class Energy(nn.Module):
    """The energy of a sequence of normalised tokens g (Hoover et al. 2023, equations 2 to 5):

        E(g) = - sum_h 1/beta_h sum_q logsumexp_k(beta_h q . k) - 1/2 sum relu(W g)^2,    q = Wq g, k = Wk g

    The first part is low where tokens attend to each other, the second, a Hopfield network, where each is close to
    stored patterns. There are no values and no output projection. The inverse temperatures beta are learned as their
    logarithms, so that they stay positive.

    Args:
        dim: width D.
        heads: of the attention; must divide D.
        hidden: patterns of the Hopfield network.

    Raises:
        ValueError: `heads` does not divide `dim`.
    """

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads={heads} does not divide the width {dim}")
        self.heads = heads
        self.query, self.key = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.patterns = nn.Linear(dim, hidden, bias=False)
        self.log_beta = nn.Parameter(torch.full((heads,), -log(dim // heads) / 2))
        for layer in (self.query, self.key, self.patterns):
            nn.init.normal_(layer.weight, std=0.02)

    @property
    def beta(self) -> Tensor:
        """Inverse temperature of each head, (H,)."""
        return self.log_beta.exp()

    def forward(self, g: Tensor, layout: Layout) -> Tensor:
        """Energy of each sequence: (N, D) -> (S,)."""
        q, k = self._padded(self.query(g), layout), self._padded(self.key(g), layout)
        there = layout.mask[:, :, 0, :]  # (S, 1, L) of queries
        attention = torch.logsumexp(self._logits(q, k, layout), -1) / self.beta[:, None]
        hopfield = F.relu(self.patterns(g)).square().sum(1) / 2
        stored = g.new_zeros(len(layout.lengths)).index_add(0, layout.sequence, hopfield)
        return -torch.where(there, attention, 0.0).sum((1, 2)) - stored

    def gradient(self, g: Tensor, layout: Layout) -> Tensor:
        """dE/dg, written out: (N, D) -> (N, D)."""
        q, k = self._padded(self.query(g), layout), self._padded(self.key(g), layout)
        attention = self._logits(q, k, layout).softmax(-1)  # (S, H, L, L)
        to_q = self._packed(attention @ k, layout)
        to_k = self._packed(attention.transpose(-2, -1) @ q, layout)  # a padded query is zero: it adds nothing
        to_patterns = F.relu(self.patterns(g))
        pulls = ((self.query, to_q), (self.key, to_k), (self.patterns, to_patterns))
        return -sum((F.linear(pull, layer.weight.T) for layer, pull in pulls), start=torch.zeros_like(g))

    def _logits(self, q: Tensor, k: Tensor, layout: Layout) -> Tensor:  # (S, H, L, L)
        logits = self.beta[:, None, None] * (q @ k.transpose(-2, -1))
        return logits.masked_fill(~layout.mask, -torch.inf)

    def _padded(self, x: Tensor, layout: Layout) -> Tensor:  # (N, D) -> (S, H, L, D / H)
        room = x.new_zeros(len(layout.lengths) * layout.max_length, x.shape[1]).index_copy(0, layout.slots, x)
        return room.view(len(layout.lengths), layout.max_length, self.heads, -1).transpose(1, 2)

    @staticmethod
    def _packed(x: Tensor, layout: Layout) -> Tensor:  # (S, H, L, D / H) -> (N, D)
        return x.transpose(1, 2).flatten(2).flatten(0, 1).index_select(0, layout.slots)


class EnergyTransformer(Encoder):
    """Patches that descend on one energy for a number of steps, all with the same weights (Hoover et al. 2023).

    Each step is x <- x - rate * dE/dg at g = gamma * layer-norm(x) + delta with one number gamma > 0, learned as its
    logarithm: as dg/dx is then symmetric and positive, small steps never raise the energy. What is answered is g after
    the last.

    Args:
        dim, heads, hidden: shape of the energy, see `Energy`.
        steps: of the descent.
        rate: of the descent.
        patch_size: size of a patch along each axis; its length is the number of axes (one number: a 2-D square).
        in_chans: channels C of the input.
        axis_order: of the fixed sin-cos positions.
    """

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        hidden: int,
        steps: int = 12,
        rate: float = 0.1,
        patch_size: int | Sequence[int] = 16,
        in_chans: int = 3,
        axis_order: AxisOrder = "last_first",
    ) -> None:
        super().__init__()
        if steps < 1 or rate <= 0:
            raise ValueError(f"steps={steps} and rate={rate} must be positive")
        patch = (patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)
        self.embed_dim, self.steps, self.rate = dim, steps, rate
        self.patch_embed = PatchEmbed(in_chans, patch, dim)
        self.position = SinCosPosition(dim, axis_order)
        self.energy = Energy(dim, heads, hidden)
        self.log_gamma, self.delta = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(dim))

    def grid(self, input_size: Sequence[int]) -> tuple[int, ...]:
        return self.patch_embed.grid(input_size)

    def forward(self, view: View) -> Tokens:
        return self.features(view, (-1,))[0]

    def features(self, view: View, layers: Sequence[int]) -> list[Tokens]:
        """Tokens after the given steps of the descent, -1 being the last."""
        if any(not -self.steps <= layer < self.steps for layer in layers):
            raise ValueError(
                f"layers {list(layers)}: there are {self.steps} steps, 0..{self.steps - 1} or from -1 down"
            )
        path, index = self.descend(view)
        return [Tokens(path[1:][layer], index) for layer in layers]

    def descend(self, view: View) -> tuple[list[Tensor], Indices]:
        """g (N, D) before the first step and after each, and where its tokens are."""
        signal = view.signal
        index = view.keep or Indices.all(signal.shape[0], self.grid(signal.shape[2:]), signal.device)
        x = self.patch_embed(signal, index) + self.position(index)
        layout = Layout.of(index)
        path = [self._normalized(x)]
        for _ in range(self.steps):
            x = x - self.rate * self.energy.gradient(path[-1], layout)
            path.append(self._normalized(x))
        return path, index

    def _normalized(self, x: Tensor) -> Tensor:
        return self.log_gamma.exp() * F.layer_norm(x, x.shape[-1:]) + self.delta
