"""Weights of other projects: what they compute there they compute here, and back again bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import IJepaConfig, IJepaForImageClassification, IJepaModel

import jepa
from jepa.convert import ConversionError, Told, read, write
from jepa.predictors import ConvPredictor
from jepa.types import View
from tests.test_published import filled

TINY = Told(heads=2)


def table(width: int, rows: int, columns: int) -> Tensor:
    """The published I-JEPA's position table, from its description: columns first, sines before cosines, in numpy."""
    frequencies = 1.0 / 10000 ** (np.arange(width // 4) / (width / 4))
    y, x = (axis.reshape(-1, 1) * frequencies for axis in np.mgrid[:rows, :columns])
    return torch.from_numpy(np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], 1)).float()[None]


def vit_keys(prefix: str, width: int, depth: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a transformer in the published code."""
    found: dict[str, tuple[int, ...]] = {}
    for i in range(depth):
        for name, rows, columns in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", hidden, width),
            ("mlp.fc2", width, hidden),
        ):
            found |= {f"{prefix}blocks.{i}.{name}.weight": (rows, columns), f"{prefix}blocks.{i}.{name}.bias": (rows,)}
        for name in ("norm1", "norm2"):
            found |= {f"{prefix}blocks.{i}.{name}.{p}": (width,) for p in ("weight", "bias")}
    return {**found, **{f"{prefix}norm.{p}": (width,) for p in ("weight", "bias")}}


def ijepa_checkpoint(width: int = 32, depth: int = 2, patch: int = 8, side: int = 4) -> dict[str, Any]:
    """What the published code saves, with weights that differ from key to key."""
    encoder = {"patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
    encoder |= vit_keys("", width, depth, 4 * width)
    predictor = {"mask_token": (1, 1, 24), "predictor_embed.weight": (24, width), "predictor_embed.bias": (24,)}
    predictor |= vit_keys("predictor_", 24, depth, 96)
    predictor |= {"predictor_proj.weight": (width, 24), "predictor_proj.bias": (width,)}
    parts: dict[str, Any] = {}
    for part, shapes in (("encoder", encoder), ("predictor", predictor), ("target_encoder", encoder)):
        parts[part] = {f"module.{k}": filled(part + k, torch.Size(shape)) for k, shape in shapes.items()}
        name, dim = ("predictor_pos_embed", 24) if part == "predictor" else ("pos_embed", width)
        parts[part][f"module.{name}"] = table(dim, side, side)
    return {**parts, "opt": {"state": {}}, "scaler": None, "epoch": 300, "loss": 0.1, "batch_size": 8, "lr": 1e-3} | {
        "world_size": 16
    }


def saved(checkpoint: Mapping[str, Any], path: Path) -> Path:
    torch.save(checkpoint, path)
    return path


def pictures(height: int = 32, width: int = 32) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def tokens(model: jepa.Pretrained, x: Tensor, which: str = "target") -> Tensor:
    with torch.no_grad():
        return model.encoder(which)(View(x)).dense()


def same_weights(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [
        key for key in ours if ours[key].dtype != theirs[key].dtype or not torch.equal(ours[key], theirs[key])
    ] == []


def test_the_published_checkpoint_there_and_back(tmp_path: Path) -> None:
    checkpoint = ijepa_checkpoint()
    model, report = read(saved(checkpoint, tmp_path / "published.pth.tar"), "ijepa", TINY)
    assert "LayerNorm epsilon: 1e-06 (fixed in their code); activation: gelu" in str(report)
    assert "positions: fixed sin-cos, columns before rows" in str(report)
    accounted = {entry.theirs for entry in report.entries}
    assert accounted == {
        f"{part}.{key}" for part in ("encoder", "target_encoder", "predictor") for key in checkpoint[part]
    } | {
        "opt",
        "scaler",
        "epoch",
        "loss",
        "batch_size",
        "lr",
        "world_size",
    }
    assert {entry.ours for entry in report.entries if entry.ours} == model.model.state_dict().keys()
    assert not report.of("missing")
    write(model, tmp_path / "back.pth.tar", "ijepa")
    back = torch.load(tmp_path / "back.pth.tar", weights_only=True)
    for part in ("encoder", "target_encoder", "predictor"):
        same_weights(back[part], checkpoint[part])
    assert back["epoch"] == 300


def test_a_jepa_folder_there_and_back(tmp_path: Path) -> None:
    model, _ = read(saved(ijepa_checkpoint(), tmp_path / "published.pth.tar"), "ijepa", TINY)
    write(model, tmp_path / "folder")
    loaded = jepa.load(tmp_path / "folder")
    same_weights(loaded.model.state_dict(), model.model.state_dict())
    assert loaded.facts["epochs"] == 300
    for which in ("target", "context"):
        assert torch.equal(tokens(loaded, pictures(), which), tokens(model, pictures(), which))
    assert not torch.equal(tokens(loaded, pictures(), "context"), tokens(loaded, pictures()))


def hf_model(folder: Path, classifier: bool = False, **config: Any) -> IJepaModel:
    torch.manual_seed(0)
    kind = IJepaForImageClassification if classifier else IJepaModel
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 80}
    model = kind(IJepaConfig(**{**sizes, "image_size": 32, "patch_size": 8, **config})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model.ijepa if classifier else model


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "epsilon: 1e-12"),  # their default, not the checkpoints'
        ({"layer_norm_eps": 1e-6}, "epsilon: 1e-06"),
        ({"layer_norm_eps": 1e-3, "hidden_act": "gelu_pytorch_tanh"}, "activation: gelu_tanh"),
        ({"image_size": 48, "patch_size": 16, "num_channels": 5, "hidden_size": 48, "num_attention_heads": 4}, ""),
        ({"classifier": True, "hidden_act": "silu"}, "of a classifier"),
        ({"image_size": [16, 48]}, "learned, on a grid of [2, 6]"),
    ],
)
def test_hugging_face_there_and_back(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    theirs = hf_model(tmp_path / "hf", **config)
    model, report = read(tmp_path / "hf", "hf")
    assert said in str(report)
    size = theirs.embeddings.image_size
    x = torch.randn(2, theirs.config.num_channels, *size)
    with torch.no_grad():
        expected = theirs(x).last_hidden_state
    torch.testing.assert_close(tokens(model, x), expected, atol=1e-5, rtol=1e-5)
    write(model, tmp_path / "back", "hf", which="target")
    back = IJepaModel.from_pretrained(tmp_path / "back").eval()
    same_weights(back.state_dict(), theirs.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(back(x).last_hidden_state, expected, atol=1e-6, rtol=1e-6)
    assert back.config.layer_norm_eps == theirs.config.layer_norm_eps


@pytest.mark.parametrize("which", ["target", "context"])
def test_a_published_encoder_in_transformers(which: str, tmp_path: Path) -> None:
    model, _ = read(saved(ijepa_checkpoint(), tmp_path / "published.pth.tar"), "ijepa", TINY)
    report = write(model, tmp_path / "hf", "hf", which=which)
    theirs = IJepaModel.from_pretrained(tmp_path / "hf").eval()
    assert theirs.config.layer_norm_eps == 1e-6
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(pictures()).last_hidden_state, tokens(model, pictures(), which), atol=1e-5, rtol=1e-5
        )
    other = "encoder." if which == "target" else "target_encoder."
    assert {e.ours.split(".")[0] + "." for e in report.of("unused")} == {other, "predictor."}
    again, report = read(tmp_path / "hf", "hf")
    assert "positions: fixed sin-cos" in str(report)  # their table is ours: nothing learned
    same_weights(again.model.encoder.state_dict(), model.encoder(which).state_dict())


TIMM_SIZES = {
    "square": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "wide": {"img_size": (32, 64), "patch_size": 16, "embed_dim": 48, "depth": 1, "num_heads": 3, "in_chans": 4},
    "hidden": {"img_size": 48, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4, "mlp_ratio": 48 / 11},
}


@pytest.mark.parametrize("name", TIMM_SIZES)
def test_timm_there_and_back(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {**TIMM_SIZES[name], "class_token": False, "global_pool": "avg", "fc_norm": False, "num_classes": 0}
    theirs = timm.models.VisionTransformer(**options).eval()
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    size = options["img_size"] if isinstance(options["img_size"], tuple) else (options["img_size"],) * 2
    model, report = read(tmp_path / "timm.pth", "timm", Told(heads=options["num_heads"], size=size))
    assert "positions: learned" in str(report)
    x = torch.randn(2, options.get("in_chans", 3), *size)
    with torch.no_grad():
        torch.testing.assert_close(tokens(model, x), theirs.forward_features(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.features(x), theirs(x), atol=1e-5, rtol=1e-5)
    write(model, tmp_path / "back.safetensors", "timm", which="target")
    same_weights(load_file(tmp_path / "back.safetensors"), theirs.state_dict())


def test_the_layout_that_timm_converts_itself(tmp_path: Path) -> None:
    """timm reads the published file; what it computes with it is what we compute."""
    model, _ = read(saved(ijepa_checkpoint(), tmp_path / "published.pth.tar"), "ijepa", TINY)
    report = write(model, tmp_path / "timm.safetensors", "timm", which="context")
    assert "num_heads=2, class_token=False, global_pool='avg', fc_norm=False" in str(report)
    options = {"class_token": False, "global_pool": "avg", "fc_norm": False, "num_classes": 0}
    theirs = timm.models.VisionTransformer(**TIMM_SIZES["square"], **options).eval()
    theirs.load_state_dict(load_file(tmp_path / "timm.safetensors"))
    with torch.no_grad():
        torch.testing.assert_close(
            theirs.forward_features(pictures()), tokens(model, pictures(), "context"), atol=1e-5, rtol=1e-5
        )
    again, _ = read(tmp_path / "timm.safetensors", "timm", TINY)
    assert again.recipe["encoder"] == model.recipe["encoder"]


def test_half_precision_is_converted_and_said(tmp_path: Path) -> None:
    theirs = hf_model(tmp_path / "hf").half()
    theirs.save_pretrained(tmp_path / "hf")
    model, report = read(tmp_path / "hf", "hf")
    assert {value.dtype for value in model.model.state_dict().values()} == {torch.float32}
    assert not report.of("renamed")
    assert len(report.of("converted")) == len(theirs.state_dict())


def test_every_key_must_be_accounted_for(tmp_path: Path) -> None:
    def refused(change: Callable[[dict[str, Any]], Any], said: str, told: Told = TINY, kind: str = "ijepa") -> None:
        checkpoint = ijepa_checkpoint()
        change(checkpoint)
        with pytest.raises(ConversionError, match=said):
            read(saved(checkpoint, tmp_path / "changed.pth.tar"), kind, told)  # type: ignore[arg-type]

    refused(
        lambda c: c["encoder"].pop("module.blocks.1.mlp.fc2.bias"), r"1 keys are missing .*blocks\.1\.mlp\.fc2\.bias"
    )
    refused(lambda c: c["encoder"].update({"module.cls_token": torch.zeros(1)}), r"1 are not accounted for .*cls_token")
    refused(lambda c: c["encoder"].update({"norm.weight": torch.zeros(1)}), "does not begin with 'module.'")
    refused(lambda c: c["encoder"].update({"module.norm.bias": torch.zeros(31)}), r"norm\.bias has shape \(31,\)")
    refused(lambda c: c["predictor"].update({"module.mask_token": torch.zeros(1, 1, 24).int()}), "holds torch.int32")
    refused(lambda c: c.pop("target_encoder"), "lacks 'target_encoder'")
    refused(lambda c: c.update(other={"x": torch.zeros(1)}), "'other' holds a dict that is not accounted for")
    refused(lambda c: c["encoder"]["module.pos_embed"].add_(0.01), "is not the fixed sin-cos table")
    refused(lambda c: c["predictor"]["module.predictor_pos_embed"].mul_(2), "is not the fixed sin-cos table")
    refused(lambda c: None, "a width of 32 does not say how many heads", Told())
    refused(lambda c: None, "kind='meta': one of ijepa", kind="meta")


def test_which_is_an_explicit_choice(tmp_path: Path) -> None:
    model, _ = read(saved(ijepa_checkpoint(), tmp_path / "published.pth.tar"), "ijepa", TINY)
    with pytest.raises(ConversionError, match="say which=target"):
        write(model, tmp_path / "hf", "hf")
    with pytest.raises(ConversionError, match="which=target would not be used"):
        write(model, tmp_path / "folder", "jepa", which="target")
    with pytest.raises(ConversionError, match="one of jepa, ijepa"):
        write(model, tmp_path / "x", "onnxx")  # type: ignore[arg-type]


def test_what_a_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    hf_model(tmp_path / "hf")
    model, _ = read(tmp_path / "hf", "hf")
    with pytest.raises(ConversionError, match=r"encoder\.norm_eps 1e-06 fixed, this model 1e-12"):
        write(model, tmp_path / "x.safetensors", "timm", which="target")
    with pytest.raises(ConversionError, match="fixed, this model"):
        write(model, tmp_path / "x.pth.tar", "ijepa")
    with pytest.raises(RuntimeError, match="came without a predictor"):
        model.model.predictor(None, None)
    published, _ = read(saved(ijepa_checkpoint(), tmp_path / "published.pth.tar"), "ijepa", TINY)
    published.model.predictor = ConvPredictor(embed_dim=32)
    with pytest.raises(ConversionError, match="holds a ViTPredictor, this model has a ConvPredictor"):
        write(published, tmp_path / "x.pth.tar", "ijepa")
