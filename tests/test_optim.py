"""Parameter groups as published."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from jepa.encoders import ViT
from jepa.losses import SmoothL1
from jepa.model import JEPA
from jepa.optim import adamw, parameter_groups, set_hyperparameters
from jepa.predictors import ViTPredictor
from jepa.targets import EMA


@pytest.fixture
def model() -> JEPA:
    return JEPA(
        encoder=ViT(dim=16, depth=2, heads=2, patch_size=4),
        predictor=ViTPredictor(embed_dim=16, dim=8, depth=1, heads=2),
        target=EMA(),
        criterion=SmoothL1(),
    )


def test_groups_as_published(model: JEPA) -> None:
    """Encoder decayed, predictor decayed, encoder not, predictor not; every trained parameter in exactly one."""
    groups = parameter_groups(model)
    assert [(g["names"][0].split(".")[0], g["decay"]) for g in groups] == [
        ("encoder", True),
        ("predictor", True),
        ("encoder", False),
        ("predictor", False),
    ]
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith("target_encoder") for name in named)
    assert sorted(name for g in groups for name in g["names"]) == sorted(named)
    for group in groups:
        assert all(p is named[name] for name, p in zip(group["names"], group["params"], strict=True))
        for name in group["names"]:
            assert group["decay"] == (name.endswith(("weight", "mask_token")) and "norm" not in name), name


def test_names_of_a_block(model: JEPA) -> None:
    decayed = {name for g in parameter_groups(model) if g["decay"] for name in g["names"]}
    assert {name for name in decayed if name.startswith("predictor")} == {
        "predictor.embed.weight",
        "predictor.proj.weight",
        "predictor.mask_token",
        *(f"predictor.transformer.blocks.0.{part}.weight" for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
    }
    assert "encoder.patch_embed.proj.weight" in decayed


def test_hyperparameters_of_every_group(model: JEPA) -> None:
    optimizer = adamw(model)
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    assert optimizer.defaults["eps"] == 1e-8
    set_hyperparameters(optimizer, lr=0.1, weight_decay=0.2)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [
        (0.1, 0.2),
        (0.1, 0.2),
        (0.1, 0.0),
        (0.1, 0.0),
    ]


def test_decay_alone_shrinks_only_what_is_decayed(model: JEPA) -> None:
    optimizer = adamw(model)
    set_hyperparameters(optimizer, lr=0.5, weight_decay=0.5)
    before = {name: p.detach().clone() + 1 for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(before[name])
            p.grad = torch.zeros_like(p) if p.requires_grad else None
    optimizer.step()
    decayed = {name for g in optimizer.param_groups if g["decay"] for name in g["names"]}
    for name, p in model.named_parameters():
        assert torch.allclose(p, before[name] * (0.75 if name in decayed else 1.0)), name


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="no parameters to train"):
        adamw(nn.Linear(2, 2).requires_grad_(False))


def test_a_part_may_keep_its_rate_and_everything_may_be_decayed(model: JEPA) -> None:
    """As SimSiam's released code has it."""
    optimizer = adamw(model, decay_all=True, fixed_rates={"predictor": 0.3})
    assert sorted(len(g["params"]) for g in optimizer.param_groups) == sorted(
        len([p for p in part.parameters() if p.requires_grad]) for part in (model.encoder, model.predictor)
    )
    for lr in (0.1, 0.05):
        set_hyperparameters(optimizer, lr=lr, weight_decay=0.2)
        found = {g["names"][0].split(".")[0]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups}
        assert found == {"encoder": (lr, 0.2), "predictor": (0.3, 0.2)}
    with pytest.raises(ValueError, match="a learning rate for target_encoder, which has nothing to train"):
        parameter_groups(model, fixed_rates={"target_encoder": 0.1})
