"""Start a run from the weights of another: init_from=PATH init_mode=MODE.

    resume    exactly where the other run stands, with everything that a checkpoint holds; the recipe must be the same
    continue  its weights; new optimiser, new schedules
    anneal    its weights and its optimiser; new schedules, as for a cooldown (Assran et al. 2025, V-JEPA 2)
    adapt     its weights, made to fit other inputs: size, channels, frames, patches; new optimiser, new schedules

PATH is a run directory; for `continue` and `adapt` also a jepa folder, as jepa.convert and save_pretrained write it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from jepa import checkpoint
from jepa import recipe as recipes
from jepa.adapt import adapt
from jepa.build import TARGET, RecipeError, defaults, locate
from jepa.loading import Found, find
from jepa.trainer import Trainer

ONLY_TRAINING = ("drop_path", "grad_checkpointing", "depth_rescale", "zero_init_mask_tokens", "pretrained")
OWN = ("init_from", "init_mode")


def start(trainer: Trainer, recipe: Mapping[str, Any]) -> list[str]:
    """Put the weights that `recipe` names into a trainer at step 0; returns what was done, line by line.

    Raises:
        RecipeError, checkpoint.CheckpointError: they are not there, are damaged, or do not fit.
    """
    mode, path = recipe["init_mode"], Path(recipe["init_from"]).expanduser()
    found = find(path)
    where = f"{path}, step {found.step:,}" if found.checkpoint else str(path)
    if found.checkpoint is None and mode in ("resume", "anneal"):
        raise RecipeError(f"init_from={path} is a folder of weights: init_mode={mode} needs a run directory")
    if mode == "resume":
        differ = recipes.difference(_without(found.recipe), _without(recipe))
        if differ:
            raise RecipeError(f"init_mode=resume needs the recipe of {path}. They differ in:\n  " + "\n  ".join(differ))
        trainer.resume(path / "checkpoints")
        return [f"resumed {where}"]
    differ = list(differences(found.recipe, recipe))
    if mode == "adapt":
        weights = _read(found)
        old, new = ({**_arguments(r["encoder"], recipe["encoder"])} for r in (found.recipe, recipe))
        weights, lines = adapt(weights, trainer.jepa.state_dict(), old, new)
        trainer.jepa.load_state_dict(weights)
        return [f"adapted {where}", *differ, *lines]
    if differ:
        raise RecipeError(
            f"init_mode={mode} needs the encoder and predictor of {path}. They differ in {'; '.join(differ)}. "
            f"init_mode=adapt takes other inputs"
        )
    checkpoint.load_weights(found.weights, trainer.jepa)
    if mode == "continue":
        return [f"weights of {where}"]
    assert found.checkpoint is not None
    checkpoint.load_optimizer(trainer.optimizer, load_file(found.checkpoint / checkpoint.OPTIMIZER))
    return [f"weights and optimiser of {where}"]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """What makes the encoder or predictor of two recipes compute something else, as "key: old -> new"."""
    for part in ("encoder", "predictor"):
        if old[part].get(TARGET) != new[part][TARGET]:
            yield f"{part}: {old[part].get(TARGET)} -> {new[part][TARGET]}"
            continue
        before, after = (_arguments(recipe[part], new[part]) for recipe in (old, new))
        for key in sorted(before.keys() | after.keys()):
            values = [_plain(key, side.get(key)) for side in (before, after)]
            if key not in ONLY_TRAINING and values[0] != values[1]:
                yield f"{part}.{key}: {before.get(key)} -> {after.get(key)}"


def _arguments(node: Mapping[str, Any], trusted: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a part, with the defaults of the class that one's own recipe names: another's is never imported."""
    return {**defaults(locate(str(trusted[TARGET]), "")), **{key: v for key, v in node.items() if key != TARGET}}


def _plain(key: str, value: Any) -> Any:
    if key == "patch_size" and isinstance(value, int):
        value = (value, value)
    return list(value) if isinstance(value, (tuple, list)) else value


def _without(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in recipe.items() if key not in OWN}


def _read(found: Found) -> dict[str, Any]:
    try:
        return load_file(found.weights)
    except (OSError, SafetensorError) as error:
        raise checkpoint.CheckpointError(f"{found.weights} cannot be read: {error}") from error
