"""Weights to and from other projects: python -m jepa.convert from=PATH to=PATH [key=value ...]

Keys:
    from=PATH             a run directory or jepa folder; a file or folder of another project
    kind=KIND             what it is: ijepa, vjepa, vjepa2 (files of the published code), hf (a folder of transformers'
                          IJepaModel or VJEPA2Model), timm (a state dict or folder); folders say it themselves.
                          vjepa_probe, vjepa2_probe, hf_probe: a trained attentive probe, of the published code or of
                          transformers' VJEPA2ForVideoClassification
    to=PATH               a folder, or a file for as=ijepa, vjepa, vjepa2, timm, export and onnx
    as=jepa               what it becomes: jepa, ijepa, vjepa, vjepa2, hf, timm; or the frozen encoder as a program:
                          export (torch.export, .pt2) or onnx
    which=WHICH           target or context: the encoder that goes where there is room for one
    recipe=NAME           of everything that the source does not say; data=NAME, data.key=value and masker=NAME go to it
    heads=N               attention heads, where neither the source nor the width says; predictor_heads=N
    size=[H,W]            of the inputs, where the source does not say ([T,H,W] for clips)
    licence=NAME          of the weights, for the model card
    keys=true             list what became of every key
    trust=[package]       packages of your own parts that a run's recipe names

Every key of both sides is loaded, renamed, converted, or named as unused with the reason; anything else is an error. No
file is unpickled but as plain tensors, and nothing in it is run.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from jepa.build import RecipeError
from jepa.checkpoint import CheckpointError
from jepa.command_line import parse
from jepa.convert.export import export
from jepa.convert.files import read_json
from jepa.convert.keys import ConversionError, Report
from jepa.convert.probes import ProbeKind, read_probe
from jepa.convert.reading import Kind, Told, read
from jepa.convert.writing import Format, write
from jepa.loading import Pretrained, Which, load

PASSED_ON = ("data=", "data.", "masker=", "masker.")


class Settings(BaseModel):
    """What the command line may set, besides the recipe's data and masker."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    source: str = Field(alias="from")
    to: str
    kind: Literal[Kind, ProbeKind, "jepa"] | None = None
    format: Literal[Format, "export", "onnx"] = Field("jepa", alias="as")
    which: Which | None = None
    recipe: str | None = None
    heads: int | None = Field(None, ge=1)
    predictor_heads: int | None = Field(None, ge=1)
    size: tuple[int, ...] | None = None
    licence: str | None = None
    keys: bool = False
    trust: tuple[str, ...] = ()


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or any(argument in ("-h", "--help") for argument in arguments):
        print(__doc__)
        return 0
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        overrides = tuple(a for a in arguments if a.startswith(PASSED_ON))
        settings = parse(Settings, [a for a in arguments if a not in overrides], "jepa.convert")
        reports = convert(settings, overrides)
    except (ConversionError, RecipeError, CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for report in reports:
        print(report)
        if settings.keys:
            print(report.table())
    print(settings.to)
    return 0


def convert(settings: Settings, overrides: tuple[str, ...] = ()) -> list[Report]:
    """Read, write, and say what became of every key.

    Raises:
        ConversionError, RecipeError, CheckpointError: see `read`, `load` and `write`.
    """
    path = Path(settings.source).expanduser()
    kind = settings.kind or kind_of(path)
    if kind == "vjepa_probe" or kind == "vjepa2_probe" or kind == "hf_probe":
        return [convert_probe(kind, settings, overrides)]
    reports = []
    told = Told(settings.heads, settings.predictor_heads, settings.size, settings.recipe, overrides)
    model: Pretrained
    if kind == "jepa":
        if told != Told():
            raise ConversionError(f"{path} has a recipe of its own: recipe=, heads=, size= and data= would not be used")
        model = load(path, trust=settings.trust)
    else:
        model, report = read(path, kind, told)
        reports.append(report)
    if settings.licence is not None:
        model.facts["licence"] = settings.licence
    if settings.format == "export" or settings.format == "onnx":
        return [*reports, export(model, settings.to, settings.format, settings.which)]
    return [*reports, write(model, settings.to, settings.format, settings.which)]


def convert_probe(kind: ProbeKind, settings: Settings, overrides: tuple[str, ...]) -> Report:
    """Read a probe and write its folder.

    Raises:
        ConversionError: see `read_probe`, or a setting that a probe has no use for.
    """
    unused = sorted(settings.model_fields_set - {"source", "to", "kind", "heads", "keys"})
    unused += [override.partition("=")[0] for override in overrides]
    if unused:
        names = {"format": "as"}
        raise ConversionError(f"kind={kind}: {names.get(unused[0], unused[0])}= would not be used")
    probe, report = read_probe(settings.source, kind, settings.heads)
    probe.save(settings.to)
    return report


def kind_of(path: Path) -> Literal[Kind, "jepa"]:
    """What a folder says that it is.

    Raises:
        ConversionError: it says nothing.
    """
    if (path / "recipe.yaml").is_file():
        return "jepa"
    if (path / "config.json").is_file():
        config = read_json(path / "config.json")
        return "jepa" if "format" in config else "timm" if "architecture" in config else "hf"
    raise ConversionError(
        f"from={path}: say what it is with kind=ijepa, vjepa, vjepa2, hf, timm, jepa, vjepa_probe or vjepa2_probe"
    )


if __name__ == "__main__":
    sys.exit(main())
