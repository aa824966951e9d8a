"""The frozen encoder as a program that needs nothing of this project: torch.export or ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from jepa.assemble import input_size
from jepa.convert.keys import ConversionError, Report
from jepa.interfaces import Encoder
from jepa.loading import Pretrained, Which
from jepa.types import View


class FrozenEncoder(nn.Module):
    """Normalised inputs (B, C, *size) to tokens (B, G, D)."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.encoder(View(x))
        return tokens.x.view(x.shape[0], -1, tokens.x.shape[-1])


def export(
    model: Pretrained, path: str | Path, format: Literal["export", "onnx"], which: Which | None = None
) -> Report:
    """Write the frozen encoder as a program for any number of inputs of any size that its patches divide.

    Args:
        model: what `jepa.load` or `read` gave.
        path: a file, .pt2 for "export" and .onnx for "onnx".
        format: torch.export or ONNX.
        which: encoder; None: the one that learned.

    Raises:
        ConversionError: another file name, or the encoder joins modalities or cannot be traced.
    """
    path = Path(path).expanduser()
    suffix = {"export": ".pt2", "onnx": ".onnx"}[format]
    if path.suffix != suffix:
        raise ConversionError(f"to={path}: as={format} writes a file that ends in {suffix}")
    joined = model.encoder(which).modalities
    if joined:
        raise ConversionError(
            f"as={format} writes encoders of one input, this one joins {', '.join(joined)}: use jepa.load(...).features"
        )
    try:
        program = trace(model, which)
        if format == "export":
            torch.export.save(program, path)
        else:
            torch.onnx.export(program, f=path, dynamo=True, external_data=False, verbose=False)
    except ModuleNotFoundError as error:
        raise ConversionError(f"as=onnx needs {error.name}: pip install jepa[export]") from error
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError) as error:
        raise ConversionError(f"the encoder cannot be traced: {error}") from error
    report = Report(f"{path} as {format}")
    report.conventions.append(
        f"the {which or model.learned} encoder: normalised inputs (B, C, *size) to tokens (B, G, D), any size that "
        "patches divide"
    )
    for key in model.encoder(which).state_dict():
        report.add("loaded", key, key)
    return report


def trace(model: Pretrained, which: Which | None = None) -> ExportedProgram:
    """The encoder as torch.export has it, with the number and the size of inputs left open."""
    size = input_size(model.recipe["data"]["size"])
    encoder = FrozenEncoder(model.encoder(which)).eval()
    channels = model.recipe["encoder"].get("in_chans", 3)
    x = torch.zeros(2, channels, *size)
    axes = {0: Dim("batch"), **{axis + 2: Dim.AUTO for axis in range(len(size))}}
    return torch.export.export(encoder, (x,), dynamic_shapes=({**axes},), strict=False)
