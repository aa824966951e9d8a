"""Self-attention over ragged batches: the only place that knows where one sequence ends and the next begins.

Linear layers run on packed tokens (N, D). Attention picks one of three backends that give equal results:

    equal   all sequences have one length: one call of SDPA on a reshape
    varlen  CUDA in half precision: torch.nn.attention.varlen, no padding at all
    padded  everywhere else: SDPA on a padded copy with a mask
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.nn.rotary import Rotary, rotate
from jepa.types import Indices

Backend = Literal["equal", "varlen", "padded"]


@dataclass(eq=False)
class Layout:
    """Where the sequences of a packed batch (N, D) begin and end, with what each backend needs.

    Everything is computed when it is built, before the blocks run: compiled blocks only read plain attributes.

    Attributes:
        lengths: (S,) tokens of each sequence.
        total: N.
        min_length, max_length: bounds on `lengths`, known on the host; equal only if all lengths are.
        rotary: by which every token's queries and keys are turned, (N, D / H) twice; None: not at all.
        cumulative: (S + 1,) int32 where each sequence starts; the last entry is N.
        sequence: (N,) the sequence that each token belongs to.
        offset: (N,) place of each token within its sequence.
        slots: (N,) place of each token in the padded (S * max_length) layout.
        mask: (S, 1, 1, max_length) true where the padded layout holds a token.
    """

    lengths: Tensor
    total: int
    min_length: int
    max_length: int
    rotary: Rotary | None = None
    cumulative: Tensor = field(init=False)
    sequence: Tensor = field(init=False)
    offset: Tensor = field(init=False)
    slots: Tensor = field(init=False)
    mask: Tensor = field(init=False)

    def __post_init__(self) -> None:
        device = self.lengths.device
        starts = F.pad(self.lengths.cumsum(0), (1, 0))
        self.cumulative = starts.int()
        order = torch.arange(self.lengths.shape[0], device=device)
        self.sequence = torch.repeat_interleave(order, self.lengths, output_size=self.total)
        self.offset = torch.arange(self.total, device=device) - starts[self.sequence]
        self.slots = self.sequence * self.max_length + self.offset
        self.mask = (torch.arange(self.max_length, device=device) < self.lengths[:, None])[:, None, None]

    @classmethod
    def of(cls, index: Indices, rotary: Rotary | None = None) -> Layout:
        return cls(index.lengths, index.total, index.min_length, index.max_length, rotary)


def choose_backend(q: Tensor, layout: Layout) -> Backend:
    """The fastest backend that can take these tensors."""
    if layout.min_length == layout.max_length:
        return "equal"
    # varlen keeps to flash attention: half precision, heads up to 256 wide, a multiple of 8
    if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] <= 256 and q.shape[-1] % 8 == 0:
        return "varlen"
    return "padded"


def ragged_attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout, backend: Backend | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D / H)) v within each sequence.

    Args:
        q, k, v: (N, H, D / H) packed tokens.
        layout: the sequences.
        backend: forces one of the three; by default the fastest that fits.

    Returns:
        (N, H, D / H)
    """
    backend = backend or choose_backend(q, layout)
    if backend == "varlen":
        return _varlen(q, k, v, layout)
    sequences, _, _, longest = layout.mask.shape  # a tensor's sizes: torch 2.11 loses track of a bare number's
    if backend == "equal":
        q, k, v = (t.view(sequences, longest, *t.shape[1:]).transpose(1, 2) for t in (q, k, v))
        return _sdpa(q, k, v).transpose(1, 2).flatten(0, 1)

    def pad(t: Tensor) -> Tensor:  # (N, H, D / H) -> (S, H, max_length, D / H)
        room = t.new_zeros(sequences * longest, *t.shape[1:])
        return room.index_copy(0, layout.slots, t).view(sequences, longest, *t.shape[1:]).transpose(1, 2)

    out = _sdpa(pad(q), pad(k), pad(v), layout.mask)
    return out.transpose(1, 2).flatten(0, 1).index_select(0, layout.slots)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    if q.device.type == "cpu" and q.dtype in (torch.float16, torch.bfloat16):
        # torch's backward in half precision takes two to three times as long there as the one in single precision
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _varlen(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # only CUDA builds can run it

    ends, longest = layout.cumulative, layout.max_length
    # by position: the names of what follows moved between torch releases, these seven did not
    out = varlen_attn(q.contiguous(), k.contiguous(), v.contiguous(), ends, ends, longest, longest)
    return out if isinstance(out, Tensor) else out[0]


class Attention(nn.Module):
    """Multi-head self-attention with one joint projection, laid out as [q | k | v] (Dosovitskiy et al. 2021).

    Args:
        dim: width D.
        heads: number of heads; must divide D.

    Raises:
        ValueError: `heads` does not divide `dim`.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads={heads} does not divide the width {dim}")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def project(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:  # (N, D) -> (N, H, D / H) each
        """Queries and keys, turned by their positions where the layout says so, and values."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        if layout.rotary is None:
            q, k, v = qkv.unbind(1)
            return q, k, v
        q, k = rotate(qkv[:, :2], layout.rotary).unbind(1)
        return q, k, qkv[:, 2]

    def forward(self, x: Tensor, layout: Layout) -> Tensor:  # (N, D) -> (N, D)
        q, k, v = self.project(x, layout)
        return self.proj(ragged_attention(q, k, v, layout).flatten(1))
