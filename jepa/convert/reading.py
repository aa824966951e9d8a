"""From other projects' weights to a model of this one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from jepa.assemble import input_size
from jepa.build import TARGET, build, build_model
from jepa.convert.architecture import encoder_arguments, grid_of, predictor_arguments, take_table
from jepa.convert.families import META
from jepa.convert.keys import ConversionError, Report, Weights, to_ours
from jepa.convert.sources import Source, open_hf, open_meta, open_timm
from jepa.loading import Pretrained
from jepa.recipe import load_recipe

Kind = Literal["ijepa", "vjepa", "vjepa2", "hf", "timm"]


@dataclass(frozen=True)
class Told:
    """What the caller says where the source does not.

    Attributes:
        heads, predictor_heads: attention heads.
        size: of the inputs, without channels.
        recipe: shipped recipe, or path to one's own, for everything but encoder and predictor.
        overrides: of that recipe, key=value.
    """

    heads: int | None = None
    predictor_heads: int | None = None
    size: tuple[int, ...] | None = None
    recipe: str | None = None
    overrides: tuple[str, ...] = ()


def read(path: str | Path, kind: Kind, told: Told | None = None) -> tuple[Pretrained, Report]:
    """A model from other projects' weights, every key of theirs and ours accounted for.

    Args:
        path: a file of the published code ("ijepa", "vjepa", "vjepa2"), a folder of Hugging Face's transformers ("hf"),
            or a state dict or folder of timm ("timm"). Nothing in them is run.
        kind: which of these.
        told: what the source does not say.

    Returns:
        the model, and what became of every key. A source with one encoder gives a model that is its own target and has
        no predictor.

    Raises:
        ConversionError: the source is not of that kind, is damaged, or a key is not accounted for.
        RecipeError: of `told.recipe` and its overrides.
    """
    path, told = Path(path).expanduser(), told or Told()
    if kind not in get_args(Kind):
        raise ConversionError(f"kind={kind!r}: one of {', '.join(get_args(Kind))}")
    if not path.exists():
        raise ConversionError(f"{path} does not exist")
    report = Report(f"{path} as {kind}")
    if kind in META:
        source = open_meta(path, kind, report)
    else:
        source = (open_hf if kind == "hf" else open_timm)(path, report)
    return _convert(source, told, report), report


def _convert(source: Source, told: Told, report: Report) -> Pretrained:
    family = source.family
    encoder = encoder_arguments(source.parts["encoder"], family, told.heads or source.heads, source.where)
    encoder = {**family.options, **source.options, **encoder}
    size, encoder = _positions(source, encoder, told, report)
    recipe = _recipe(source, told, size)
    recipe["encoder"] = {**_kept(recipe["encoder"], encoder), **encoder}
    if "predictor" in source.parts:
        heads = told.predictor_heads or source.predictor_heads or family.predictor_heads or encoder["heads"]
        predictor = predictor_arguments(source.parts["predictor"], family, heads, source.where)
        predictor = {**family.predictor_options, **source.options, **predictor}
        _predictor_table(source, predictor, size, encoder, report)
        recipe["predictor"] = {**_kept(recipe["predictor"], predictor), **predictor}
    else:
        recipe["predictor"] = {TARGET: "jepa.predictors.NoPredictor"}
        report.conventions.append("predictor: none in the source")
    if "target_encoder" not in source.parts:
        recipe["target"] = {TARGET: "jepa.targets.StopGradient"}
        report.conventions.append("target encoder: none in the source; the one encoder serves as both")
    model = build_model(recipe, meta=True)
    ours = {key: value.shape for key, value in model.state_dict().items()}
    weights: Weights = {}
    for part, theirs in source.parts.items():
        prefix = f"{part}."
        mine = {key.removeprefix(prefix): shape for key, shape in ours.items() if key.startswith(prefix)}
        rules = family.predictor if part == "predictor" else family.encoder
        weights |= to_ours(
            theirs, mine, rules, report, prefix=prefix, their_prefix=source.prefixes[part], unused=family.unused
        )
    model.load_state_dict(weights, assign=True)
    _say(report, recipe, source)
    normalize = build(recipe["data"]["batch_transform"], "data.batch_transform").normalize
    facts = {"source": f"{family.name}: {Path(source.where).name}", **source.facts}
    return Pretrained(model, recipe, 0, normalize, "not saved", facts)


def _kept(of_recipe: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Of a recipe's part its class and how it is trained, not its shape."""
    kept = (TARGET, "drop_path", "grad_checkpointing", "zero_init_mask_tokens")
    return {key: value for key, value in of_recipe.items() if key in kept and key not in given}


def _positions(
    source: Source, encoder: dict[str, Any], told: Told, report: Report
) -> tuple[list[int] | None, dict[str, Any]]:
    """The size of inputs, and the encoder's arguments with the kind of positions that its table is."""
    size = list(told.size or source.size or ()) or None
    if encoder["position"] != "sincos":
        return size, encoder
    key, patch = source.family.encoder["position.table"].theirs[0], encoder["patch_size"]
    if size is None and source.family.axes > 2:  # a table does not say how many of its positions are in time
        size = list(input_size(_recipe(source, told, None)["data"]["size"]))
    for part in ("encoder", "target_encoder"):
        weights = source.parts.get(part)
        if weights is None:
            continue
        where = f"{source.where}: {source.prefixes[part]}{key}"
        if key not in weights:
            raise ConversionError(f"{where} is missing")
        grid = grid_of(weights[key].shape[1] if weights[key].ndim == 3 else 0, patch, size, where)
        size = [g * p for g, p in zip(grid, patch, strict=True)] if size is None else size
        if take_table(weights, key, grid, encoder["axis_order"], report, source.prefixes[part]):
            continue
        if not source.family.learned:
            raise ConversionError(
                f"{where} is not the fixed sin-cos table of a {grid} grid that {source.family.name} has: is this "
                f"another kind of checkpoint, or another size (size=[...])?"
            )
        encoder = {**encoder, "position": "learned", "grid_size": list(grid)}
    return size, encoder


def _predictor_table(
    source: Source, predictor: Mapping[str, Any], size: Sequence[int] | None, encoder: Mapping[str, Any], report: Report
) -> None:
    key, weights = "predictor_pos_embed", source.parts["predictor"]
    if predictor.get("position", "sincos") != "sincos":
        return
    where = f"{source.where}: {source.prefixes['predictor']}{key}"
    if key not in weights:
        raise ConversionError(f"{where} is missing")
    grid = grid_of(weights[key].shape[1] if weights[key].ndim == 3 else 0, encoder["patch_size"], size, where)
    if not take_table(weights, key, grid, predictor["axis_order"], report, source.prefixes["predictor"]):
        raise ConversionError(f"{where} is not the fixed sin-cos table of a {grid} grid")


def _recipe(source: Source, told: Told, size: Sequence[int] | None) -> dict[str, Any]:
    """The resolved recipe of everything but encoder and predictor."""
    given = [f"data.size={list(size)}"] if size is not None else []
    name = told.recipe or source.family.recipe
    recipe = load_recipe([f"recipe={name}", "dry_run=true", *given, *told.overrides])
    return {**recipe, "dry_run": False}


def _say(report: Report, recipe: Mapping[str, Any], source: Source) -> None:
    """The conventions that decide what the weights compute."""
    encoder, where = recipe["encoder"], "the file says" if source.options else "fixed in their code"
    shape = ", ".join(f"{name} {encoder[name]}" for name in ("dim", "depth", "heads", "mlp_ratio", "patch_size"))
    report.conventions[:0] = [
        f"encoder: {shape}",
        f"LayerNorm epsilon: {encoder['norm_eps']} ({where}); activation: {encoder['activation']}",
        f"positions: {_positions_said(encoder)}",
        f"everything else from recipe {recipe['recipe']}",
    ]


def _positions_said(encoder: Mapping[str, Any]) -> str:
    if encoder["position"] == "rope":
        return f"rotary, {encoder['rope_style']} frequencies, counted on the grid of the actual input"
    if encoder["position"] == "learned":
        return f"learned, on a grid of {encoder['grid_size']}: they are not the fixed sin-cos table"
    order = "columns before rows" if encoder["axis_order"] == "last_first" else "time, rows, columns"
    return f"fixed sin-cos, {order}, evaluated for any grid"
