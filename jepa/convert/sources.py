"""What each kind of checkpoint holds: its weights by part, and what its file says about the architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Number
from pathlib import Path
from typing import Any

from torch import Tensor

from jepa.convert.families import HF_IJEPA, HF_VJEPA2, META, TIMM, Family
from jepa.convert.files import read_folder, read_json, read_pickle, read_state
from jepa.convert.keys import ConversionError, Report, Weights, strip

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
}
PARTS = ("encoder", "target_encoder", "predictor")
NOT_WEIGHTS = {
    "opt": "state of the optimiser that it was trained with",
    "scaler": "state of the gradient scaler that it was trained with",
}


@dataclass
class Source:
    """A checkpoint, opened.

    Attributes:
        family: its kind.
        where: for messages.
        parts: weights of "encoder" and, where there are, "target_encoder" and "predictor".
        prefixes: what was stripped from the keys of each part.
        heads, predictor_heads: where the file says.
        options: arguments of encoder and predictor alike that the file says: epsilon, activation.
        size: of the inputs, where the file says.
        facts: what else is worth keeping.
    """

    family: Family
    where: str
    parts: dict[str, Weights]
    prefixes: Mapping[str, str]
    heads: int | None = None
    predictor_heads: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    size: Sequence[int] | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def open_meta(path: Path, kind: str, report: Report) -> Source:
    """A checkpoint in the layout of the published code: encoder, target encoder, predictor, and how far it was trained.

    Raises:
        ConversionError: it holds something else.
    """
    family, found = META[kind], read_pickle(path)
    lacking = [part for part in PARTS if part not in found]
    if lacking:
        raise ConversionError(
            f"{path} lacks {lacking[0]!r}; it holds {', '.join(map(repr, found))}: give another kind="
        )
    parts, prefixes = {}, {}
    for key, value in found.items():
        if key in PARTS:
            check_state(value, f"{path}: {key}")
            parts[key] = strip(value, family.prefix, f"{path}: {key}")
            prefixes[key] = f"{key}.{family.prefix}"
        else:
            set_aside(key, value, path, report)
    return Source(family, str(path), parts, prefixes, facts={"epochs": found.get("epoch")})


def set_aside(key: str, value: Any, path: Path, report: Report) -> None:
    """What a checkpoint holds besides weights.

    Raises:
        ConversionError: it may be weights.
    """
    if key not in NOT_WEIGHTS and value is not None and not isinstance(value, (Number, str)):
        raise ConversionError(f"{path}: {key!r} holds a {type(value).__name__} that is not accounted for")
    report.add("unused", key, "", NOT_WEIGHTS.get(key, "how it was trained"))


def check_state(value: Any, where: str) -> None:
    """Raises:
    ConversionError: it is no state dict.
    """
    if not isinstance(value, Mapping) or not value or not all(isinstance(tensor, Tensor) for tensor in value.values()):
        raise ConversionError(f"{where} is not a state dict of tensors")


def open_timm(path: Path, report: Report) -> Source:
    """An encoder in timm's names: a state dict, or a folder as timm's hub has it.

    Raises:
        ConversionError: it holds something else, or a model that is no JEPA encoder.
    """
    weights = read_folder(path) if path.is_dir() else read_state(path)
    for key in ("cls_token", "reg_token"):
        if key in weights:
            raise ConversionError(f"{path} has a {key}: a JEPA's encoder has patches only")
    config = read_json(path / "config.json") if path.is_dir() else {}
    size = (config.get("pretrained_cfg") or {}).get("input_size")
    return Source(TIMM, str(path), {"encoder": weights}, {"encoder": ""}, size=size and size[1:])


def open_hf(path: Path, report: Report) -> Source:
    """A folder of transformers' I-JEPA or V-JEPA 2, with or without a classifier.

    Raises:
        ConversionError: another model, or settings that nothing here has.
    """
    config = read_json(path / "config.json")
    family = {"ijepa": HF_IJEPA, "vjepa2": HF_VJEPA2}.get(str(config.get("model_type")))
    if family is None:
        raise ConversionError(
            f"{path / 'config.json'}: model_type is {config.get('model_type')!r}, not ijepa or vjepa2"
        )
    if not hf_value(config, "qkv_bias", bool, path):
        raise ConversionError(f"{path / 'config.json'}: qkv_bias is false, and this project's attention has one")
    weights = _without_classifier(read_folder(path), config["model_type"], report)
    source = Source(
        family,
        str(path),
        {"encoder": weights},
        {"encoder": "", "predictor": ""},
        heads=hf_value(config, "num_attention_heads", int, path),
        options={
            "norm_eps": hf_value(config, "layer_norm_eps", float, path),
            "activation": hf_activation(config, path),
        },
    )
    if family is HF_IJEPA:
        size = hf_value(config, "image_size", (int, list), path)
        source.size = [size, size] if isinstance(size, int) else size
    else:
        side = hf_value(config, "crop_size", int, path)
        source.size = [hf_value(config, "frames_per_clip", int, path), side, side]
        source.predictor_heads = hf_value(config, "pred_num_attention_heads", int, path)
        source.parts = {
            "encoder": {key: value for key, value in weights.items() if not key.startswith("predictor.")},
            "predictor": {key: value for key, value in weights.items() if key.startswith("predictor.")},
        }
    return source


def hf_activation(config: Mapping[str, Any], path: Path) -> str:
    """Our name of a configuration's activation.

    Raises:
        ConversionError: it has none here.
    """
    activation = hf_value(config, "hidden_act", str, path)
    if activation not in ACTIVATIONS:
        raise ConversionError(f"{path / 'config.json'}: hidden_act={activation!r} is none of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[activation]


def hf_value(config: Mapping[str, Any], key: str, kind: type | tuple[type, ...], path: Path) -> Any:
    """A value of a configuration.

    Raises:
        ConversionError: it is missing, or of another type.
    """
    value = config.get(key)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConversionError(f"{path / 'config.json'}: {key}={value!r} is not what transformers writes there")
    return value


def _without_classifier(weights: Weights, model_type: str, report: Report) -> Weights:
    """The weights of the model itself, where it was saved with a classifier on top."""
    prefix = f"{model_type}."
    if not any(key.startswith(prefix) for key in weights):
        return weights
    for key in weights:
        if key.startswith(("classifier.", "pooler.")):
            report.add(
                "unused",
                key,
                "",
                "of a classifier, not of the encoder" + (": kind=hf_probe reads it" if model_type == "vjepa2" else ""),
            )
    own = {key: value for key, value in weights.items() if not key.startswith(("classifier.", "pooler."))}
    return strip(own, prefix, model_type)
