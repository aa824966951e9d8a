"""Names that users and the documentation rely on."""

from __future__ import annotations

import inspect

import pytest

import jepa
from jepa import run


def test_public_names() -> None:
    assert sorted(jepa.__all__) == jepa.__all__
    for name in jepa.__all__:
        assert getattr(jepa, name).__doc__, name


def test_features_keep_their_signature() -> None:
    assert list(inspect.signature(jepa.load).parameters) == ["path", "trust", "device"]
    features = inspect.signature(jepa.Pretrained.features).parameters
    assert list(features) == ["self", "x", "layers", "pool", "which", "batch_size"]
    assert (features["pool"].default, features["which"].default, features["layers"].default) == (
        "mean",
        None,  # the encoder that learned
        (-1,),
    )


@pytest.mark.parametrize("part", [jepa.Encoder, jepa.Predictor, jepa.Masker, jepa.TargetUpdater])
def test_interfaces_are_abstract_and_strict(part: type) -> None:
    assert inspect.isabstract(part)
    for name in part.__abstractmethods__:
        kinds = {parameter.kind for parameter in inspect.signature(getattr(part, name)).parameters.values()}
        assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}, name


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_the_recipes(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([flag]) == 0
    shown = capsys.readouterr().out
    assert "python -m jepa.run recipe=ijepa_tiny" in shown
    assert "ijepa_vith14" in shown
