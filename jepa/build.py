"""From a recipe's plain dictionaries to objects, bound to real signatures before anything runs.

A node with the key `_target_` names a class or function by its dotted path; its other keys are the arguments.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from typing import Any

import torch
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

TARGET = "_target_"
ROOMS = ("data", "encoders", "losses", "maskers", "model", "predictors", "schedules", "targets")  # where parts live
Trust = tuple[str, ...]


class RecipeError(ValueError):
    """A recipe cannot be used as it is written. The message names the key, the value and what would work."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """ ", did you mean X?" for the closest valid name, or the list of valid names."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(valid) or 'nothing'}"


def refuse_unknown(given: Iterable[str], valid: Iterable[str], where: str) -> None:
    """Raise RecipeError for the first given key that is not valid, with the nearest one that is."""
    valid = list(valid)
    for name in given:
        if name not in valid:
            path = f"{where}.{name}" if where else name
            raise RecipeError(f"unknown key {path!r}: {nearest(name, valid)}")


def locate(path: str, where: str, trust: Trust | None = None) -> Callable[..., Any]:
    """The class or function at a dotted path.

    Args:
        path: e.g. "jepa.encoders.ViT".
        where: the recipe key, for the error.
        trust: packages that may be imported besides the parts of `jepa`; None trusts all, as for one's own recipe.

    Raises:
        RecipeError: not trusted, not found, or not callable.
    """
    package = path.split(".")[0]
    if trust is not None and package not in ("jepa", *trust):
        raise RecipeError(
            f"{where}.{TARGET}={path!r} is code outside jepa and was not run; to trust it: trust=({package!r},)"
        )
    parts = path.split(".")
    module, used, cause = None, 0, None
    for used in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:used])
        try:
            module = importlib.import_module(name)
            break
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise RecipeError(f"{where}.{TARGET}={path!r}: importing {name} failed: {error}") from error
            cause = error
    if module is None:
        raise RecipeError(f"{where}.{TARGET}={path!r}: no module {package!r} on the Python path") from cause
    try:
        found = reduce(getattr, parts[used:], module)
    except AttributeError as error:
        valid = getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")])
        raise RecipeError(f"{where}.{TARGET}={path!r} does not exist: {nearest(parts[-1], valid)}") from error
    if not callable(found):
        raise RecipeError(f"{where}.{TARGET}={path!r} is a {type(found).__name__}, not a class or function")
    if trust is not None and not _is_part(found, trust):
        raise RecipeError(f"{where}.{TARGET}={path!r} is not a part of a model and was not run")
    return found


def _is_part(found: Callable[..., Any], trust: Trust) -> bool:
    """Where it is defined decides, not the path: a module of jepa imports much that must not be run for a stranger."""
    package, _, inside = (getattr(found, "__module__", None) or "").partition(".")
    return package in trust or (package == "jepa" and inside.split(".")[0] in ROOMS)


def parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The arguments that have a name, of those that a class or function takes.

    Raises:
        RecipeError: it does not say which.
    """
    try:
        signature = inspect.signature(target).parameters
    except ValueError as error:
        raise RecipeError(f"{target!r} cannot be used in a recipe: {error}") from error
    anything = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: parameter for name, parameter in signature.items() if parameter.kind not in anything}


def defaults(target: Callable[..., Any]) -> dict[str, Any]:
    """The values of arguments that a recipe may leave out.

    Raises:
        RecipeError: as in `parameters`.
    """
    return {name: p.default for name, p in parameters(target).items() if p.default is not p.empty}


def argument_types(target: Callable[..., Any]) -> Mapping[str, Any]:
    """Types of the arguments; none where they cannot be resolved, as with imports made for a type checker only."""
    try:
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError):
        return {}


def convert(value: Any, annotation: Any, where: str) -> Any:
    """The value as the annotated type (a YAML list as a tuple, say).

    Raises:
        RecipeError: it is of another type.
    """
    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:  # a type that brings a pydantic configuration of its own
        adapter = TypeAdapter(annotation)
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        for key in first["loc"]:  # to the value inside a mapping of settings that is wrong
            if not isinstance(value, Mapping) or key not in value:
                break
            where, value = f"{where}.{key}", value[key]
        raise RecipeError(f"{where}={value!r}: {first['msg']}") from error


def bind(target: Callable[..., Any], arguments: Mapping[str, Any], where: str, given: Iterable[str] = ()) -> dict:
    """Arguments converted to what the signature of `target` asks for.

    Args:
        arguments: from the recipe.
        where: the recipe key, for errors.
        given: names of arguments that the framework itself fills in.

    Raises:
        RecipeError: an unknown, missing or mistyped argument.
    """
    signature = parameters(target)
    given = set(given)
    refuse_unknown(arguments, set(signature) - given, where)
    hints = argument_types(target)
    missing = [
        name
        for name, parameter in signature.items()
        if parameter.default is parameter.empty and name not in arguments and name not in given
    ]
    if missing:
        raise RecipeError(f"{where}.{missing[0]} is missing: {target.__qualname__} needs it")
    return {
        name: convert(value, hints[name], f"{where}.{name}") if name in hints else value
        for name, value in arguments.items()
    }


def build(node: Mapping[str, Any], where: str, *, trust: Trust | None = None, **given: Any) -> Any:
    """The object that a node describes.

    Args:
        node: a mapping with `_target_`; nested nodes are built first, also those in a mapping without one.
        where: the recipe key, for errors.
        trust: see `locate`.
        given: arguments that the framework fills in.

    Raises:
        RecipeError: the node does not fit its target, or the target refuses the values.
    """
    target = locate(_target_of(node, where), where, trust)
    arguments = {name: _built(value, f"{where}.{name}", trust) for name, value in node.items() if name != TARGET}
    bound = bind(target, arguments, where, given)
    try:
        return target(**bound, **given)
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from error


def _built(value: Any, where: str, trust: Trust | None) -> Any:
    """An argument, with the nodes in it built."""
    if not isinstance(value, Mapping):
        return value
    if TARGET in value:
        return build(value, where, trust=trust)
    return {name: _built(inner, f"{where}.{name}", trust) for name, inner in value.items()}


def _target_of(node: Mapping[str, Any], where: str) -> str:
    if not isinstance(node, Mapping) or not isinstance(node.get(TARGET), str):
        raise RecipeError(f"{where} needs {TARGET}: the dotted path of a class, as in {where}.{TARGET}=mine.MyClass")
    return node[TARGET]


def build_model(recipe: Mapping[str, Any], *, trust: Trust | None = None, meta: bool = False) -> Any:
    """The JEPA of a resolved recipe: encoder, predictor, target updater, losses handed to `model`.

    Weights come from torch's global RNG; with `meta` they have shapes only.
    """
    with torch.device("meta" if meta else "cpu"):
        encoder = build(recipe["encoder"], "encoder", trust=trust)
        return build(
            recipe["model"],
            "model",
            trust=trust,
            encoder=encoder,
            predictor=build_predictor(recipe["predictor"], encoder, trust),
            target=build(recipe["target"], "target", trust=trust),
            criterion=build(recipe["criterion"], "criterion", trust=trust),
            regularizers={
                name: build(node, f"regularizers.{name}", trust=trust) for name, node in recipe["regularizers"].items()
            },
        )


def build_predictor(node: Mapping[str, Any], encoder: Any, trust: Trust | None = None) -> Any:
    """The predictor, told the encoder's width and, if it takes them, the modalities that the encoder joins.

    Raises:
        RecipeError: as `build`, or it is given other modalities.
    """
    takes = parameters(locate(_target_of(node, "predictor"), "predictor", trust))
    joined, own = list(encoder.modalities), node.get("modalities")
    if joined and own and sorted(own) != sorted(joined):
        raise RecipeError(
            f"predictor.modalities={own}, but the encoder joins {', '.join(joined)}: leave it out, it is filled in"
        )
    given: dict[str, Any] = {"embed_dim": encoder.embed_dim}
    if joined and not own and "modalities" in takes:
        given["modalities"], node = joined, {key: value for key, value in node.items() if key != "modalities"}
    return build(node, "predictor", trust=trust, **given)
