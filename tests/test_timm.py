"""Backbones of timm as encoders."""

from __future__ import annotations

import pytest
import torch

from jepa.encoders import Timm
from jepa.losses import L2
from jepa.model import JEPA
from jepa.predictors import Identity
from jepa.targets import EMA
from jepa.types import Indices, JepaBatch, Task, View

INPUT = torch.randn(4, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "options", "grid", "stride"),
    [
        ("test_convnext", None, (2, 3), 32),
        ("test_resnet", None, (2, 3), 32),
        ("test_vit", {"img_size": (64, 96)}, (4, 6), 16),  # its class token is no part of the grid
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": (64, 96), "window_size": 2, "depths": (1, 1), "embed_dim": 12, "num_heads": (1, 1)},
            (8, 12),
            8,
        ),
    ],
)
def test_pooled_and_as_a_grid(name: str, options: dict | None, grid: tuple[int, ...], stride: int) -> None:
    torch.manual_seed(0)
    pooled = Timm(name=name, options=options)
    assert pooled.grid(INPUT.shape[2:]) == (1,)
    out = pooled(View(INPUT))
    assert out.x.shape == (4, pooled.embed_dim)
    assert (out.index.grid, len(out.index)) == ((1,), 4)
    tokens = Timm(name=name, pool=False, options=options)
    assert tokens.grid(INPUT.shape[2:]) == grid
    assert tokens.strides[-1] == stride
    out = tokens(View(INPUT))
    assert out.index.grid == grid
    assert out.x.shape == (4 * grid[0] * grid[1], tokens.embed_dim)
    out.x.square().sum().backward()
    assert all(p.grad is not None for p in tokens.parameters() if p.requires_grad)  # DDP waits for each


def test_a_grid_keeps_its_order() -> None:
    encoder = Timm(name="test_convnext", pool=False).eval()
    before = encoder(View(INPUT)).dense().view(4, 2, 3, -1)
    changed = INPUT.clone()
    changed[:, :, 48:, 80:] += 1  # a corner far from the first cells
    moved = (encoder(View(changed)).dense().view(4, 2, 3, -1) - before).abs().mean((0, 3))
    assert moved.argmax() == 5


def test_features_come_before_the_projector() -> None:
    torch.manual_seed(0)
    encoder = Timm(name="test_resnet", projector=[40, 30, 20], projector_norm=True)
    out = encoder(View(INPUT)).x
    assert (encoder.embed_dim, tuple(out.shape)) == (20, (4, 20))
    torch.testing.assert_close(out.mean(0), torch.zeros(20), atol=1e-5, rtol=0)
    (features,) = encoder.features(View(INPUT), [-1])
    assert features.x.shape == (4, encoder.feature_dim) == (4, encoder.backbone.num_features)
    torch.testing.assert_close(encoder.projector(features.x), out)
    with pytest.raises(ValueError, match="layer -1"):
        encoder.features(View(INPUT), [-2])


def test_what_it_cannot_do_is_refused() -> None:
    encoder = Timm(name="test_vit", options={"img_size": 64, "dynamic_img_size": False})
    with pytest.raises(ValueError, match="hides nothing"):
        encoder(View(INPUT[:, :, :, :64], Indices.all(4, (1,))))
    with pytest.raises(ValueError, match=r"cannot take \(64, 96\)"):
        encoder.grid((64, 96))
    with pytest.raises(ValueError, match=r"encoder\.in_chans=2"):
        encoder(View(INPUT[:, :2]))
    with pytest.raises(ValueError, match="cannot make 'test_vut'"):
        Timm(name="test_vut")
    with pytest.raises(ValueError, match=r"cannot make 'test_vit' with \{'sise': 3\}"):
        Timm(name="test_vit", options={"sise": 3})
    assert encoder.statistics is None


def batch() -> JepaBatch:
    return JepaBatch(View(INPUT), [Task(View(INPUT), torch.empty(4, 0))])


@pytest.mark.parametrize("train_mode", [False, True])
def test_batch_norm_of_the_target(train_mode: bool) -> None:
    """In evaluation mode its statistics are averages of the encoder's, as its weights are; in training mode its own."""
    torch.manual_seed(0)
    encoder = Timm(name="test_resnet")
    model = JEPA(
        encoder=encoder, predictor=Identity(embed_dim=1), target=EMA(train_mode=train_mode), criterion=L2()
    ).train()
    target = model.target_encoder
    assert target.training == train_mode
    old = target.backbone.bn1.running_mean.clone()
    targets = model(batch()).intermediates["target"].x
    after_forward = target.backbone.bn1.running_mean.clone()
    assert after_forward.equal(old) != train_mode
    model.update_target(0.75)
    expected = after_forward if train_mode else 0.75 * old + 0.25 * encoder.backbone.bn1.running_mean
    torch.testing.assert_close(target.backbone.bn1.running_mean, expected)
    alone = model.targets(View(INPUT[:1])).x
    together = torch.nn.functional.layer_norm(target.train(train_mode)(View(INPUT)).x, targets.shape[1:])[:1]
    assert torch.allclose(alone, together, atol=1e-4) != train_mode  # a sample's target depends on its batch, or not
    assert not model.eval().target_encoder.training
