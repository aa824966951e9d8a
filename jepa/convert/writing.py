"""From a model of this project to other projects' formats."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save_file

from jepa.assemble import input_size
from jepa.build import TARGET, locate, parameters
from jepa.convert.families import HF_IJEPA, HF_VJEPA2, META, TIMM, Family
from jepa.convert.files import SAFETENSORS
from jepa.convert.keys import ConversionError, Report, Weights, to_theirs
from jepa.convert.sources import ACTIVATIONS
from jepa.encoders import ViT
from jepa.loading import Pretrained, Which
from jepa.nn.position import sincos_table
from jepa.predictors import NoPredictor, ViTPredictor

Format = Literal["jepa", "ijepa", "vjepa", "vjepa2", "hf", "timm"]
POSITIONS = ("position", "axis_order", "uniform_power")


def write(model: Pretrained, path: str | Path, format: Format = "jepa", which: Which | None = None) -> Report:
    """Write a model in another format, every one of its keys accounted for.

    Args:
        model: what `jepa.load` or `read` gave.
        path: a folder ("jepa", "hf") or a file ("timm": .safetensors; the published layouts: .pth.tar).
        format: "jepa"; "ijepa", "vjepa" and "vjepa2" are the published checkpoints' layouts; "hf" is what
            transformers' IJepaModel or VJEPA2Model load; "timm" a state dict.
        which: the encoder that goes into a format that holds one ("hf", "timm"): "target" or "context".

    Raises:
        ConversionError: the format cannot hold this model, or `which` is missing or would not be used.
    """
    path = Path(path).expanduser()
    if format not in get_args(Format):
        raise ConversionError(f"as={format!r}: one of {', '.join(get_args(Format))}")
    if (which is not None) != (format in ("hf", "timm")):
        raise ConversionError(
            f"as={format} holds one encoder: say which=target (what papers evaluate) or which=context"
            if which is None
            else f"as={format} holds all parts: which={which} would not be used"
        )
    report = Report(f"{path} as {format}")
    if format == "jepa":
        model.save_pretrained(path)
        for key in model.model.state_dict():
            report.add("loaded", key, key)
        return report
    if format == "hf":
        _write_hf(model, path, which or "target", report)
    elif format == "timm":
        _write_timm(model, path, which or "target", report)
    else:
        _write_meta(model, path, META[format], report)
    return report


def arguments(node: Mapping[str, Any]) -> dict[str, Any]:
    """What a part of a recipe is built with, defaults included."""
    known = parameters(locate(str(node[TARGET]), ""))
    defaults = {name: p.default for name, p in known.items() if p.default is not p.empty}
    return {**defaults, **{key: value for key, value in node.items() if key != TARGET}}


def _write_meta(model: Pretrained, path: Path, family: Family, report: Report) -> None:
    encoder, size = _fitting_encoder(model, family)
    _fitting_predictor(model, family)
    found: dict[str, Weights] = {}
    for part in ("encoder", "target_encoder", "predictor"):
        module = model.model.teacher if part == "target_encoder" else getattr(model.model, part)
        rules = family.predictor if part == "predictor" else family.encoder
        found[part] = to_theirs(
            module.state_dict(),
            rules,
            report,
            kernel_shape=_kernel(encoder),
            prefix=f"{part}.",
            their_prefix=family.prefix,
        )
        if encoder["position"] == "sincos":
            name = "predictor_pos_embed" if part == "predictor" else "pos_embed"
            width = arguments(model.recipe[part])["dim"] if part == "predictor" else encoder["dim"]
            found[part][f"{family.prefix}{name}"] = _table(width, encoder, size)
            report.add("converted", f"{family.prefix}{name}", "", "the fixed sin-cos table")
    rest = {"opt": None, "scaler": None, "epoch": int(model.facts.get("epochs") or 0), "loss": 0.0}
    rest |= {"batch_size": model.recipe["train"]["batch_size"], "world_size": 1, "lr": 0.0}
    torch.save({**found, **rest}, path)


def _write_timm(model: Pretrained, path: Path, which: Which, report: Report) -> None:
    if path.suffix != ".safetensors":
        raise ConversionError(f"to={path}: a state dict for timm goes into a file that ends in .safetensors")
    encoder, size = _fitting_encoder(model, TIMM)
    save_file(_encoder_weights(model, which, TIMM, encoder, size, report), path)
    ratio = f"mlp_ratio={encoder['mlp_ratio']}, " if encoder["mlp_ratio"] != 4 else ""
    report.conventions.append(
        f"load it into timm.models.VisionTransformer(img_size={tuple(size)}, patch_size={_square(encoder)}, "
        f"in_chans={encoder['in_chans']}, embed_dim={encoder['dim']}, depth={encoder['depth']}, "
        f"num_heads={encoder['heads']}, {ratio}class_token=False, global_pool='avg', fc_norm=False, num_classes=0)"
    )


def _write_hf(model: Pretrained, path: Path, which: Which, report: Report) -> None:
    rotary = arguments(model.recipe["encoder"]).get("position") == "rope"
    family = HF_VJEPA2 if rotary else HF_IJEPA
    encoder, size = _fitting_encoder(model, family)
    weights = _encoder_weights(model, which, family, encoder, size, report)
    config = {
        "hidden_size": encoder["dim"],
        "num_hidden_layers": encoder["depth"],
        "num_attention_heads": encoder["heads"],
        "hidden_act": next(name for name, ours in ACTIVATIONS.items() if ours == encoder["activation"]),
        "layer_norm_eps": encoder["norm_eps"],
        "qkv_bias": True,
        "patch_size": encoder["patch_size"][-1],
        "dtype": "float32",
    }
    if rotary:
        same = {name: encoder[name] for name in ("norm_eps", "activation")}
        config |= _vjepa2_config(encoder, _fitting_predictor(model, family, same), size)
        weights |= to_theirs(
            model.model.predictor.state_dict(), family.predictor, report, kernel_shape=(), prefix="predictor."
        )
    else:
        config |= {
            "architectures": ["IJepaModel"],
            "model_type": "ijepa",
            "intermediate_size": int(encoder["dim"] * encoder["mlp_ratio"]),
            "image_size": list(size) if len(set(size)) > 1 else size[0],
            "num_channels": encoder["in_chans"],
            "patch_size": _square(encoder),
        }
        for key in model.model.predictor.state_dict():
            report.add("unused", "", f"predictor.{key}", "transformers' I-JEPA has no predictor")
    path.mkdir(parents=True, exist_ok=True)
    save_file(weights, path / SAFETENSORS, metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _vjepa2_config(encoder: Mapping[str, Any], predictor: Mapping[str, Any], size: Sequence[int]) -> dict[str, Any]:
    frames, height, width = size
    tubelet, *patch = encoder["patch_size"]
    if height != width or len(set(patch)) > 1:
        raise ConversionError(f"transformers' V-JEPA 2 takes square inputs and patches, not {size} and {patch}")
    return {
        "architectures": ["VJEPA2Model"],
        "model_type": "vjepa2",
        "crop_size": height,
        "frames_per_clip": frames,
        "tubelet_size": tubelet,
        "in_chans": encoder["in_chans"],
        "mlp_ratio": encoder["mlp_ratio"],
        "pred_hidden_size": predictor["dim"],
        "pred_num_attention_heads": predictor["heads"],
        "pred_num_hidden_layers": predictor["depth"],
        "pred_num_mask_tokens": predictor["mask_tokens"],
        "pred_mlp_ratio": predictor["mlp_ratio"],
    }


def _encoder_weights(
    model: Pretrained, which: Which, family: Family, encoder: Mapping[str, Any], size: Sequence[int], report: Report
) -> Weights:
    part = "target_encoder" if which == "target" and model.model.target_encoder is not None else "encoder"
    report.conventions.append(
        f"the {which} encoder" + (", which is the context encoder" if part[0] + which[0] == "et" else "")
    )
    weights = to_theirs(
        model.encoder(which).state_dict(), family.encoder, report, kernel_shape=_kernel(encoder), prefix=f"{part}."
    )
    for other in ("encoder", "target_encoder"):
        module = getattr(model.model, other)
        if other != part and module is not None:
            for key in module.state_dict():
                report.add("unused", "", f"{other}.{key}", f"which={which} was asked for")
    rule = family.encoder.get("position.table")
    if rule is not None and rule.theirs[0] not in weights:
        weights[rule.theirs[0]] = _table(encoder["dim"], encoder, size)
        report.add("converted", rule.theirs[0], "", "the fixed sin-cos table")
    return weights


def _fitting_encoder(model: Pretrained, family: Family) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Arguments of the encoder and size of its inputs, where the format can hold them.

    Raises:
        ConversionError: it cannot.
    """
    if type(model.model.encoder) is not ViT:
        raise ConversionError(f"{family.name} holds a ViT, this model has a {type(model.model.encoder).__name__}")
    encoder, size = arguments(model.recipe["encoder"]), input_size(model.recipe["data"]["size"])
    patch = encoder["patch_size"]
    encoder["patch_size"] = [patch, patch] if isinstance(patch, int) else list(patch)
    if len(encoder["patch_size"]) != family.axes or len(size) != family.axes:
        raise ConversionError(
            f"{family.name} has inputs of {family.axes} axes, this model {size} in {encoder['patch_size']}"
        )
    _must_be(family, encoder, family.options, "encoder")
    if encoder["position"] == "learned":
        grid, theirs = tuple(encoder["grid_size"]), model.model.encoder.grid(size)
        if grid != theirs:
            raise ConversionError(f"positions are learned on a grid of {grid}, inputs of {size} have one of {theirs}")
    return encoder, size


def _fitting_predictor(model: Pretrained, family: Family, same: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Arguments of the predictor, where the format can hold it; `same`: what must be as in the encoder.

    Raises:
        ConversionError: it cannot.
    """
    predictor = model.model.predictor
    if isinstance(predictor, NoPredictor):
        raise ConversionError(f"{family.name} has a predictor, and this model came without one")
    if type(predictor) is not ViTPredictor:
        raise ConversionError(f"{family.name} holds a ViTPredictor, this model has a {type(predictor).__name__}")
    found = arguments(model.recipe["predictor"])
    _must_be(family, found, {**family.predictor_options, **(same or {})}, "predictor")
    return found


def _must_be(family: Family, given: Mapping[str, Any], fixed: Mapping[str, Any], part: str) -> None:
    for name, value in fixed.items():
        free = name == "depth_rescale" or (family.learned and name in POSITIONS and given[name] != "rope")
        if not free and given[name] != value:
            raise ConversionError(f"{family.name} has {part}.{name} {value} fixed, this model {given[name]}")


def _table(width: int, encoder: Mapping[str, Any], size: Sequence[int]) -> torch.Tensor:
    grid = [s // p for s, p in zip(size, encoder["patch_size"], strict=True)]
    return sincos_table(width, grid, encoder["axis_order"], encoder["uniform_power"])[None].contiguous()


def _kernel(encoder: Mapping[str, Any]) -> tuple[int, ...]:
    return (encoder["in_chans"], *encoder["patch_size"])


def _square(encoder: Mapping[str, Any]) -> int:
    """The side of a patch.

    Raises:
        ConversionError: it is not a square.
    """
    if len(set(encoder["patch_size"])) > 1:
        raise ConversionError(f"patches of {encoder['patch_size']} are not square")
    return int(encoder["patch_size"][0])
