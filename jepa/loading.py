"""A trained model from a run directory or an exported folder, for features and probes.

An exported folder holds `model.safetensors`, `config.json` (the resolved recipe and what is known of the training, in
plain JSON) and a model card. It is what goes to the Hugging Face hub and comes from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from torch import Tensor

from jepa import checkpoint
from jepa.build import RecipeError, build, build_model
from jepa.card import model_card, without_paths
from jepa.command_line import PARTS
from jepa.interfaces import Encoder
from jepa.model import JEPA
from jepa.recipe import read
from jepa.types import Input, View, each

Which = Literal["target", "context"]
Pool = Literal["mean", "none"]
CONFIG, FORMAT = "config.json", "jepa 1"


class Pretrained(ModelHubMixin):
    """A trained JEPA in evaluation mode.

    `save_pretrained(folder)` and `push_to_hub("name/model")` are those of huggingface_hub.

    Attributes:
        model: the JEPA, with encoder, target encoder and predictor.
        recipe: the resolved recipe it was trained with.
        step: the optimiser step of its weights.
        normalize: brings raw inputs (B, C, *size) to the encoder's range, with the run's statistics.
        fingerprint: of the weights.
        facts: what else is known, for the model card: source, samples, hardware, torch, evaluation; set "licence"
            before sharing the weights.
    """

    def __init__(
        self,
        model: JEPA,
        recipe: Mapping[str, Any],
        step: int,
        normalize: Callable[[Any], Any],
        fingerprint: str,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.recipe, self.step, self.normalize, self.fingerprint = recipe, step, normalize, fingerprint
        self.facts = dict(facts or {})

    @property
    def learned(self) -> Which:
        """The encoder that is used unless another is asked for: the target encoder, which papers evaluate, or the
        context encoder where the target is a teacher that learned nothing."""
        return self.model.updater.learned

    def encoder(self, which: Which | None = None) -> Encoder:
        """The target encoder, the context encoder, or by default the one that `learned`.

        Raises:
            ValueError: neither is meant.
        """
        which = self.learned if which is None else which
        if which not in get_args(Which):
            raise ValueError(f"which={which!r}: one of {', '.join(get_args(Which))}")
        return self.model.teacher if which == "target" else self.model.encoder

    def to(self, device: torch.device | str) -> Pretrained:
        self.model.to(device)
        return self

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        trust: tuple[str, ...] = (),
        device: torch.device | str = "cpu",
    ) -> Pretrained:
        """The model of a folder, or of a repository on the Hugging Face hub; only weights and JSON are fetched.

        Raises:
            RecipeError, checkpoint.CheckpointError: see `load`.
        """
        folder = Path(name).expanduser()
        if not folder.is_dir():
            files = [CONFIG, checkpoint.MODEL]
            folder = Path(
                snapshot_download(
                    str(name),
                    revision=revision,
                    token=token,
                    cache_dir=cache_dir,
                    local_files_only=local_files_only,
                    allow_patterns=files,
                )
            )
        return load(folder, trust=trust, device=device)

    def _save_pretrained(self, save_directory: Path) -> None:
        described = checkpoint.save_weights(self.model.state_dict(), save_directory / checkpoint.MODEL)
        config = {
            "format": FORMAT,
            "step": self.step,
            "weights": described,
            "facts": self.facts,
            "recipe": without_paths(dict(self.recipe)),
        }
        (save_directory / CONFIG).write_text(json.dumps(config, indent=1) + "\n")

    def generate_model_card(self) -> ModelCard:
        """What the weights are: data, recipe, steps, hardware, probe results, licence."""
        return model_card(self.recipe, self.step, self.facts, sum(p.numel() for p in self.model.encoder.parameters()))

    @torch.inference_mode()
    def features(
        self,
        x: Input,
        *,
        layers: Sequence[int] = (-1,),
        pool: Pool = "mean",
        which: Which | None = None,
        batch_size: int = 64,
    ) -> Tensor:
        """Embeddings of inputs of any size that the encoder can cut into patches.

        Args:
            x: (B, C, *size), uint8 (normalised here with the run's statistics) or float (taken as normalised); of an
                encoder that joins modalities, any of them by name. A model of clips takes pictures (B, C, H, W) too:
                they stand still for as many frames as it was trained on, as V-JEPA's evaluation has it.
            layers: blocks whose output is used, -1 the last; each passes the final LayerNorm, and they are
                concatenated. (-4, -3, -2, -1) with mean pooling is the I-JEPA paper's second linear probe.
            pool: "mean" over all tokens, or "none".
            which: the target or the context encoder; None: the one that `learned`.
            batch_size: inputs at a time.

        Returns:
            (B, D * layers) for "mean", (B, *grid, D * layers) for "none", modalities one after the other; float32, on
            the CPU.

        Raises:
            ValueError: no inputs, channels or a size that the encoder cannot take, or an argument out of its range.
        """
        count = len(View(x)) if len(x) else 0
        if pool not in get_args(Pool) or not layers or not count:
            raise ValueError(
                f"need inputs, layers and a pool of {', '.join(get_args(Pool))}; "
                f"got {count}, {list(layers)} and {pool!r}"
            )
        encoder = self.encoder(which)
        device = next(encoder.parameters()).device
        out = []
        for start in range(0, count, batch_size):
            piece = each(x, partial(_piece, start=start, size=batch_size, device=device))
            view = View(self.normalize(each(piece, self._standing)))
            tokens = encoder.features(view, layers)
            dense = torch.cat([t.dense().float() for t in tokens], dim=-1)
            grid = tokens[0].index.grid
            out.append((dense.mean(1) if pool == "mean" else dense.unflatten(1, grid)).cpu())
        return torch.cat(out)

    def _standing(self, x: Tensor) -> Tensor:
        """Pictures (B, C, H, W) as clips of the length that the model was trained on; what else it takes as it is."""
        size = self.recipe["data"]["size"]
        if x.ndim == 4 and isinstance(size, Sequence) and len(size) == 3:
            return x[:, :, None].expand(-1, -1, size[0], -1, -1)
        return x


def _piece(x: Tensor, *, start: int, size: int, device: torch.device) -> Tensor:
    return x[start : start + size].to(device)


@dataclass(frozen=True)
class Found:
    """Weights that were found, and what is known of them. Nothing of it was built or run.

    Attributes:
        where: the file that says so.
        recipe: that they were trained with.
        weights: the safetensors file, whole as it was written.
        fingerprint: of its contents.
        step: optimiser steps.
        facts: what else is known.
        checkpoint: of a run; None for an exported folder.
    """

    where: Path
    recipe: dict[str, Any]
    weights: Path
    fingerprint: str
    step: int
    facts: dict[str, Any]
    checkpoint: Path | None


def load(path: str | Path, *, trust: tuple[str, ...] = (), device: torch.device | str = "cpu") -> Pretrained:
    """The model of a run directory, from its newest usable checkpoint, or of an exported folder.

    Nothing is unpickled, and nothing outside `jepa` is imported unless its package is named in `trust`.

    Args:
        path: a run directory or an exported folder.
        trust: packages of one's own parts that the recipe may name.
        device: where the model goes.

    Raises:
        RecipeError: neither is there, or its recipe names code that is not trusted.
        checkpoint.CheckpointError: no checkpoint, a damaged one, or one that does not fit the recipe.
    """
    found = find(Path(path).expanduser())
    model = build_model(found.recipe, trust=trust)
    checkpoint.load_weights(found.weights, model)
    transform = build(found.recipe["data"]["batch_transform"], "data.batch_transform", trust=trust)
    pretrained = Pretrained(model, found.recipe, found.step, transform.normalize, found.fingerprint, found.facts)
    return pretrained.to(device)


def find(path: Path) -> Found:
    """The weights of a run directory or an exported folder, checked to be whole.

    Raises:
        RecipeError, checkpoint.CheckpointError: as `load`.
    """
    found = _find_run(path) if (path / "recipe.yaml").is_file() else _find_folder(path)
    data = found.recipe.get("data")
    absent = [key for key in ("data", "regularizers", *PARTS) if not isinstance(found.recipe.get(key), dict)]
    if not isinstance(data, dict) or absent:
        raise RecipeError(f"{found.where} lacks {absent[0]!r}")
    if "batch_transform" not in data or "size" not in data:
        raise RecipeError(f"{found.where} lacks 'data.batch_transform' or 'data.size'")
    if (path / "evaluation.json").is_file():
        found.facts["evaluation"] = read_evaluation(path / "evaluation.json")
    return found


def _find_run(path: Path) -> Found:
    recipe = read(path / "recipe.yaml")
    newest = checkpoint.newest_usable(path / "checkpoints")
    if newest is None:
        raise checkpoint.CheckpointError(f"{path} holds no checkpoint yet")
    folder, state = newest
    return Found(
        where=path / "recipe.yaml",
        recipe=recipe,
        weights=folder / checkpoint.MODEL,
        fingerprint=state["files"][checkpoint.MODEL]["sha256"],
        step=state["step"],
        facts={key: state[key] for key in ("samples", "torch", "hardware") if key in state},
        checkpoint=folder,
    )


def _find_folder(path: Path) -> Found:
    where = path / CONFIG
    if not where.is_file():
        raise RecipeError(f"{path} is not a run directory: there is no {path / 'recipe.yaml'}, and no {where} either")
    try:
        config = json.loads(where.read_text())
        written = config.get("format")
        recipe, step, facts, described = (config.get(key) for key in ("recipe", "step", "facts", "weights"))
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise RecipeError(f"{where} cannot be read: {error!r}") from error
    if written is None:
        raise RecipeError(f"{path} is a folder of another library: python -m jepa.convert from={path} to=FOLDER")
    if written != FORMAT:
        raise RecipeError(f"{where}: format {written!r} is not {FORMAT!r}: another version of jepa wrote it")
    if not isinstance(recipe, dict) or not isinstance(step, int) or not isinstance(facts, dict):
        raise RecipeError(f"{where} holds no recipe, step and facts")
    checkpoint.verify(path / checkpoint.MODEL, described)
    return Found(where, recipe, path / checkpoint.MODEL, described["sha256"], step, facts, None)


def read_evaluation(path: Path) -> list[dict[str, Any]]:
    """Rows of evaluation.json.

    Raises:
        RecipeError: the file holds something else.
    """
    needed = {"task", "probe", "features", "metric", "score", "seed"}
    try:
        rows = json.loads(path.read_text())
        if not all(needed <= row.keys() for row in rows):
            raise ValueError(f"every row needs {', '.join(sorted(needed))}")
    except (ValueError, AttributeError, TypeError) as error:
        raise RecipeError(f"{path} cannot be read: {error}; write it again with python -m jepa.evaluate") from error
    return rows
