"""A trained model from a run directory, for features and probes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from jepa import checkpoint
from jepa.build import RecipeError, build, build_model
from jepa.interfaces import Encoder
from jepa.model import JEPA
from jepa.recipe import PARTS, read
from jepa.types import View

Which = Literal["target", "context"]
Pool = Literal["mean", "none"]


class Pretrained:
    """A trained JEPA in evaluation mode.

    Attributes:
        model: the JEPA, with encoder, target encoder and predictor.
        recipe: the resolved recipe it was trained with.
        step: the optimiser step of its weights.
        normalize: brings raw inputs (B, C, *size) to the encoder's range, with the run's statistics.
        fingerprint: of the weights.
    """

    def __init__(
        self, model: JEPA, recipe: Mapping[str, Any], step: int, normalize: Callable[[Tensor], Tensor], fingerprint: str
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.recipe, self.step, self.normalize, self.fingerprint = recipe, step, normalize, fingerprint

    def encoder(self, which: Which = "target") -> Encoder:
        """The target encoder (the one that papers evaluate) or the context encoder.

        Raises:
            ValueError: neither is meant.
        """
        if which not in get_args(Which):
            raise ValueError(f"which={which!r}: one of {', '.join(get_args(Which))}")
        return self.model.teacher if which == "target" else self.model.encoder

    def to(self, device: torch.device | str) -> Pretrained:
        self.model.to(device)
        return self

    @torch.inference_mode()
    def features(
        self,
        x: Tensor,
        *,
        layers: Sequence[int] = (-1,),
        pool: Pool = "mean",
        which: Which = "target",
        batch_size: int = 64,
    ) -> Tensor:
        """Embeddings of inputs of any size that the encoder can cut into patches.

        Args:
            x: (B, C, *size), uint8 (normalised here with the run's statistics) or float (taken as normalised).
            layers: blocks whose output is used, -1 the last; each passes the final LayerNorm, and they are
                concatenated. (-4, -3, -2, -1) with mean pooling is the I-JEPA paper's second linear probe.
            pool: "mean" over all tokens, or "none".
            which: the target or the context encoder.
            batch_size: inputs at a time.

        Returns:
            (B, D * layers) for "mean", (B, *grid, D * layers) for "none", float32, on the CPU.

        Raises:
            ValueError: no inputs, channels or a size that the encoder cannot take, or an argument out of its range.
        """
        if pool not in get_args(Pool) or not layers or not len(x):
            raise ValueError(
                f"need inputs, layers and a pool of {', '.join(get_args(Pool))}; "
                f"got {len(x)}, {list(layers)} and {pool!r}"
            )
        encoder = self.encoder(which)
        device = next(encoder.parameters()).device
        out = []
        for part in x.split(batch_size):
            view = View(self.normalize(part.to(device)))
            tokens = encoder.features(view, layers)
            dense = torch.cat([t.dense().float() for t in tokens], dim=-1)
            grid = tokens[0].index.grid
            out.append((dense.mean(1) if pool == "mean" else dense.unflatten(1, grid)).cpu())
        return torch.cat(out)


def load(path: str | Path, *, trust: tuple[str, ...] = (), device: torch.device | str = "cpu") -> Pretrained:
    """The model of a run directory, from its newest usable checkpoint.

    Nothing is unpickled, and nothing outside `jepa` is imported unless its package is named in `trust`.

    Args:
        path: a run directory.
        trust: packages of one's own parts that the recipe may name.
        device: where the model goes.

    Raises:
        RecipeError: no run is there, or its recipe names code that is not trusted.
        checkpoint.CheckpointError: no checkpoint, a damaged one, or one that does not fit the recipe.
    """
    path = Path(path).expanduser()
    if not (path / "recipe.yaml").is_file():
        raise RecipeError(f"{path} is not a run directory: there is no {path / 'recipe.yaml'}")
    recipe = read(path / "recipe.yaml")
    found = checkpoint.newest_usable(path / "checkpoints")
    if found is None:
        raise checkpoint.CheckpointError(f"{path} holds no checkpoint yet")
    absent = [key for key in ("data", *PARTS) if key not in recipe]
    if absent:
        raise RecipeError(f"{path / 'recipe.yaml'} lacks {absent[0]!r}")
    model = build_model(recipe, trust=trust)
    checkpoint.load_weights(found[0] / checkpoint.MODEL, model)
    transform = build(recipe["data"]["batch_transform"], "data.batch_transform", trust=trust)
    fingerprint = found[1]["files"][checkpoint.MODEL]["sha256"]
    return Pretrained(model, recipe, found[1]["step"], transform.normalize, fingerprint).to(device)
