"""What a command line asks for: a recipe by name or path with overrides, composed by Hydra, or plain settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from yaml import YAMLError

from jepa.build import TARGET, RecipeError, locate, nearest, parameters, refuse_unknown

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
SettingsT = TypeVar("SettingsT", bound=BaseModel)


def recipes_dir() -> Path:
    """The folder of the shipped recipes: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    for folder in (package / "recipes", package.parent / "recipes"):
        if folder.is_dir():
            return folder
    raise RecipeError(f"the recipes that belong to {package} are missing: reinstall jepa")


def available() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in recipes_dir().glob("*.yaml") if not path.stem.startswith("base"))


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


def composed(path: Path, arguments: Sequence[str]) -> DictConfig:
    """A recipe's file with what it starts from and what `arguments` override, in Hydra's grammar.

    Raises:
        RecipeError: Hydra cannot read or find something, or an argument is not of the form key=value.
    """
    overrides = [_override(argument, path.parent) for argument in arguments]
    config = _compose(path, overrides)
    layers = [{o.lstrip("+").partition("=")[0] for o in overrides}, *_own_keys(path)]
    _settle_lengths(config, *layers)
    _fit_replaced_parts(config, *layers)
    return config


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


def _fit_replaced_parts(config: DictConfig, *layers: set[str]) -> None:
    """A part that replaces another keeps of the other's arguments those that its own signature knows. What is said of
    it there and later, on the command line last of all, stays as it is."""
    said: set[str] = set()
    for keys in layers:
        said |= keys
        replaced = {key.removesuffix(f".{TARGET}") for key in keys if key.endswith(f".{TARGET}")}
        for where in sorted(replaced | (keys & set(PARTS))):
            node = OmegaConf.select(config, where)
            if not is_node(node):
                continue
            known = parameters(locate(node[TARGET], where))
            for name in [n for n in node if n != TARGET and n not in known and f"{where}.{n}" not in said]:
                del node[name]


def is_node(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get(TARGET), str)


def flat(node: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a recipe."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from flat(value, f"{where}.{key}" if where else str(key))
    else:
        yield where, list(node) if isinstance(node, tuple) else node
