"""Recipes: found by name or path, composed by Hydra, checked key by key before anything is built."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, Field, ValidationError
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
from jepa.settings import DataSettings, Node, OptimSettings, Section, SectionT, TrainSettings

PARTS = ("encoder", "predictor", "masker", "target", "criterion", "model")
KEYS = (
    "recipe",
    "seed",
    "run_dir",
    "dry_run",
    "init_from",
    "init_mode",
    "data",
    *PARTS,
    "regularizers",
    "optim",
    "train",
)
INIT_MODES = ("resume", "continue", "anneal", "adapt")
SECTIONS: Mapping[str, type[Section]] = {"data": DataSettings, "optim": OptimSettings, "train": TrainSettings}
SettingsT = TypeVar("SettingsT", bound=BaseModel)
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


def recipes_dir() -> Path:
    """The folder of the shipped recipes: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    for folder in (package / "recipes", package.parent / "recipes"):
        if folder.is_dir():
            return folder
    raise RecipeError(f"the recipes that belong to {package} are missing: reinstall jepa")


def available() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in recipes_dir().glob("*.yaml") if path.stem != "base")


def find(name: str) -> Path:
    """The file of a recipe, by its name or by a path to a YAML of one's own.

    Raises:
        RecipeError: there is none, with the nearest name.
    """
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name).expanduser().resolve()
        if not path.is_file():
            raise RecipeError(f"recipe={name}: no such file ({path})")
        if path.suffix != ".yaml":
            raise RecipeError(f"recipe={name}: the name of a recipe's file ends in .yaml")
        return path
    if name not in available():
        raise RecipeError(f"recipe={name!r} does not exist: {nearest(name, available())}")
    return recipes_dir() / f"{name}.yaml"


def load_recipe(arguments: Sequence[str]) -> dict[str, Any]:
    """The resolved recipe of a command line: `recipe=NAME` and overrides `key=value` in Hydra's grammar.

    Raises:
        RecipeError: a key, value or group that does not exist, naming the nearest one that does.
    """
    named = [argument.partition("=")[2] for argument in arguments if argument.startswith("recipe=")]
    if len(named) != 1:
        raise RecipeError(f"name one recipe, as in recipe=ijepa_tiny; there are: {', '.join(available())}")
    path = find(named[0])
    overrides = [_override(a, path.parent) for a in arguments if not a.startswith("recipe=")]
    config = _compose(path, overrides)
    changed = {o.lstrip("+").partition("=")[0] for o in overrides}
    layers = [changed, *_own_keys(path)]
    _settle_lengths(config, *layers)
    for keys in reversed(layers):
        _fit_replaced_parts(config, keys)
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
    if _is_node(own) and node.get(TARGET) == own[TARGET]:
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


def parse(kind: type[SettingsT], arguments: Sequence[str], command: str) -> SettingsT:
    """The settings of a command line of key=value.

    Args:
        kind: of settings.
        arguments: without the program's name.
        command: for the error.

    Raises:
        RecipeError: a key or value that does not exist, or is missing.
    """
    wrong = next((a for a in arguments if "=" not in a), None)
    if wrong is not None:
        raise RecipeError(f"{wrong!r} is not of the form key=value")
    try:
        given = OmegaConf.to_container(OmegaConf.from_dotlist(list(arguments)))
    except (OmegaConfBaseException, YAMLError) as error:
        raise RecipeError(f"{' '.join(arguments)}: {' '.join(str(error).split())}") from error
    assert isinstance(given, dict)
    names = {field.alias or name: field for name, field in kind.model_fields.items()}
    refuse_unknown([str(name) for name in given], names, "")
    missing = next((name for name, field in names.items() if field.is_required() and name not in given), None)
    if missing is not None:
        what = "name a run" if missing == "run" else "say which"
        raise RecipeError(f"{what}: python -m {command} {missing}={'RUN_DIR' if missing == 'run' else 'PATH'}")
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(f"{'.'.join(map(str, first['loc']))}={first.get('input')!r}: {first['msg']}") from error


def _override(argument: str, beside: Path) -> str:
    """Any key may be overridden; keys that nothing knows are refused later, with the nearest name.

    Groups are the shipped ones and those beside the recipe.
    """
    key, equals, value = argument.partition("=")
    if not equals and not key.startswith("~"):
        raise RecipeError(f"{argument!r} is not of the form key=value")
    if key.startswith(("~", "+")):
        return argument
    names = {path.stem for folder in (recipes_dir(), beside) for path in (folder / key).glob("*.yaml")}
    if key in KEYS and names:
        if value not in names:
            raise RecipeError(f"{argument}: there is no such {key}; {nearest(value, names)}")
        return argument
    text = value.replace("'", "\\'")
    for readable in (f"++{argument}", f"++{key}='{text}'"):  # what is not Hydra's grammar is text: a path, say
        with suppress(HydraException):
            if not OverridesParser.create().parse_override(readable).is_sweep_override():
                return readable
    raise RecipeError(f"{argument!r} is not of the form key=value")


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


def _compose(path: Path, overrides: list[str]) -> DictConfig:
    search = [] if path.parent == recipes_dir() else [f"hydra.searchpath=['file://{recipes_dir()}']"]
    try:
        with initialize_config_dir(str(path.parent), version_base="1.3"):
            config = compose(path.stem, overrides=[f"++recipe='{path.stem}'", *overrides, *search])
    except MissingConfigException as error:
        raise RecipeError(f"{path.name}: {str(error).splitlines()[0]}") from error
    except YAMLError as error:
        raise RecipeError(f"{path.name} is not valid YAML: {' '.join(str(error).split())}") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise RecipeError(f"{path.name}: {str(error).splitlines()[0]}") from error
    OmegaConf.set_struct(config, False)
    return config


def _own_keys(path: Path) -> list[set[str]]:
    """Keys that a recipe's file sets itself, then those of the recipes that it starts from, but for base."""
    raw = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    found = [{key for key, _ in flat(raw)}]
    for entry in raw.get("defaults") or () if isinstance(raw, dict) else ():
        for folder in (path.parent, recipes_dir()) if isinstance(entry, str) else ():
            parent = folder / f"{entry}.yaml"
            if entry not in ("_self_", "base") and parent.is_file():
                return found + _own_keys(parent)
    return found


def _settle_lengths(config: DictConfig, *layers: set[str]) -> None:
    """A length on the command line, or else in the recipe's own file, replaces others, whatever unit they are in."""
    names = ("steps", "epochs", "samples")
    for changed in layers:
        given = [name for name in names if f"train.{name}" in changed]
        if given and isinstance(config.get("train"), DictConfig):
            config.train.update({name: None for name in names if name not in given})
            return


def _fit_replaced_parts(config: DictConfig, changed: set[str]) -> None:
    """A part that replaces another keeps of the other's arguments those that its own signature knows."""
    replaced = {key.removesuffix(f".{TARGET}") for key in changed if key.endswith(f".{TARGET}")}
    replaced |= {key for key in changed if key in PARTS}
    for where in sorted(replaced):
        node = OmegaConf.select(config, where)
        if not _is_node(node):
            continue
        known = parameters(locate(node[TARGET], where))
        for name in [n for n in node if n != TARGET and n not in known and f"{where}.{n}" not in changed]:
            del node[name]


def _holds_node(value: Any) -> bool:
    """Whether a value is or holds what is built before it is handed on."""
    return _is_node(value) or (isinstance(value, Mapping) and any(map(_is_node, value.values())))


def _is_node(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get(TARGET), str)


def _nodes(node: Any, where: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(node, Mapping):
        if _is_node(node):
            yield where, node
        for key, value in node.items():
            yield from _nodes(value, f"{where}.{key}" if where else str(key))


def flat(node: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a recipe."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from flat(value, f"{where}.{key}" if where else str(key))
    else:
        yield where, list(node) if isinstance(node, tuple) else node
