"""The ViT encoder and predictor: any grid, and each sample gets exactly what it would get alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod, sqrt
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jepa.encoders import ViT
from jepa.losses import SmoothL1
from jepa.model import JEPA
from jepa.nn.attention import Layout
from jepa.nn.blocks import Mlp, SwiGLU
from jepa.predictors import ViTPredictor
from jepa.predictors.vit import pair_sequences
from jepa.targets import EMA
from jepa.types import JepaBatch, Task, Tokens, View
from tests.published import relative_error
from tests.ragged import pick, random_indices

CONTEXT, TARGETS = [5, 2, 9], [1, 4, 3, 3, 6, 2]  # three samples, two target sets each
SHAPES = [((36,), (3,)), ((8, 12), (2, 3)), ((4, 6, 6), (2, 2, 2))]  # input size, patch: 1-D, non-square 2-D, 3-D

OPTIONS: list[dict[str, Any]] = [{}, {"position": "rope", "activation": "swiglu"}]


def encoder(patch: Sequence[int] = (2, 3), **options) -> ViT:
    torch.manual_seed(0)
    return noisy(ViT(dim=24, depth=2, heads=2, patch_size=patch, **options))


def predictor(**options) -> ViTPredictor:
    torch.manual_seed(1)
    return noisy(ViTPredictor(embed_dim=24, dim=16, depth=2, heads=2, **options))


def noisy(module: nn.Module) -> nn.Module:
    """Weights large enough for attention to matter."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return module


def inputs(size: Sequence[int], samples: int = 3, channels: int = 3) -> Tensor:
    return torch.randn(samples, channels, *size, generator=torch.Generator().manual_seed(2))


def problem(size: Sequence[int], patch: Sequence[int]) -> JepaBatch:
    grid = tuple(s // p for s, p in zip(size, patch, strict=True))
    x = inputs(size)
    return JepaBatch(View(x), [Task(View(x, random_indices(CONTEXT, grid)), random_indices(TARGETS, grid, seed=3))])


def alone(batch: JepaBatch, sample: int) -> JepaBatch:
    """The same problem for one sample."""
    task, per_sample = batch.tasks[0], len(TARGETS) // len(CONTEXT)
    x = batch.target.x[sample : sample + 1]
    query = pick(task.query, sample * per_sample, per_sample)
    share = query.total / task.query.total
    return JepaBatch(View(x), [Task(View(x, pick(task.context.keep, sample)), query, share)])


@pytest.mark.parametrize(("size", "patch"), SHAPES)
@pytest.mark.parametrize("options", OPTIONS)
def test_encoder_gives_each_sample_what_it_gets_alone(
    size: tuple[int, ...], patch: tuple[int, ...], options: dict[str, Any]
) -> None:
    model, view = encoder(patch, **options), problem(size, patch).tasks[0].context
    together = model(view).x.split(CONTEXT)
    for sample, own in enumerate(together):
        single = model(View(view.x[sample : sample + 1], pick(view.keep, sample))).x
        assert relative_error(own, single) <= 1e-5


@pytest.mark.parametrize(("size", "patch"), SHAPES)
@pytest.mark.parametrize("options", OPTIONS)
def test_predictor_gives_each_target_set_what_it_gets_alone(
    size: tuple[int, ...], patch: tuple[int, ...], options: dict[str, Any]
) -> None:
    model, task = predictor(**options), problem(size, patch).tasks[0]
    context = Tokens(torch.randn(sum(CONTEXT), 24), task.context.keep)
    together = model(context, task.query)
    assert together.index is task.query
    for number, own in enumerate(together.x.split(TARGETS)):
        sample = number // 2
        single = Tokens(context.x.split(CONTEXT)[sample], pick(context.index, sample))
        assert relative_error(own, model(single, pick(task.query, number)).x) <= 1e-5


@pytest.mark.parametrize(("size", "patch"), SHAPES)
def test_loss_and_gradients_are_those_of_the_samples_alone(size: tuple[int, ...], patch: tuple[int, ...]) -> None:
    model = JEPA(encoder=encoder(patch), predictor=predictor(), target=EMA(), criterion=SmoothL1())
    noisy(model.target_encoder)
    batch = problem(size, patch)

    def loss_and_gradients(parts: list[JepaBatch]) -> list[Tensor]:
        model.zero_grad()
        losses = [model(part).loss for part in parts]
        sum(losses).backward()
        return [sum(losses), *(p.grad.clone() for p in model.parameters() if p.requires_grad)]

    together = loss_and_gradients([batch])
    apart = loss_and_gradients([alone(batch, sample) for sample in range(len(CONTEXT))])
    for mine, theirs in zip(together, apart, strict=True):
        assert relative_error(mine, theirs) <= 1e-5


def test_samples_do_not_touch_each_other() -> None:
    size, patch = SHAPES[1]
    batch = problem(size, patch)
    x = batch.target.x.clone().requires_grad_()
    context = encoder(patch)(View(x, batch.tasks[0].context.keep))
    prediction = predictor()(context, batch.tasks[0].query).x.split(TARGETS)
    for number, own in enumerate(prediction):
        gradient = torch.autograd.grad(own.square().sum(), x, retain_graph=True)[0].flatten(1).abs().sum(1)
        assert [bool(g > 0) for g in gradient] == [number // 2 == sample for sample in range(3)]


def test_only_kept_patches_are_seen() -> None:
    model, x = encoder(), inputs((8, 12))
    keep = random_indices(CONTEXT, (4, 4))
    hidden = ~keep.maps().repeat_interleave(2, 1).repeat_interleave(3, 2)[:, None]
    assert model(View(x.masked_fill(hidden, 1e6), keep)).x.equal(model(View(x, keep)).x)


def test_rows_of_paired_sequences() -> None:
    """[context | queried positions] for each queried set, spelled out."""
    context, query = random_indices([2, 1], (2, 3)), random_indices([1, 2, 2, 1], (2, 3))
    layout, rows, answers = pair_sequences(context, query)
    assert rows.tolist() == [0, 1, 3, 0, 1, 4, 5, 2, 6, 7, 2, 8]
    assert layout.lengths.tolist() == [3, 4, 3, 2]
    assert layout.total == len(rows)
    assert layout.min_length <= 2
    assert layout.max_length >= 4
    assert rows[answers].tolist() == [3, 4, 5, 6, 7, 8]


def test_queries_must_belong_to_the_context() -> None:
    context = Tokens(torch.zeros(4, 24), random_indices([2, 2], (4, 4)))
    with pytest.raises(ValueError, match=r"3 queried sets .* do not belong to 2 context sets"):
        predictor()(context, random_indices([1, 1, 1], (4, 4)))
    with pytest.raises(ValueError, match=r"grid \(2, 8\) do not belong"):
        predictor()(context, random_indices([1, 1], (2, 8)))
    with pytest.raises(TypeError, match="not motions"):
        predictor()(context, torch.zeros(2, 4))


@pytest.mark.parametrize(("size", "patch"), SHAPES)
@pytest.mark.parametrize("position", ["sincos", "learned", "rope"])
def test_other_sizes_than_in_training(size: tuple[int, ...], patch: tuple[int, ...], position: str) -> None:
    trained_grid = tuple(s // p for s, p in zip(size, patch, strict=True))
    model = encoder(patch, position=position, grid_size=trained_grid if position == "learned" else None)
    larger = tuple(s + 2 * p for s, p in zip(size, patch, strict=True))
    tokens = model(View(inputs(larger)))
    assert tokens.index.grid == tuple(g + 2 for g in trained_grid)
    assert tokens.dense().shape == (3, prod(tokens.index.grid), 24)
    assert tokens.x.isfinite().all()
    kept = random_indices([4, 4, 7], tokens.index.grid)
    assert model(View(inputs(larger), kept)).x.shape == (15, 24)


def test_learned_positions_and_their_grid_come_together() -> None:
    with pytest.raises(ValueError, match="learned positions need it"):
        encoder(position="learned")
    with pytest.raises(ValueError, match="others not"):
        encoder(grid_size=(4, 4))


@pytest.mark.parametrize("channels", [1, 4, 12])
def test_any_number_of_channels(channels: int) -> None:
    model, x = encoder(in_chans=channels), inputs((8, 12), channels=channels)
    x.requires_grad_()
    model(View(x)).x.square().sum().backward()
    assert bool((x.grad.flatten(2).abs().sum(2) > 0).all())  # every channel is looked at


def test_checkpointing_the_whole_model_changes_nothing() -> None:
    size, patch = SHAPES[1]
    batch, results = problem(size, patch), []
    for saving in (False, True):
        parts = {
            "encoder": encoder(patch, grad_checkpointing=saving),
            "predictor": predictor(grad_checkpointing=saving),
        }
        model = JEPA(**parts, target=EMA(), criterion=SmoothL1())
        loss = model(batch).loss
        results.append([loss, *torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])])
    for mine, theirs in zip(*results, strict=True):
        assert relative_error(mine, theirs) <= 1e-6


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "encoder": lambda: ViT(dim=64, depth=6, heads=2, patch_size=8),
    "learned positions": lambda: ViT(dim=64, depth=2, heads=2, patch_size=8, position="learned", grid_size=(8, 8)),
    "predictor": lambda: ViTPredictor(embed_dim=64, dim=48, depth=6, heads=2),
    "swiglu": lambda: ViT(dim=64, depth=2, heads=2, patch_size=8, position="rope", activation="swiglu"),
    "mask tokens": lambda: ViTPredictor(embed_dim=64, dim=48, depth=2, heads=2, mask_tokens=3),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_nothing_is_left_uninitialised(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own initialisers are switched off and fresh memory is NaN: only ours can make it finite."""
    for layer in (nn.Linear, nn.LayerNorm):
        monkeypatch.setattr(layer, "reset_parameters", lambda self: None)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **options: empty(*size, **options).fill_(float("nan")))
    assert nn.Linear(2, 2).weight.isnan().all()
    for parameter, values in BUILDERS[name]().named_parameters():
        assert values.isfinite().all(), parameter


@pytest.mark.parametrize("name", BUILDERS)
def test_initial_statistics(name: str) -> None:
    torch.manual_seed(0)
    for parameter, values in BUILDERS[name]().named_parameters():
        if "norm" in parameter and parameter.endswith("weight"):
            assert values.eq(1).all(), parameter
        elif parameter.endswith("bias"):
            assert values.eq(0).all(), parameter
        else:
            values = values.detach() / 0.02  # standard normal, and all within five standard errors
            assert abs(float(values.std()) - 1) < 5 / sqrt(2 * values.numel()), parameter
            assert abs(float(values.mean())) < 5 / sqrt(values.numel()), parameter
            assert float(values.abs().max()) < 7, parameter


@pytest.mark.parametrize("name", ["encoder", "predictor"])
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_depth_rescale_divides_the_last_projections(name: str, activation: Any) -> None:
    def build(depth_rescale: bool) -> nn.Module:
        torch.manual_seed(0)
        if name == "encoder":
            return ViT(dim=16, depth=3, heads=2, patch_size=8, activation=activation, depth_rescale=depth_rescale)
        return ViTPredictor(embed_dim=24, dim=16, depth=3, heads=2, activation=activation, depth_rescale=depth_rescale)

    plain, scaled = (dict(build(flag).named_parameters()) for flag in (False, True))
    for parameter, values in plain.items():
        divisor = 1.0
        if parameter.endswith(("attn.proj.weight", "mlp.fc2.weight" if activation == "gelu" else "mlp.fc3.weight")):
            divisor = sqrt(2 * (int(parameter.split("blocks.")[1].split(".")[0]) + 1))
        assert torch.allclose(scaled[parameter], values / divisor), parameter


def test_swiglu_is_gated() -> None:
    mlp, x = noisy(SwiGLU(16, 64)), torch.randn(5, 16)
    assert mlp.fc1.out_features == mlp.fc2.out_features == mlp.fc3.in_features == 48  # 2/3 of 64 in steps of 8
    hidden, gate = mlp.fc1(x), mlp.fc2(x)
    assert relative_error(mlp(x), mlp.fc3(hidden / (1 + (-hidden).exp()) * gate)) <= 1e-6


def test_each_task_has_its_mask_token() -> None:
    model = predictor(mask_tokens=2)
    task = problem(*SHAPES[1]).tasks[0]
    context = Tokens(torch.randn(sum(CONTEXT), 24), task.context.keep)
    found = [model(context, replace(task.query, task=number)).x for number in range(4)]
    assert found[0].equal(found[2])
    assert found[1].equal(found[3])
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    found[3].sum().backward()
    assert model.mask_token.grad[0].eq(0).all()
    assert model.mask_token.grad[1].ne(0).any()
    with torch.no_grad():
        model.mask_token[0] = model.mask_token[1]
    assert model(context, task.query).x.equal(found[1])
    assert ViTPredictor(embed_dim=24, dim=16, depth=1, heads=2, zero_init_mask_tokens=True).mask_token.eq(0).all()
    with pytest.raises(ValueError, match="mask_tokens=0"):
        predictor(mask_tokens=0)


def count(build: Callable[[], nn.Module]) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build().parameters())


@pytest.mark.parametrize(
    ("dim", "depth", "heads", "mlp_ratio", "patch", "channels", "expected"),
    [
        (1280, 32, 16, 4.0, (14, 14), 3, 630_434_560),  # I-JEPA ViT-H/14
        (1280, 32, 16, 4.0, (16, 16), 3, 630_664_960),  # I-JEPA ViT-H/16
        (1408, 40, 16, 48 / 11, (16, 16), 3, 1_011_092_608),  # I-JEPA ViT-g/16
        (1024, 24, 16, 4.0, (2, 16, 16), 3, 303_885_312),  # V-JEPA ViT-L/16
        (1280, 32, 16, 4.0, (2, 16, 16), 3, 631_648_000),  # V-JEPA ViT-H/16
    ],
)
def test_published_encoder_sizes(dim, depth, heads, mlp_ratio, patch, channels, expected: int) -> None:
    def build() -> nn.Module:
        return ViT(dim=dim, depth=depth, heads=heads, mlp_ratio=mlp_ratio, patch_size=patch, in_chans=channels)

    assert count(build) == expected


@pytest.mark.parametrize(
    ("embed_dim", "depth", "expected"),
    [(1280, 12, 22_279_040), (1024, 12, 22_082_176), (1408, 12, 22_377_472), (1408, 16, 29_475_328)],
)
def test_published_predictor_sizes(embed_dim: int, depth: int, expected: int) -> None:
    assert count(lambda: ViTPredictor(embed_dim=embed_dim, depth=depth, heads=16)) == expected + 384  # a mask token


def test_layout_of_indices_has_their_bounds() -> None:
    index = random_indices(CONTEXT, (4, 4))
    layout = Layout.of(index)
    assert (layout.total, layout.min_length, layout.max_length) == (16, 2, 9)
    assert Layout.of(replace(index, lengths=index.lengths)).lengths is index.lengths


@pytest.mark.parametrize("make", [encoder, predictor])
def test_epsilon_and_activation_reach_every_layer(make: Callable[..., nn.Module]) -> None:
    part = make(norm_eps=1e-3, activation="gelu_tanh")
    assert {m.eps for m in part.modules() if isinstance(m, nn.LayerNorm)} == {1e-3}
    x = torch.linspace(-3, 3, 24 * 7).view(7, 24)
    for mlp in (m for m in part.modules() if isinstance(m, Mlp)):
        x = x[:, : mlp.fc1.in_features]
        expected = mlp.fc2(nn.functional.gelu(mlp.fc1(x), approximate="tanh"))
        assert torch.equal(mlp(x), expected)
        assert not torch.equal(mlp(x), mlp.fc2(nn.functional.gelu(mlp.fc1(x))))
