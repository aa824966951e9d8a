"""Any backbone of timm, by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from jepa.interfaces import Encoder
from jepa.nn.mlp import by_view, mlp
from jepa.types import Indices, Tokens, View

FOREIGN = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")  # files and addresses that timm would read


class Timm(Encoder):
    """A backbone of timm (ConvNeXt, ResNet, ViT, ...) that sees whole inputs: it takes no masks.

    It is trained as backbone and projector; `features` are the backbone's, before the projector. Batch norm in either
    uses the statistics of each process's share, of which checkpoints keep those of the first process, or of all of them
    with `sync_batch_norm`.

    Args:
        name: of the model, as `timm.list_models()` knows it, with a tag of its weights or without.
        pool: one token for each input, on a grid (1,), pooled as timm does; otherwise the last stage's grid of tokens,
            (rows, columns), without class tokens.
        pretrained: a run begins with timm's weights, which it downloads unless it has them already; a model that is
            loaded or made for a baseline does not. `data.batch_transform` must have their mean and std.
        in_chans: channels C of the input.
        options: further arguments of the model, such as {drop_path_rate: 0.1} or, for a ViT, {img_size: 96}.
        projector: widths of the projector's layers; empty: none.
        projector_norm: batch norm at the projector's output too, without affine parameters (SimSiam).
        sync_batch_norm: statistics over all processes. On GPUs only, where there is more than one process.
        views: that a training batch holds of each sample, one after the other; each has batch statistics of its own.

    Raises:
        ValueError: timm does not know the model, or the model an option; an option names weights; no views.
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
        views: int = 1,
    ) -> None:
        super().__init__()
        import timm  # seconds that only those wait for who use it

        if views < 1:
            raise ValueError(f"views={views} must be at least 1")
        options = dict(options or {})
        for option in (option for option in FOREIGN if option in options):
            raise ValueError(
                f"options.{option}={options[option]!r}: an encoder reads no weights; a run begins with timm's by "
                f"encoder.pretrained=true, or with those of another run by init_from="
            )
        if not timm.is_model(name):
            raise ValueError(f"timm cannot make {name!r}: it has no such model, timm.list_models() names those it has")
        self.backbone: Any  # timm's models share more than a Module says
        try:
            self._make = partial(timm.create_model, name, num_classes=0, in_chans=in_chans, **options)
            self.backbone = self._make(pretrained=False)
        except (TypeError, RuntimeError, AssertionError) as error:
            raise ValueError(f"timm cannot make {name!r} with {options}: {error}") from error
        self.pool, self.in_chans, self.pretrained, self.views = pool, in_chans, pretrained, views
        config = self.backbone.pretrained_cfg
        self.statistics = (config["mean"], config["std"]) if pretrained and len(config["mean"]) == in_chans else None
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
                    made = self._output(shadow, torch.empty(2, self.in_chans, *size))
                except (RuntimeError, AssertionError, ValueError, TypeError) as error:
                    raise ValueError(f"{shadow.__class__.__name__} of timm cannot take {size}: {error}") from error
            self._grids[size] = tuple(made.shape[1:-1])
        return self._grids[size]

    def begin(self) -> None:
        """Load timm's weights, if they are asked for.

        Raises:
            ValueError, OSError: there are none, or they cannot be fetched.
        """
        if not self.pretrained:
            return
        with torch.random.fork_rng(devices=[]):
            try:
                weights = self._make(pretrained=True).state_dict()
            except RuntimeError as error:
                raise ValueError(f"pretrained=true: timm has no weights for it: {error}") from error
        self.backbone.load_state_dict(weights)

    def forward(self, view: View) -> Tokens:
        tokens = self._features(view)
        return Tokens(by_view(self.projector, tokens.x, self.views, self.training), tokens.index)

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
        x = by_view(partial(self._output, self.backbone), x, self.views, self.training)
        return Tokens(x.flatten(0, -2), Indices.all(x.shape[0], tuple(x.shape[1:-1]), x.device))

    def _output(self, backbone: Any, x: Tensor) -> Tensor:
        """The pooled output (B, 1, D), or that of the last stage (B, rows, columns, D)."""
        size, x = x.shape[2:], backbone.forward_features(x)
        if self.pool:
            return backbone.forward_head(x, pre_logits=True)[:, None]
        prefix = getattr(backbone, "num_prefix_tokens", None)
        if not isinstance(x, Tensor) or (x.ndim == 3 and prefix is None):
            raise ValueError("it does not tell the places of its tokens: set encoder.pool=true")
        if x.ndim == 3:  # a ViT's tokens, class token and registers first
            x = x[:, prefix:]
            rows = round((x.shape[1] * size[0] / size[1]) ** 0.5)
            return x.unflatten(1, (rows, -1))
        return x if getattr(backbone, "output_fmt", "NCHW") == "NHWC" else x.movedim(1, -1)
