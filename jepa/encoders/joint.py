"""One vision transformer for several modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from jepa.interfaces import Encoder
from jepa.nn.attention import Layout
from jepa.nn.blocks import Transformer
from jepa.nn.init import init_weights
from jepa.nn.patch import PatchEmbed
from jepa.nn.position import AxisOrder, ModalityEmbedding, SinCosPosition, in_graph
from jepa.types import Indices, JointGrid, Tokens, View, each


@dataclass(frozen=True)
class Patches:
    """How a modality is cut into tokens.

    Attributes:
        size: of a patch along each axis of the input.
        in_chans: channels of the input.
    """

    size: tuple[int, ...]
    in_chans: int


class JointViT(Encoder):
    """ViT whose sequence holds the patches of several modalities: clips and their sound, say.

    Each modality has patches of its own, sin-cos positions on its own grid, and a learned vector that is added to them;
    all blocks are shared. A view may hold any of the modalities, and keep any of their positions.

    Args:
        patches: of each modality, by name. Their order is that of the tokens.
        dim, depth, heads, mlp_ratio: width D, blocks, heads and hidden width of the MLP over D.
        axis_order, drop_path, grad_checkpointing, norm_eps: as in `ViT`.

    Raises:
        ValueError: no modality.
    """

    def __init__(
        self,
        *,
        patches: Mapping[str, Patches],
        dim: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        axis_order: AxisOrder = "first_first",
        drop_path: float = 0.0,
        grad_checkpointing: bool = False,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        if not patches:
            raise ValueError("patches is empty: name at least one modality")
        self.embed_dim, self.modalities = dim, tuple(patches)
        self.patch_embed = nn.ModuleDict(
            {name: PatchEmbed(patch.in_chans, patch.size, dim) for name, patch in patches.items()}
        )
        self.position, self.modality = SinCosPosition(dim, axis_order), ModalityEmbedding(self.modalities, dim)
        self.transformer = Transformer(dim, depth, heads, mlp_ratio, drop_path, grad_checkpointing, norm_eps)
        self.apply(init_weights)

    def grid(self, input_size: Mapping[str, Sequence[int]]) -> JointGrid:  # type: ignore[override]
        """Grids of the modalities that are there, for inputs of those sizes.

        Raises:
            ValueError: a modality that the encoder does not have, none at all, or a size that it cannot cut.
        """
        unknown = [name for name in input_size if name not in self.modalities]
        if unknown or not input_size:
            raise ValueError(
                f"the encoder joins {', '.join(self.modalities)}; the input holds {', '.join(input_size) or 'nothing'}"
            )
        return JointGrid(
            {name: self._patches(name).grid(input_size[name]) for name in self.modalities if name in input_size}
        )

    def forward(self, view: View) -> Tokens:
        x, index = self._embed(view)
        return Tokens(self.transformer(x, Layout.of(index)), index)

    def features(self, view: View, layers: Sequence[int]) -> list[Tokens]:
        x, index = self._embed(view)
        return [Tokens(out, index) for out in self.transformer.intermediates(x, Layout.of(index), layers)]

    def _patches(self, name: str) -> PatchEmbed:
        part = self.patch_embed[name]
        assert isinstance(part, PatchEmbed)
        return part

    def _embed(self, view: View) -> tuple[Tensor, Indices]:
        if isinstance(view.x, Tensor):
            raise ValueError(f"JointViT takes its modalities by name: {{{', '.join(map(repr, self.modalities))}: ...}}")
        grid = self.grid(each(view.x, lambda x: x.shape[2:]))
        samples, device = len(view), next(iter(view.x.values())).device
        index = view.keep or Indices.all(samples, grid, device)
        if index.grid != grid or len(index) != samples:
            raise ValueError(
                f"{samples} samples on the grids {grid.parts}, their mask has {len(index)} sets on "
                f"{getattr(index.grid, 'parts', index.grid)}"
            )
        absent = [name for name in self.modalities if name not in grid.parts]
        unused = [parameter for name in absent for parameter in self._patches(name).parameters()]
        x = in_graph(self._whole(view.x, grid) if index.complete else self._kept(view.x, index, grid), unused)
        return x + self.position(index) + self.modality(index), index

    def _whole(self, x: Mapping[str, Tensor], grid: JointGrid) -> Tensor:
        """(N, D) all patches."""
        parts = [
            self._patches(name).at(x[name], None).unflatten(0, (-1, prod(part))) for name, part in grid.parts.items()
        ]
        return torch.cat(parts, dim=1).flatten(0, 1)

    def _kept(self, x: Mapping[str, Tensor], index: Indices, grid: JointGrid) -> Tensor:
        """(N, D) the patches at `index`; no other is computed."""
        starts = [grid.cells(name).start for name in grid.parts]
        part = torch.stack([index.values >= start for start in starts]).sum(0) - 1  # of each token
        order = part.argsort(stable=True)  # modality after modality
        counts = list(index.parts) or part.bincount(minlength=len(starts)).tolist()
        found = []
        for (name, own), start, rows in zip(grid.parts.items(), starts, order.split(counts), strict=True):
            places = index.sets[rows] * prod(own) + index.values[rows] - start
            found.append(self._patches(name).at(x[name], places))
        flat = torch.cat(found)
        return torch.empty_like(flat).index_copy(0, order, flat)
