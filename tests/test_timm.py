"""Backbones of timm as encoders."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import jepa
from jepa.encoders import Timm
from jepa.losses import L2
from jepa.model import JEPA
from jepa.predictors import MLP, Identity
from jepa.probing import Settings, Sources
from jepa.targets import EMA
from jepa.types import Indices, JepaBatch, Task, Tokens, View
from tests.conftest import Ran

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


@pytest.mark.parametrize("name", ["mixer_s32_224", "levit_128s", "hiera_tiny_224", "volo_d1_224"])
def test_nets_that_do_not_tell_the_places_of_their_tokens_are_pooled(name: str) -> None:
    with torch.device("meta"):  # shapes only
        encoder = Timm(name=name)
        assert encoder.grid((224, 224)) == (1,)
        out = encoder(View(torch.empty(2, 3, 224, 224)))
    assert out.x.shape == (2, encoder.embed_dim)


@pytest.mark.parametrize("name", ["mixer_s32_224", "coat_tiny"])  # tokens in a row, and of several stages
def test_they_make_no_grid(name: str) -> None:
    with torch.device("meta"):
        encoder = Timm(name=name, pool=False)
    with pytest.raises(ValueError, match=r"does not tell the places of its tokens: set encoder\.pool=true"):
        encoder.grid((224, 224))


def test_a_mixer_is_pooled_as_timm_does() -> None:
    torch.manual_seed(0)
    encoder = Timm(name="mixer_s32_224", options={"img_size": 64}).eval()
    x = INPUT[:, :, :, :64]
    assert encoder.grid((64, 64)) == (1,)
    torch.testing.assert_close(encoder(View(x)).x, encoder.backbone(x))
    with pytest.raises(ValueError, match=r"cannot take \(64, 96\)"):
        encoder.grid((64, 96))


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """timm's loading without a network: models in the order in which they were given weights, all of them 0.25."""
    models: list[nn.Module] = []

    def load(model: nn.Module, **_: object) -> None:
        models.append(model)
        for parameter in model.parameters():
            nn.init.constant_(parameter, 0.25)

    monkeypatch.setattr(timm.models._builder, "load_pretrained", load)
    return models


def is_fetched(encoder: Timm) -> bool:
    return all((p == 0.25).all() for p in encoder.backbone.parameters())


def test_pretrained_weights_are_loaded_where_a_run_begins(fetched: list[nn.Module]) -> None:
    torch.manual_seed(0)
    encoder = Timm(name="test_resnet", pretrained=True, sync_batch_norm=True)
    assert not fetched
    assert encoder.statistics == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    before = torch.get_rng_state()
    encoder.begin()
    assert len(fetched) == 1
    assert is_fetched(encoder)
    assert torch.get_rng_state().equal(before)
    assert Timm(name="test_resnet", pretrained=True, in_chans=1).statistics is None  # timm states three
    other = Timm(name="test_resnet")
    other.begin()
    assert not is_fetched(other)


def test_a_run_is_given_pretrained_weights_once(
    fetched: list[nn.Module], tmp_path: Path, jepa_run: Callable[..., Ran]
) -> None:
    """Its encoder and its target; not a run that goes on, a plan, a model that is loaded, or the random baseline."""
    net = ("encoder.name=test_resnet", "encoder.options={}", "encoder.pretrained=true", "encoder.projector=[8]")
    statistics = ("data.batch_transform.mean=[0.5,0.5,0.5]", "data.batch_transform.std=[0.5,0.5,0.5]")
    fixed = ("target.start=1.0", "train.checkpoint_every=1", "data.workers=0", "train.batch_size=4", "train.steps=2")
    command = ["recipe=byol_tiny", *net, *statistics, *fixed, f"run_dir={tmp_path}"]
    ran = jepa_run(*command, "dry_run=true")
    assert ran.status == 0, ran.err
    assert not fetched
    ran = jepa_run(*command)
    assert ran.status == 0, ran.err
    assert len(fetched) == 2
    model = jepa.load(tmp_path)
    assert is_fetched(model.model.target_encoder)
    moved = [(p - 0.25).abs().max() for p in model.model.encoder.backbone.parameters()]
    assert 0 < max(moved) < 0.01
    baseline = Sources(model, model.recipe["data"], Settings(run=str(tmp_path))).encoder("random_init", 0)
    assert not is_fetched(baseline)
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000002")
    assert jepa_run(*command).status == 0
    begun = jepa_run(*command[:-1], f"run_dir={tmp_path / 'other'}", f"init_from={tmp_path}", "init_mode=continue")
    assert begun.status == 0, begun.err
    assert len(fetched) == 2


def test_weights_that_cannot_be_had_are_named(
    tmp_path: Path, jepa_run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(model: nn.Module, **_: object) -> None:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(timm.models._builder, "load_pretrained", unreachable)
    net = ("encoder.name=test_resnet", "encoder.options={}", "encoder.pretrained=true")
    ran = jepa_run("recipe=byol_tiny", *net, f"run_dir={tmp_path}")
    assert ran.status == 1
    assert "error: encoder: no route to the hub" in ran.err
    monkeypatch.undo()
    with pytest.raises(ValueError, match="pretrained=true: timm has no weights for it"):
        Timm(name="test_vit_relpos", pretrained=True).begin()


@pytest.mark.parametrize("option", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"])
def test_options_that_name_weights_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=rf"options\.{option}='/some/file': an encoder reads no weights"):
        Timm(name="test_resnet", options={option: "/some/file"})


def test_what_it_cannot_do_is_refused() -> None:
    encoder = Timm(name="test_vit", options={"img_size": 64, "dynamic_img_size": False})
    with pytest.raises(ValueError, match="hides nothing"):
        encoder(View(INPUT[:, :, :, :64], Indices.all(4, (1,))))
    with pytest.raises(ValueError, match=r"cannot take \(64, 96\)"):
        encoder.grid((64, 96))
    with pytest.raises(ValueError, match=r"encoder\.in_chans=2"):
        encoder(View(INPUT[:, :2]))
    for name in ("test_vut", "hf-hub:timm/test_vit.r160_in1k", "local-dir:/some/folder"):
        with pytest.raises(ValueError, match=f"cannot make '{name}': it has no such model"):
            Timm(name=name)
    with pytest.raises(ValueError, match="multiple values for keyword argument 'num_classes'"):
        Timm(name="test_vit", options={"num_classes": 3})
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


def test_each_view_has_batch_statistics_of_its_own() -> None:
    """In training only, of backbone, projector and predictor: as if one view came after the other."""
    one, two = (Timm(name="test_resnet", projector=[16, 16], projector_norm=True, views=views) for views in (1, 2))
    two.load_state_dict(one.state_dict())
    first, second = INPUT, 3 * INPUT.flip(0) + 1
    both = View(torch.cat((first, second)))
    found = two(both).x
    torch.testing.assert_close(found, torch.cat([one(View(x)).x for x in (first, second)]))
    torch.testing.assert_close(two.state_dict(), one.state_dict())  # running statistics too
    one.train(False), two.train(False)
    torch.testing.assert_close(two(both).x, one(both).x)
    assert two(View(INPUT[:3])).x.shape == (3, 16)
    tokens = Tokens(torch.randn(8, 16), Indices.all(8, (1,)))
    alone, split = MLP(embed_dim=16, hidden=4), MLP(embed_dim=16, hidden=4, views=2)
    split.load_state_dict(alone.state_dict())
    halves = [alone(Tokens(x, Indices.all(4, (1,))), torch.empty(4, 0)).x for x in tokens.x.chunk(2)]
    torch.testing.assert_close(split(tokens, torch.empty(8, 0)).x, torch.cat(halves))
    with pytest.raises(ValueError, match=r"3 samples are not 2 views each: set views=1"):
        two.train()(View(INPUT[:3]))
    for make in (partial(Timm, name="test_resnet"), partial(MLP, embed_dim=16, hidden=4)):
        with pytest.raises(ValueError, match="views=0 must be at least 1"):
            make(views=0)
