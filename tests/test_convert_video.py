"""Weights of V-JEPA and V-JEPA 2: what they compute there they compute here, and back again bit for bit."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import VJEPA2Config, VJEPA2ForVideoClassification, VJEPA2Model

import jepa
from jepa.convert import ConversionError, Report, Told, read, write
from jepa.types import Indices, Tokens, View
from tests.test_convert import same_weights, saved, tokens, vit_keys
from tests.test_published import ends, filled
from tests.test_published_video import sums, wave

CLIPS = """
defaults:
  - base
  - data: moving_shapes
  - encoder: vit_micro
  - predictor: vit
  - masker: random_patches
  - _self_
data: {size: [4, 32, 32]}
train: {steps: 1, batch_size: 4}
"""


@pytest.fixture
def clips(tmp_path: Path) -> Told:
    (tmp_path / "clips.yaml").write_text(CLIPS)
    return Told(heads=2, predictor_heads=2, recipe=str(tmp_path / "clips.yaml"))


def table(width: int, time: int, rows: int, columns: int) -> Tensor:
    """The published V-JEPA's position table, time, rows, columns; the excess is cut at the end."""
    share = 2 * ceil(width / 6)
    frequencies = 1.0 / 10000 ** (np.arange(share // 2) / (share / 2))
    angles = [axis.reshape(-1, 1) * frequencies for axis in np.mgrid[:time, :rows, :columns]]
    return torch.from_numpy(np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], 1)).float()[
        None, :, :width
    ]


def checkpoint(kind: str, mask_tokens: int) -> dict[str, Any]:
    encoder = {"patch_embed.proj.weight": (32, 3, 2, 8, 8), "patch_embed.proj.bias": (32,), **vit_keys("", 32, 2, 128)}
    predictor = {f"mask_tokens.{i}": (1, 1, 24) for i in range(mask_tokens)}
    predictor |= {"predictor_embed.weight": (24, 32), "predictor_embed.bias": (24,)}
    predictor |= {**vit_keys("predictor_", 24, 2, 96), "predictor_proj.weight": (32, 24), "predictor_proj.bias": (32,)}
    parts: dict[str, Any] = {
        "opt": {},
        "scaler": None,
        "epoch": 3,
        "loss": 0.1,
        "batch_size": 8,
        "world_size": 2,
        "lr": 1e-3,
    }
    for part, shapes in (("encoder", encoder), ("predictor", predictor), ("target_encoder", encoder)):
        parts[part] = {f"module.backbone.{k}": filled(k, torch.Size(shape)) for k, shape in shapes.items()}
        if kind == "vjepa":
            name, width = ("predictor_pos_embed", 24) if part == "predictor" else ("pos_embed", 32)
            parts[part][f"module.backbone.{name}"] = table(width, 2, 4, 4)
    return parts


@pytest.mark.parametrize("kind", ["vjepa", "vjepa2"])
def test_the_published_checkpoint_there_and_back(kind: str, clips: Told, tmp_path: Path) -> None:
    published = checkpoint(kind, mask_tokens=2)
    model, report = read(saved(published, tmp_path / "p.pth.tar"), kind, clips)  # type: ignore[arg-type]
    assert ("rotary, tiled" if kind == "vjepa2" else "fixed sin-cos, time, rows, columns") in str(report)
    write(model, tmp_path / "back.pth.tar", kind)  # type: ignore[arg-type]
    back = torch.load(tmp_path / "back.pth.tar", weights_only=True)
    for part in ("encoder", "target_encoder", "predictor"):
        same_weights(back[part], published[part])
    write(model, tmp_path / "folder")
    same_weights(jepa.load(tmp_path / "folder").model.state_dict(), model.model.state_dict())
    other = "vjepa" if kind == "vjepa2" else "vjepa2"
    with pytest.raises(ConversionError, match="fixed, this model"):
        write(model, tmp_path / "x", other)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "size"), [("vjepa", [16, 224, 224]), ("vjepa2", [16, 256, 256])])
def test_everything_else_comes_from_the_shipped_recipe(kind: str, size: list[int], tmp_path: Path) -> None:
    published = checkpoint(kind, mask_tokens=2)
    for part in ("encoder", "target_encoder", "predictor"):
        name = "predictor_pos_embed" if part == "predictor" else "pos_embed"
        if kind == "vjepa":
            published[part][f"module.backbone.{name}"] = table(24 if part == "predictor" else 32, 8, 14, 14)
        if part != "predictor":
            published[part]["module.backbone.patch_embed.proj.weight"] = torch.randn(32, 3, 2, 16, 16)
    told = Told(heads=2, predictor_heads=2)
    model, _ = read(saved(published, tmp_path / "p.pth.tar"), kind, told)  # type: ignore[arg-type]
    assert (model.recipe["recipe"], model.recipe["data"]["size"]) == (f"{kind}_vitl16", size)
    write(model, tmp_path / "folder")
    assert jepa.load(tmp_path / "folder").features(wave(1, 3, 4, 32, 32)).shape == (1, 32)


def test_numbers_recorded_from_the_published_code(clips: Told, tmp_path: Path) -> None:
    model, _ = read(saved(checkpoint("vjepa2", 2), tmp_path / "p.pt"), "vjepa2", clips)
    found = tokens(model, wave(2, 3, 4, 32, 32))
    sums(found, 68.039031, 1692.538354)
    ends(found, [-1.485603, 0.556176, 0.573537, 0.737377], [-0.288406, -0.673184])
    found = tokens(model, wave(1, 3, 4, 48, 32))
    sums(found, 51.354794, 1269.065203)
    ends(found, [-1.393159, 0.662962, 0.504739, 0.657779])
    model, _ = read(saved(checkpoint("vjepa", 2), tmp_path / "p.pth.tar"), "vjepa", clips)
    x = torch.nn.functional.layer_norm(tokens(model, wave(2, 3, 4, 32, 32)), (32,))
    sums(x, None, 1594.406018)
    ends(x, [-1.688194, 0.125212, 0.425697, 0.554274])


def test_tables_of_v_jepa_2_are_named_as_unused(clips: Told, tmp_path: Path) -> None:
    published = checkpoint("vjepa2", 1)
    published["encoder"]["module.backbone.pos_embed"] = table(32, 2, 4, 4)
    _, report = read(saved(published, tmp_path / "p.pt"), "vjepa2", clips)
    assert "rotary positions and never reads its table" in str(report)
    published["encoder"]["module.backbone.norms_block.0.weight"] = torch.zeros(32)  # V-JEPA 2.1
    with pytest.raises(ConversionError, match="1 are not accounted for"):
        read(saved(published, tmp_path / "p.pt"), "vjepa2", clips)


def hf_model(folder: Path, classifier: bool = False, **config: Any) -> VJEPA2Model:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "crop_size": 32, "patch_size": 8}
    sizes |= {"frames_per_clip": 4, "pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
    kind = VJEPA2ForVideoClassification if classifier else VJEPA2Model
    model = kind(VJEPA2Config(**{**sizes, "pred_num_mask_tokens": 3, "num_pooler_layers": 1, **config})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model.vjepa2 if classifier else model


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"layer_norm_eps": 1e-3, "hidden_act": "relu", "classifier": True},
        {"crop_size": 48, "patch_size": 16, "frames_per_clip": 6, "hidden_size": 48, "mlp_ratio": 48 / 11},
        {"crop_size": 24, "tubelet_size": 1, "in_chans": 2, "pred_num_attention_heads": 1, "pred_mlp_ratio": 2.0},
    ],
)
def test_hugging_face_there_and_back(config: dict[str, Any], clips: Told, tmp_path: Path) -> None:
    theirs = hf_model(tmp_path / "hf", **config)
    said = theirs.config
    model, report = read(tmp_path / "hf", "hf", Told(recipe=clips.recipe))
    assert f"epsilon: {said.layer_norm_eps} (the file says)" in str(report)
    x = torch.randn(2, said.in_chans, said.frames_per_clip, said.crop_size, said.crop_size)
    with torch.no_grad():
        expected = theirs(x.transpose(1, 2))
        encoded = model.model.encoder(View(x))
        everything = replace(Indices.all(2, encoded.index.grid), task=1)  # theirs uses mask token 1
        predicted = model.model.predictor(Tokens(encoded.x, encoded.index), everything).dense()
    torch.testing.assert_close(encoded.dense(), expected.last_hidden_state, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(predicted, expected.predictor_output.last_hidden_state, atol=1e-5, rtol=1e-5)
    report = write(model, tmp_path / "back", "hf", which="context")
    assert isinstance(report, Report)
    back = VJEPA2Model.from_pretrained(tmp_path / "back").eval()
    same_weights(back.state_dict(), theirs.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(
            back(x.transpose(1, 2)).last_hidden_state, expected.last_hidden_state, atol=1e-6, rtol=1e-6
        )


def test_a_published_checkpoint_in_transformers(clips: Told, tmp_path: Path) -> None:
    model, _ = read(saved(checkpoint("vjepa2", 2), tmp_path / "p.pt"), "vjepa2", clips)
    write(model, tmp_path / "hf", "hf", which="target")
    theirs = VJEPA2Model.from_pretrained(tmp_path / "hf").eval()
    x = wave(2, 3, 4, 32, 32)
    with torch.no_grad():
        found = theirs(x.transpose(1, 2), skip_predictor=True).last_hidden_state
    torch.testing.assert_close(found, tokens(model, x), atol=1e-5, rtol=1e-5)
    assert theirs.config.pred_num_mask_tokens == 2
