"""Reading attentive probes that others trained: those released beside V-JEPA and V-JEPA 2, those of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from jepa.convert.architecture import mlp_ratio
from jepa.convert.families import PROBES, ProbeLayout
from jepa.convert.files import read_folder, read_json, read_pickle
from jepa.convert.keys import ConversionError, Report, Weights, shapes, strip, to_ours
from jepa.convert.sources import check_state, hf_activation, hf_value, set_aside
from jepa.probes.attentive import AttentiveClassifier
from jepa.probes.trained import HeadSettings, TrainedProbe

ProbeKind = Literal["vjepa_probe", "vjepa2_probe", "hf_probe"]


def read_probe(path: str | Path, kind: ProbeKind, heads: int | None = None) -> tuple[TrainedProbe, Report]:
    """A trained probe from other projects' weights, every key of theirs accounted for.

    Args:
        path: a file of the published code ("vjepa_probe", "vjepa2_probe"), or a folder of transformers'
            VJEPA2ForVideoClassification ("hf_probe"). Nothing in them is run.
        kind: which of these.
        heads: attention heads, where neither the source nor the width says.

    Raises:
        ConversionError: the source is not of that kind, is damaged, or a key is not accounted for.
    """
    path = Path(path).expanduser()
    if kind not in get_args(ProbeKind):
        raise ConversionError(f"kind={kind!r}: one of {', '.join(get_args(ProbeKind))}")
    if not path.exists():
        raise ConversionError(f"{path} does not exist")
    report, layout = Report(f"{path} as {kind}"), PROBES[kind]
    said: dict[str, Any] = {}
    names, prefix = None, ""
    if kind == "hf_probe":
        theirs, said, names = _open_hf(path)
    else:
        theirs, prefix = _open_published(path, layout, report)
    settings = _settings(theirs, layout, str(path), {**said, **({"heads": heads} if heads else {})})
    if names is not None and len(names) != settings.classes:
        raise ConversionError(f"{path / 'config.json'}: id2label names {len(names)} of {settings.classes} classes")
    try:
        with torch.device("meta"):
            head = AttentiveClassifier(**settings.model_dump())
    except ValueError as error:
        raise ConversionError(f"{path}: {error}") from error
    ours = {key: value.shape for key, value in head.state_dict().items()}
    weights = to_ours(theirs, ours, layout.keys, report, their_prefix=prefix, unused=layout.unused)
    head.load_state_dict(weights, assign=True)
    report.conventions += [
        f"attentive probe: {settings.classes} classes, width {settings.dim}, heads {settings.heads}, "
        f"self-attention blocks before the pooling {settings.depth - 1}",
        f"LayerNorm epsilon: {settings.norm_eps} ({'the file says' if said else 'fixed in their code'}); "
        f"activation: {settings.activation}",
        f"classes: {'named by the source' if names else 'numbered, in the order of the source; it has no names'}",
    ]
    return TrainedProbe(head, settings, names, f"{layout.name}: {path.name}"), report


def _open_published(path: Path, layout: ProbeLayout, report: Report) -> tuple[Weights, str]:
    """Weights of the probe, and what was stripped from their keys."""
    found = read_pickle(path)
    if layout.part not in found:
        held = ", ".join(map(repr, found))
        raise ConversionError(f"{path} lacks {layout.part!r}; it holds {held}: give another kind=")
    state, where = found[layout.part], layout.part
    if layout.several:
        if not isinstance(state, list) or not state:
            raise ConversionError(f"{path}: {where} is not a list of probes")
        for number in range(1, len(state)):
            report.add("unused", f"{where}.{number}", "", "trained side by side with the first, which is read")
        state, where = state[0], f"{where}.0"
    check_state(state, f"{path}: {where}")
    for key, value in found.items():
        if key != layout.part:
            set_aside(key, value, path, report)
    return strip(state, "module.", f"{path}: {where}"), f"{where}.module."


def _open_hf(path: Path) -> tuple[Weights, dict[str, Any], list[str] | None]:
    """Weights of a folder, what its configuration says of the probe, and the names of the classes."""
    config = read_json(path / "config.json")
    if config.get("model_type") != "vjepa2":
        raise ConversionError(f"{path / 'config.json'}: model_type is {config.get('model_type')!r}, not vjepa2")
    said = {
        "heads": hf_value(config, "num_attention_heads", int, path),
        "norm_eps": hf_value(config, "layer_norm_eps", float, path),
        "activation": hf_activation(config, path),
    }
    return read_folder(path), said, _names(config, path)


def _names(config: Mapping[str, Any], path: Path) -> list[str] | None:
    """Names of the classes, unless they are those that transformers makes up."""
    found = config.get("id2label")
    if found is None:
        return None
    try:
        names = [str(found[str(number)]) for number in range(len(found))]
    except (KeyError, TypeError) as error:
        raise ConversionError(f"{path / 'config.json'}: id2label is not numbered from 0") from error
    return None if names == [f"LABEL_{number}" for number in range(len(names))] else names


def _settings(theirs: Weights, layout: ProbeLayout, where: str, said: Mapping[str, Any]) -> HeadSettings:
    """What the weights, and their code or configuration, say that the probe is."""
    found = shapes(theirs, layout.keys)
    query, linear = found.get("pooler.query_tokens"), found.get("linear.weight")
    hidden = found.get("pooler.cross_attention_block.mlp.fc1.weight")
    if query is None or linear is None or hidden is None:
        raise ConversionError(f"{where} has no attentive probe where {layout.name} has one: give another kind=")
    if len(query) != 3 or query[:2] != (1, 1):
        raise ConversionError(f"{where}: the query has shape {tuple(query)}: a probe here has one, (1, 1, width)")
    width = query[2]
    heads = said.get("heads") or layout.heads.get(width) or layout.any_heads
    if heads is None:
        raise ConversionError(f"{where}: a width of {width} does not say how many heads there are: give heads=N")
    return HeadSettings(
        classes=linear[0],
        dim=width,
        heads=heads,
        depth=1 + sum(key.startswith("pooler.blocks.") and key.endswith(".norm1.weight") for key in found),
        mlp_ratio=mlp_ratio(hidden[0], width),
        norm_eps=said.get("norm_eps", 1e-5),
        activation=said.get("activation", "gelu"),
    )
