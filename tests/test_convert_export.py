"""The frozen encoder as a program: what it says for any number and size of inputs is what the model says."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import torch

import jepa
from jepa.convert import ConversionError, read
from jepa.convert.__main__ import main
from jepa.convert.export import export
from tests.test_convert import TINY, hf_model, ijepa_checkpoint, saved, tokens

SIZES = [(1, 3, 32, 32), (3, 3, 48, 64), (5, 3, 40, 24)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> jepa.Pretrained:
    return read(saved(ijepa_checkpoint(depth=1), tmp_path_factory.mktemp("weights") / "p.pth.tar"), "ijepa", TINY)[0]


@pytest.mark.parametrize("which", ["target", "context"])
def test_torch_export(which: str, model: jepa.Pretrained, tmp_path: Path) -> None:
    export(model, tmp_path / "encoder.pt2", "export", which)
    program = torch.export.load(tmp_path / "encoder.pt2").module()
    for size in SIZES:
        x = torch.randn(size)
        torch.testing.assert_close(program(x), tokens(model, x, which), atol=1e-6, rtol=1e-6)


def test_onnx(model: jepa.Pretrained, tmp_path: Path) -> None:
    export(model, tmp_path / "encoder.onnx", "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx")
    (given,) = session.get_inputs()
    for size in SIZES:
        x = torch.randn(size)
        (found,) = session.run(None, {given.name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), tokens(model, x), atol=1e-5, rtol=1e-5)


def test_the_command_and_its_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hf_model(tmp_path / "hf")
    assert main([f"from={tmp_path / 'hf'}", "as=export", f"to={tmp_path / 'encoder.bin'}"]) == 1
    assert "ends in .pt2" in capsys.readouterr().err
    model, _ = read(tmp_path / "hf", "hf")
    with pytest.raises(ConversionError, match=r"ends in \.onnx"):
        export(model, tmp_path / "encoder.pt2", "onnx")
