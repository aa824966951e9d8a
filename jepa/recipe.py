"""Recipes: resolved from a command line, checked key by key before anything is built, compared and stored."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError
from yaml import YAMLError

from jepa.build import (
    TARGET,
    RecipeError,
    argument_types,
    convert,
    defaults,
    locate,
    nearest,
    parameters,
    refuse_unknown,
)
from jepa.command_line import KEYS, available, composed, find, flat, is_node
from jepa.settings import DataSettings, Node, OptimSettings, Section, SectionT, TrainSettings

INIT_MODES = ("resume", "continue", "anneal", "adapt")
SECTIONS: Mapping[str, type[Section]] = {"data": DataSettings, "optim": OptimSettings, "train": TrainSettings}
LENGTHS = ("warmup", "total")  # of a schedule

# Keys that do not change what is learned: a run may be continued with other values. `*` is any name.
FREE_KEYS = (
    "run_dir",
    "dry_run",
    "data.root",
    "data.workers",
    "data.dataset.root",
    "data.dataset.files",
    "data.dataset.list_file",
    "data.dataset.datasets.*.root",
    "data.dataset.datasets.*.files",
    "data.dataset.datasets.*.list_file",
    "data.test_root",
    "data.labelled",
    "train.accumulate",
    "train.compile",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_last",
    "train.keep_every",
    "train.trackers",
    "train.watch_every",
    "train.stop_on_collapse",
)


def load_recipe(arguments: Sequence[str]) -> dict[str, Any]:
    """The resolved recipe of a command line: `recipe=NAME` and overrides `key=value` in Hydra's grammar.

    Raises:
        RecipeError: a key, value or group that does not exist, naming the nearest one that does.
    """
    named = [argument.partition("=")[2] for argument in arguments if argument.startswith("recipe=")]
    if len(named) != 1:
        raise RecipeError(f"name one recipe, as in recipe=ijepa_tiny; there are: {', '.join(available())}")
    path = find(named[0])
    config = composed(path, [argument for argument in arguments if not argument.startswith("recipe=")])
    missing = [key for key, value in flat(OmegaConf.to_container(config, resolve=False)) if value == "???"]
    if missing and not config.get("dry_run"):
        raise RecipeError(f"{missing[0]} must be given, as in {missing[0]}=VALUE")
    for key in missing:
        OmegaConf.update(config, key, None)
    try:
        recipe = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise RecipeError(f"{path.name}: {str(error).splitlines()[0]}") from error
    assert isinstance(recipe, dict)
    named_values = {str(key): value for key, value in recipe.items()}
    _settle_half_life(named_values)
    check(named_values)
    named_values["run_dir"] = str(Path(named_values["run_dir"]).expanduser())
    named_values["dry_run"] = convert(named_values["dry_run"], bool, "dry_run")
    return {key: named_values[key] for key in KEYS}


def check(recipe: Mapping[str, Any]) -> None:
    """Refuse keys and values that nothing would use, part by part against its signature.

    Raises:
        RecipeError: naming the key and the nearest valid one.
    """
    refuse_unknown(recipe, KEYS, "")
    absent = [key for key in KEYS if key not in recipe]
    if absent:
        raise RecipeError(f"the recipe lacks {absent[0]!r}")
    convert(recipe["seed"], Annotated[int, Field(ge=0)], "seed")
    convert(recipe["run_dir"], Annotated[str, Field(min_length=1)], "run_dir")
    planning = convert(recipe["dry_run"], bool, "dry_run")
    _check_start(recipe["init_from"], recipe["init_mode"])
    train_settings(recipe)
    _section(DataSettings, recipe["data"], "data")
    _section(OptimSettings, recipe["optim"], "optim")
    convert(recipe["regularizers"], Mapping[str, Node], "regularizers")
    for where, node in _nodes(recipe):
        target = locate(node[TARGET], where)
        refuse_unknown([key for key in node if key != TARGET], parameters(target), where)
        hints = argument_types(target)
        for key, value in node.items():
            optional = planning or where.startswith("data.labelled.")
            later = (
                _holds_node(value) or (key in LENGTHS and where.startswith("optim.")) or (value is None and optional)
            )
            if key in hints and not later:
                convert(value, hints[key], f"{where}.{key}")


def _check_start(path: Any, mode: Any) -> None:
    convert(path, str | None, "init_from")
    if mode is not None and mode not in INIT_MODES:
        raise RecipeError(f"init_mode={mode!r}: {nearest(str(mode), INIT_MODES)}")
    if (path is None) != (mode is None):
        raise RecipeError(f"init_from={path} and init_mode={mode} go together; modes: {', '.join(INIT_MODES)}")


def train_settings(recipe: Mapping[str, Any]) -> TrainSettings:
    """The checked section `train`.

    Raises:
        RecipeError: an unknown key or a value out of range.
    """
    settings = _section(TrainSettings, recipe["train"], "train")
    if sum(value is not None for value in (settings.steps, settings.epochs, settings.samples)) != 1:
        raise RecipeError("give the length of the run as exactly one of train.steps, train.epochs, train.samples")
    return settings


def _section(model: type[SectionT], node: Any, where: str) -> SectionT:
    if not isinstance(node, Mapping):
        raise RecipeError(
            f"{where}={node!r} is a section: give its keys, as in {where}.{next(iter(model.model_fields))}="
        )
    refuse_unknown(node, model.model_fields, where)
    try:
        return model.model_validate(node)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if part in model.model_fields)
        given = first["input"] if key in node else "(nothing)"
        raise RecipeError(f"{f'{where}.{key}={given!r}' if key else where}: {first['msg']}") from error


def total_steps(settings: TrainSettings, dataset_size: int | None) -> int:
    """Length of the run in optimiser steps."""
    if settings.steps is not None:
        return settings.steps
    samples = settings.samples
    if samples is None:
        if dataset_size is None:
            raise RecipeError("train.epochs needs the data to know its steps: give data.root, or train.steps")
        assert settings.epochs is not None
        samples = int(settings.epochs * dataset_size)
    return max(1, samples // settings.batch_size)


def length(value: int | str, where: str, *, steps: int, batch_size: int, dataset_size: int | None) -> int:
    """A length in optimiser steps: a number of steps, or "40 epochs", "3e5 samples", "10 %" (of the run).

    Raises:
        RecipeError: it is none of these.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = re.fullmatch(r"\s*([0-9.eE+]+)\s*(steps|samples|epochs|%)\s*", str(value))
    if not match:
        raise RecipeError(f'{where}={value!r}: give steps, or "40 epochs", "3e5 samples", "10 %" of the run')
    try:
        amount = float(match[1])
    except ValueError as error:
        raise RecipeError(f"{where}={value!r}: {match[1]!r} is not a number") from error
    if match[2] == "epochs":
        if dataset_size is None:
            raise RecipeError(f"{where}={value!r} needs the data to know its steps: give data.root, or steps")
        return int(amount * dataset_size / batch_size)
    return int({"steps": amount, "samples": amount / batch_size, "%": amount / 100 * steps}[match[2]])


def difference(stored: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Keys that differ and matter, as "key: stored -> new". A key that is left out has its default."""
    a, b = dict(flat(_filled(stored, new))), dict(flat(_filled(new, new)))
    together = "train.accumulate" if new.get("regularizers") else None  # they look at a micro-batch's tokens together
    keys = [k for k in {**a, **b} if k == together or not any(fnmatchcase(f"{k}.", f"{free}.*") for free in FREE_KEYS)]
    absent = "(absent)"
    return [f"{k}: {a.get(k, absent)} -> {b.get(k, absent)}" for k in keys if a.get(k, absent) != b.get(k, absent)]


def _filled(node: Any, own: Any, where: str = "") -> Any:
    """A recipe with the defaults of what it leaves out. Those of a part are of the class that one's own recipe names:
    another's is never imported."""
    if not isinstance(node, Mapping) or not isinstance(own, Mapping):
        return node
    given = {key: _filled(value, own.get(key), f"{where}.{key}" if where else key) for key, value in node.items()}
    if is_node(own) and node.get(TARGET) == own[TARGET]:
        return {**defaults(locate(own[TARGET], where)), **given}
    fields = SECTIONS[where].model_fields if where in SECTIONS else {}
    return {**{name: field.default for name, field in fields.items() if not field.is_required()}, **given}


def write(recipe: Mapping[str, Any], path: Path) -> None:
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(dict(recipe))))


def read(path: Path) -> dict[str, Any]:
    """A stored recipe.

    Raises:
        RecipeError: it cannot be read.
    """
    try:
        recipe = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, OmegaConfBaseException, ValueError, YAMLError) as error:
        raise RecipeError(f"{path} cannot be read: {error}") from error
    if not isinstance(recipe, dict):
        raise RecipeError(f"{path} is not a recipe")
    return {str(key): value for key, value in recipe.items()}


def _settle_half_life(recipe: Mapping[str, Any]) -> None:
    """A half-life of the target in samples becomes steps: an updater knows steps only."""
    target, train = recipe.get("target"), recipe.get("train")
    if not isinstance(target, dict) or not isinstance(target.get("half_life"), str) or not isinstance(train, Mapping):
        return
    value, batch_size = target["half_life"], train.get("batch_size")
    if not value.strip().endswith(("steps", "samples")) or not isinstance(batch_size, int):
        raise RecipeError(f'target.half_life={value!r}: give steps, or "11000 samples"')
    steps = length(value, "target.half_life", steps=0, batch_size=batch_size, dataset_size=None)
    target["half_life"] = max(1, steps)


def _holds_node(value: Any) -> bool:
    """Whether a value is or holds what is built before it is handed on."""
    return is_node(value) or (isinstance(value, Mapping) and any(map(is_node, value.values())))


def _nodes(node: Any, where: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(node, Mapping):
        if is_node(node):
            yield where, node
        for key, value in node.items():
            yield from _nodes(value, f"{where}.{key}" if where else str(key))
