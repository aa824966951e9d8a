"""Any backbone of timm, by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from jepa.interfaces import Encoder
from jepa.nn.mlp import mlp
from jepa.types import Indices, Tokens, View


class Timm(Encoder):
    """A backbone of timm (ConvNeXt, ResNet, ViT, ...) that sees whole inputs: it takes no masks.

    It is trained as backbone and projector; `features` are the backbone's, before the projector. Batch norm in either
    uses the statistics of each process's share, or of all of them with `sync_batch_norm`.

    Args:
        name: of the model, as `timm.list_models()` knows it.
        pool: one token for each input, on a grid (1,), pooled as timm does; otherwise the last stage's grid of tokens,
            (rows, columns), without class tokens.
        pretrained: start from timm's weights, which it downloads unless it has them already. `data.batch_transform`
            must then have their mean and std.
        in_chans: channels C of the input.
        options: further arguments of the model, such as {drop_path_rate: 0.1} or, for a ViT, {img_size: 96}.
        projector: widths of the projector's layers; empty: none.
        projector_norm: batch norm at the projector's output too, without affine parameters (SimSiam).
        sync_batch_norm: statistics over all processes. On GPUs only, where there is more than one process.

    Raises:
        ValueError: timm does not know the model, or the model an option.
    """

    hides = False

    def __init__(
        self,
        *,
        name: str,
        pool: bool = True,
        pretrained: bool = False,
        in_chans: int = 3,
        options: Mapping[str, Any] | None = None,
        projector: Sequence[int] = (),
        projector_norm: bool = False,
        sync_batch_norm: bool = False,
    ) -> None:
        super().__init__()
        import timm  # seconds that only those wait for who use it

        self._make = partial(timm.create_model, name, num_classes=0, in_chans=in_chans, **(options or {}))
        self.backbone: Any  # timm's models share more than a Module says
        try:
            self.backbone = self._make(pretrained=pretrained)
        except (TypeError, RuntimeError, AssertionError) as error:
            raise ValueError(f"timm cannot make {name!r} with {dict(options or {})}: {error}") from error
        self.pool, self.in_chans = pool, in_chans
        config = self.backbone.pretrained_cfg
        self.statistics = (config["mean"], config["std"]) if pretrained else None
        self.feature_dim = self.backbone.head_hidden_size if pool else self.backbone.num_features
        if not pool:  # what only pooling uses gets no gradient, which DDP would wait for
            wider = self.backbone.head_hidden_size != self.backbone.num_features
            for part in ("head", "fc_norm", *(("conv_head", "norm_head") if wider else ())):
                if isinstance(getattr(self.backbone, part, None), nn.Module):
                    getattr(self.backbone, part).requires_grad_(False)
        widths = [self.feature_dim, *projector]
        self.projector = mlp(widths, nn.ReLU, batch_norm=True, last_norm=projector_norm) if projector else nn.Identity()
        self.embed_dim = widths[-1]
        if sync_batch_norm:
            self.backbone = nn.SyncBatchNorm.convert_sync_batchnorm(self.backbone)
            self.projector = nn.SyncBatchNorm.convert_sync_batchnorm(self.projector)
        self._grids: dict[tuple[int, ...], tuple[int, ...]] = {}

    @property
    def strides(self) -> list[int]:
        """Pixels of the input for each cell of a stage's output, stage by stage."""
        return [stage["reduction"] for stage in self.backbone.feature_info]

    def grid(self, input_size: Sequence[int]) -> tuple[int, ...]:
        size = tuple(input_size)
        if size not in self._grids:
            with torch.device("meta"):
                known = next(self.backbone.parameters()).is_meta
                shadow = self.backbone if known else self._make(pretrained=False)  # shapes only
                try:
                    maps = self._maps(shadow, torch.empty(2, self.in_chans, *size))
                except (RuntimeError, AssertionError, ValueError, TypeError) as error:
                    raise ValueError(f"{shadow.__class__.__name__} of timm cannot take {size}: {error}") from error
            self._grids[size] = (1,) if self.pool else tuple(maps.shape[1:3])
        return self._grids[size]

    def forward(self, view: View) -> Tokens:
        tokens = self._features(view)
        return Tokens(self.projector(tokens.x), tokens.index)

    def features(self, view: View, layers: Sequence[int]) -> list[Tokens]:
        """Tokens of the backbone, before the projector; there is no layer but -1."""
        if any(layer != -1 for layer in layers):
            raise ValueError(f"Timm offers the backbone's output (layer -1) only, not {list(layers)}")
        return [self._features(view)] * len(layers)

    def _features(self, view: View) -> Tokens:
        if view.keep is not None:
            raise ValueError("Timm sees whole inputs: use a masker that hides nothing, or jepa.encoders.ViT")
        x = view.signal
        if x.shape[1] != self.in_chans:
            raise ValueError(
                f"the encoder takes {self.in_chans} channels, the input {tuple(x.shape)} has {x.shape[1]}: "
                f"set encoder.in_chans={x.shape[1]}"
            )
        if self.pool:
            x = self.backbone.forward_head(self.backbone.forward_features(x), pre_logits=True)
            return Tokens(x, Indices.all(x.shape[0], (1,), x.device))
        x = self._maps(self.backbone, x)
        return Tokens(x.flatten(0, 2), Indices.all(x.shape[0], tuple(x.shape[1:3]), x.device))

    @staticmethod
    def _maps(backbone: Any, x: Tensor) -> Tensor:
        """The last stage's output (B, rows, columns, D)."""
        size, x = x.shape[2:], backbone.forward_features(x)
        if x.ndim == 3:  # a ViT's tokens, class token and registers first
            x = x[:, backbone.num_prefix_tokens :]
            rows = round((x.shape[1] * size[0] / size[1]) ** 0.5)
            return x.unflatten(1, (rows, -1))
        return x if getattr(backbone, "output_fmt", "NCHW") == "NHWC" else x.movedim(1, -1)
