"""Folders and files made to attack: nothing in them is run, and each gives one clear error."""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import jepa
from jepa.build import RecipeError
from jepa.checkpoint import CheckpointError
from jepa.convert import ConversionError, read, write
from jepa.convert.__main__ import main
from tests.test_convert import TINY, hf_model, ijepa_checkpoint, saved

ERRORS = (ConversionError, RecipeError, CheckpointError)


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def bomb(tmp_path: Path) -> Bomb:
    return Bomb(tmp_path / "exploded")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> jepa.Pretrained:
    return read(saved(ijepa_checkpoint(), tmp_path_factory.mktemp("weights") / "p.pth.tar"), "ijepa", TINY)[0]


@pytest.fixture
def folder(published: jepa.Pretrained, tmp_path: Path) -> Path:
    write(published, tmp_path / "folder")
    return tmp_path / "folder"


@pytest.mark.parametrize("kind", ["ijepa", "vjepa", "vjepa2", "timm"])
@pytest.mark.parametrize("how", ["torch", "pickle", "inside"])
def test_a_pickle_is_not_run(kind: str, how: str, bomb: Bomb, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth.tar"
    if how == "pickle":
        path.write_bytes(pickle.dumps(bomb))
    else:
        torch.save(bomb if how == "torch" else {**ijepa_checkpoint(), "opt": bomb}, path)
    with pytest.raises(ConversionError, match=r"was not loaded: it holds more than tensors .* Nothing in it was run"):
        read(path, kind, TINY)  # type: ignore[arg-type]
    assert not bomb.path.exists()


def test_a_pickle_in_a_folder_is_not_opened(bomb: Bomb, tmp_path: Path, folder: Path) -> None:
    hf_model(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    torch.save(bomb, tmp_path / "hf" / "pytorch_model.bin")
    with pytest.raises(ConversionError, match=r"pytorch_model\.bin was not opened"):
        read(tmp_path / "hf", "hf")
    (folder / "model.safetensors").unlink()
    torch.save(bomb, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="is damaged"):
        jepa.load(folder)
    assert not bomb.path.exists()


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("os.system", "code outside jepa and was not run"),
        ("jepa.checkpoint.shutil.rmtree", "is not a part of a model and was not run"),
        ("jepa.run.main", "is not a part of a model and was not run"),
        ("evil.Loss", "code outside jepa and was not run"),
    ],
)
@pytest.mark.parametrize("part", ["encoder", "criterion", "batch_transform"])
def test_foreign_code_is_not_run(
    target: str, part: str, said: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    node = {"_target_": target}
    change(folder, lambda c: (c["recipe"]["data"] if part == "batch_transform" else c["recipe"]).update({part: node}))
    with pytest.raises(RecipeError, match=said):
        jepa.load(folder)
    with pytest.raises(RecipeError, match=said):
        jepa.Pretrained.from_pretrained(folder)
    assert "evil" not in sys.modules


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "sub/part.safetensors", "weights.bin", 7, None]
)
def test_shards_elsewhere_are_not_read(name: Any, tmp_path: Path) -> None:
    hf_model(tmp_path / "hf")
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    save_file(weights, tmp_path / "secret.safetensors")
    (tmp_path / "hf" / "model.safetensors").unlink()
    index = {"weight_map": dict.fromkeys(weights, name)}
    (tmp_path / "hf" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConversionError, match=r"in the same folder|has no weight_map of file names"):
        read(tmp_path / "hf", "hf")


def test_shards_are_read(tmp_path: Path) -> None:
    theirs = hf_model(tmp_path / "hf")
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    ours, whole = (read(tmp_path / name, "hf")[0].model.state_dict() for name in ("sharded", "hf"))
    assert all(torch.equal(ours[key], whole[key]) for key in whole)
    next((tmp_path / "sharded").glob("*.safetensors")).unlink()
    with pytest.raises(ConversionError, match="cannot be read"):
        read(tmp_path / "sharded", "hf")


KEY = "encoder.transformer.norm.weight"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda w: w.update({KEY: w[KEY].double()}), r"torch\.float64 \(32,\) for torch\.float32"),
        (lambda w: w.update({KEY: w[KEY].int()}), r"torch\.int32 \(32,\) for torch\.float32"),
        (lambda w: w.update({KEY: w[KEY][:31].clone()}), r"\(31,\) for torch\.float32 \(32,\)"),
        (lambda w: w.update({KEY: w[KEY][None].clone()}), r"\(1, 32\) for torch\.float32"),
        (lambda w: w.pop(KEY), "1 keys missing"),
        (lambda w: w.update(other=torch.zeros(1)), "1 not used"),
    ],
)
def test_other_weights_than_the_configuration_says(edit: Callable, said: str, folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="is damaged"):
        jepa.load(folder)
    described = jepa.loading.checkpoint.save_weights(weights, folder / "model.safetensors")
    change(folder, lambda c: c.update(weights=described))  # an attacker knows how to do that
    with pytest.raises(CheckpointError, match=said):
        jepa.load(folder)


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, -1])
def test_cut_off_files(keep: float, published: jepa.Pretrained, folder: Path, tmp_path: Path) -> None:
    def cut(path: Path) -> Path:
        content = path.read_bytes()
        path.write_bytes(content[: int(keep * len(content)) if keep == 0.5 else int(keep)])
        return path

    hf_model(tmp_path / "hf")
    cut(tmp_path / "hf" / "model.safetensors")
    with pytest.raises(ConversionError, match=r"model\.safetensors cannot be read"):
        read(tmp_path / "hf", "hf")
    with pytest.raises(ConversionError, match=r"cannot be read|was not loaded"):
        read(cut(saved(ijepa_checkpoint(), tmp_path / "p.pth.tar")), "ijepa", TINY)
    write(published, tmp_path / "t.safetensors", "timm", which="target")
    with pytest.raises(ConversionError, match="cannot be read"):
        read(cut(tmp_path / "t.safetensors"), "timm", TINY)
    cut(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="is damaged"):
        jepa.load(folder)
    (folder / "config.json").write_text((folder / "config.json").read_text()[:200])
    with pytest.raises(RecipeError, match=r"config\.json cannot be read"):
        jepa.load(folder)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ([], "cannot be read"),
        ({}, "folder of another library"),
        ({"model_type": "ijepa"}, "folder of another library"),
        ({"format": "jepa 9"}, "another version of jepa"),
        ({"format": "jepa 1", "recipe": 3, "step": 1, "facts": {}}, "holds no recipe"),
        ({"format": "jepa 1", "recipe": {}, "step": 1, "facts": {}, "weights": []}, "cannot be checked"),
        ({"format": "jepa 1", "recipe": {"data": {}}, "step": 1, "facts": {}, "weights": None}, "lacks 'regularizers'"),
    ],
)
def test_configurations_of_nothing(config: Any, said: str, folder: Path) -> None:
    if isinstance(config, dict) and config.get("weights", 1) is None:
        config["weights"] = json.loads((folder / "config.json").read_text())["weights"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises((RecipeError, CheckpointError), match=said):
        jepa.load(folder)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "bert"}, "model_type is 'bert'"),
        ({"hidden_act": "mish"}, "hidden_act='mish'"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps='small'"),
        ({"qkv_bias": False}, "qkv_bias is false"),
        ({"num_attention_heads": 5}, "heads=5 does not divide"),
        ({"num_attention_heads": True}, "num_attention_heads=True"),
        ({"image_size": 64}, "is not a grid of"),
        ({"image_size": "large"}, "image_size='large'"),
    ],
)
def test_settings_that_cannot_be(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    hf_model(tmp_path / "hf")
    change(tmp_path / "hf", lambda c: c.update(config))
    with pytest.raises(ERRORS, match=said):
        read(tmp_path / "hf", "hf")


def test_errors_of_the_command_are_one_line(tmp_path: Path, bomb: Bomb, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(bomb, tmp_path / "evil.pth.tar")
    for arguments, said in [
        ([f"from={tmp_path / 'evil.pth.tar'}", "kind=ijepa", f"to={tmp_path / 'x'}"], "Nothing in it was run"),
        ([f"from={tmp_path / 'evil.pth.tar'}", f"to={tmp_path / 'x'}"], "say what it is with kind=ijepa"),
        (["from=/nowhere", "kind=hf", f"to={tmp_path / 'x'}"], "/nowhere does not exist"),
        (["kind=hf", f"to={tmp_path / 'x'}"], "python -m jepa.convert from=PATH"),
        (["from=/nowhere"], "python -m jepa.convert to=PATH"),
        (["from=x", "to=y", "kinds=hf"], "did you mean 'kind'?"),
        (["from=x", "to=y", "kind=hff"], "kind='hff'"),
    ]:
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert not bomb.path.exists()
