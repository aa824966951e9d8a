"""The published I-JEPA with weights and inputs that follow a rule: key map, layouts, axis order, epsilons at once."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from jepa.encoders import ViT
from jepa.losses import SmoothL1
from jepa.model import JEPA
from jepa.predictors import ViTPredictor
from jepa.targets import EMA
from jepa.types import Indices, JepaBatch, StepOutput, Task, View
from tests.published import ENCODER, PREDICTOR, load_published

GRID, SAMPLES, TARGETS = (4, 4), 2, 3
CONTEXT = [[0, 1, 4, 5, 9], [2, 3, 6, 7, 8]]
SECOND_CONTEXT = [[0, 1, 2, 3, 8], [1, 5, 6, 10, 11]]
BLOCKS = [[[10, 11], [12, 13]], [[14, 15], [0, 4]], [[2, 3], [5, 9]]]  # block, sample, position


def filled(key: str, shape: torch.Size) -> Tensor:
    """0.2 sin(0.7 i + key), plus one for scales of normalisation."""
    offset = sum(map(ord, key)) % 97
    values = 0.2 * torch.sin(0.7 * torch.arange(shape.numel(), dtype=torch.float64) + offset)
    if len(shape) == 1 and key.endswith("weight"):
        values += 1
    return values.float().view(shape)


def fill(part: nn.Module, rules: list[tuple[str, str]], mask_tokens: int = 0) -> None:
    """Weights by published key, through the same key map that loads published checkpoints.

    `mask_tokens` of them have keys of their own, as in V-JEPA; I-JEPA's only one has not.
    """
    weights = {}
    for ours, value in part.state_dict().items():
        key = ours.removeprefix("transformer.")
        if rules is PREDICTOR:
            key = re.sub(r"^(blocks|norm|embed|proj)\.", r"predictor_\1.", key)
        if key == "mask_token" and mask_tokens:
            weights |= {f"mask_tokens.{i}": filled(f"mask_tokens.{i}", value[:1].shape) for i in range(mask_tokens)}
        else:
            weights[key] = filled(key, value.shape)
    assert load_published(part, weights, rules).keys() == weights.keys()


def published_model() -> JEPA:
    model = JEPA(
        encoder=ViT(dim=32, depth=2, heads=2, patch_size=8),
        predictor=ViTPredictor(embed_dim=32, dim=24, depth=2, heads=2),
        target=EMA(),
        criterion=SmoothL1(),
    )
    fill(model.encoder, ENCODER)
    fill(model.target_encoder, ENCODER)
    fill(model.predictor, PREDICTOR)
    return model


def indices(sets: list[list[int]]) -> Indices:
    return Indices.of(torch.tensor(sets).flatten(), torch.tensor([len(s) for s in sets]), GRID)


def published_batch(*contexts: list[list[int]]) -> JepaBatch:
    x = torch.sin(0.1 * torch.arange(SAMPLES * 3 * 32 * 32, dtype=torch.float64)).float().view(SAMPLES, 3, 32, 32)
    query = indices([block[sample] for sample in range(SAMPLES) for block in BLOCKS])
    return JepaBatch(View(x), [Task(View(x, indices(context)), query) for context in contexts])


def in_published_order(*predictions: Tensor) -> Tensor:
    """Ours, per context mask (sample, block, K, D); the published rows are (block, context mask, sample)."""
    stacked = torch.stack([p.unflatten(0, (SAMPLES, TARGETS)) for p in predictions])  # (E, B, M, K, D)
    return stacked.permute(2, 0, 1, 3, 4).flatten(0, 2)


def ends(values: Tensor, first: list[float], last: list[float] | None = None) -> None:
    flat = values.detach().flatten()
    assert flat[: len(first)].tolist() == pytest.approx(first, abs=2e-5)
    if last:
        assert flat[-len(last) :].tolist() == pytest.approx(last, abs=2e-5)


def predictions(out: StepOutput) -> Tensor:
    return in_published_order(*(seen["prediction"].dense() for seen in out.intermediates["tasks"]))


def test_encoder_and_targets() -> None:
    model, batch = published_model(), published_batch(CONTEXT)
    with torch.no_grad():
        tokens = model.encoder(batch.target).dense()
    assert tokens.shape == (2, 16, 32)
    assert float(tokens.sum()) == pytest.approx(34.736662, abs=1e-3)
    assert float(tokens.abs().sum()) == pytest.approx(857.818112, rel=1e-5)
    ends(tokens, [-1.694133, 0.385469, 0.263972, 0.353025], [0.071797, -0.645033])
    targets = model.targets(batch.target)
    ends(targets.x, [-1.681418, 0.341080, 0.222919, 0.309527])
    gathered = in_published_order(targets.at(batch.tasks[0].query).view(6, 2, 32))
    ends(gathered, [-1.183077, 0.546634, 0.499343, 0.330635])


def test_prediction_loss_and_gradients() -> None:
    model, batch = published_model(), published_batch(CONTEXT)
    out = model(batch)
    context = out.intermediates["tasks"][0]["context"].dense()
    assert float(context.abs().sum()) == pytest.approx(264.268301, rel=1e-5)
    ends(context, [-1.677392, 0.387008, 0.240805, 0.377270])
    predicted = predictions(out)
    assert predicted.shape == (6, 2, 32)
    assert float(predicted.sum()) == pytest.approx(19.002832, abs=1e-3)
    assert float(predicted.abs().sum()) == pytest.approx(380.843994, rel=1e-5)
    ends(predicted, [1.390980, -1.261923, -0.090908, 1.753908], [1.259977, 0.543651])
    assert float(out.loss.detach()) == pytest.approx(0.83618277, rel=1e-5)
    out.loss.backward()
    for parameter, norm in [
        (model.encoder.patch_embed.proj.weight, 0.02311284),
        (model.predictor.mask_token, 0.26494366),
        (model.encoder.transformer.blocks[0].attn.qkv.weight, 0.00386177),
    ]:
        assert float(parameter.grad.norm()) == pytest.approx(norm, rel=1e-5)


def test_two_context_masks_are_two_tasks() -> None:
    out = published_model()(published_batch(CONTEXT, SECOND_CONTEXT))
    predicted = predictions(out)
    assert predicted.shape == (12, 2, 32)
    assert float(predicted.sum()) == pytest.approx(38.005800, abs=1e-3)
    assert float(predicted.abs().sum()) == pytest.approx(762.007843, rel=1e-5)
    ends(predicted, [1.390980, -1.261923], [1.264866, 0.542805])
    assert float(out.loss.detach()) == pytest.approx(0.83645445, rel=1e-5)
