"""The published V-JEPA and V-JEPA 2 with weights and inputs that follow a rule, as `test_published` for I-JEPA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from jepa.encoders import ViT
from jepa.losses import L1, PredictionVariance
from jepa.model import JEPA
from jepa.predictors import ViTPredictor
from jepa.targets import EMA
from jepa.types import Indices, JepaBatch, StepOutput, Task, View
from tests.published import ENCODER, PREDICTOR
from tests.test_published import ends, fill

GRID = (2, 4, 4)
CONTEXTS = [[[0, 1, 4, 5, 17], [2, 3, 6, 7, 24]], [[0, 31], [8, 9]]]  # task, sample, position
TARGETS = [[[10, 11, 30], [12, 13, 31]], [[1, 2, 16, 17], [0, 4, 18, 19]]]
VJEPA = {"axis_order": "first_first"}
VJEPA2 = {"position": "rope", "rope_style": "tiled"}


def published_encoder(**options) -> ViT:
    encoder = ViT(dim=32, depth=2, heads=2, patch_size=(2, 8, 8), **options)
    fill(encoder, ENCODER)
    return encoder


def published_model(mask_tokens: int, **options) -> JEPA:
    predictor = ViTPredictor(
        embed_dim=32, dim=24, depth=2, heads=2, mask_tokens=mask_tokens, zero_init_mask_tokens=True, **options
    )
    fill(predictor, PREDICTOR, mask_tokens=mask_tokens)
    return JEPA(encoder=published_encoder(**options), predictor=predictor, target=EMA(), criterion=L1())


def wave(*size: int) -> Tensor:
    x = torch.sin(0.1 * torch.arange(torch.Size(size).numel(), dtype=torch.float64))
    return x.float().view(size)


def published_batch() -> JepaBatch:
    x = wave(2, 3, 4, 32, 32)

    def indices(sets: Sequence[Sequence[int]], task: int = 0) -> Indices:
        index = Indices.of(torch.tensor(sets).flatten(), torch.tensor([len(s) for s in sets]), GRID)
        return replace(index, task=task)

    return JepaBatch(
        View(x),
        [
            Task(View(x, indices(context)), indices(target, task))
            for task, (context, target) in enumerate(zip(CONTEXTS, TARGETS, strict=True))
        ],
    )


def seen(out: StepOutput, name: str) -> list[Tensor]:
    return [task[name].dense() for task in out.intermediates["tasks"]]


def sums(x: Tensor, total: float | None, absolute: float) -> None:
    if total is not None:
        assert float(x.detach().sum()) == pytest.approx(total, abs=2e-3)
    assert float(x.detach().abs().sum()) == pytest.approx(absolute, rel=1e-5)


def test_vjepa() -> None:
    out = published_model(2, **VJEPA)(published_batch())
    target = out.intermediates["target"].dense()
    sums(target, None, 1594.406018)
    ends(target, [-1.688194, 0.125212, 0.425697, 0.554274])
    context, prediction = seen(out, "context"), seen(out, "prediction")
    sums(context[0], None, 257.517065)
    sums(context[1], None, 102.854562)
    sums(prediction[0], -5.761676, 174.116494)
    ends(prediction[0], [-1.197985, -0.383203, 1.688442, -0.764230])
    sums(prediction[1], -6.185615, 183.711455)
    ends(prediction[1], [-1.246160, 0.397574, 1.017242, -0.926592])
    assert float(out.loss.detach()) == pytest.approx(1.10889268, rel=1e-5)


def test_variance_term_of_vjepa() -> None:
    model = published_model(2, **VJEPA)
    model.regularizers["spread"] = PredictionVariance(weight=0.5)
    out = model(published_batch())
    assert float(out.terms["prediction_variance"]) == pytest.approx(0.5 * 0.87782460, rel=1e-5)
    assert float(out.loss.detach()) == pytest.approx(1.10889268 + 0.5 * 0.87782460, rel=1e-5)


def test_vjepa2() -> None:
    model = published_model(1, **VJEPA2)
    with torch.no_grad():
        tokens = model.encoder(View(wave(2, 3, 4, 32, 32))).dense()
    sums(tokens, 68.039031, 1692.538354)
    ends(tokens, [-1.485603, 0.556176, 0.573537, 0.737377], [-0.288406, -0.673184])
    out = model(published_batch())
    prediction = seen(out, "prediction")
    sums(prediction[0], 0.306139, 141.932662)
    ends(prediction[0], [-0.053458, -0.998185, 1.110533, 0.383213])
    sums(prediction[1], None, 188.540382)
    assert float(out.loss.detach()) == pytest.approx(1.12356377, rel=1e-5)


def test_vjepa2_on_another_shape() -> None:
    with torch.no_grad():
        tokens = published_encoder(**VJEPA2)(View(wave(1, 3, 4, 48, 32)))
    assert tokens.index.grid == (2, 6, 4)
    sums(tokens.x, 51.354794, 1269.065203)
    ends(tokens.x, [-1.393159, 0.662962, 0.504739, 0.657779])


def test_vjepa2_with_swiglu() -> None:
    encoder = published_encoder(**VJEPA2, activation="swiglu")
    assert encoder.transformer.blocks[0].mlp.fc1.out_features == 88
    with torch.no_grad():
        tokens = encoder(View(wave(2, 3, 4, 32, 32))).x
    sums(tokens, 44.140553, 1833.485884)
    ends(tokens, [-1.690188, 0.324482, 0.595139, 1.606096])


def test_correct_rotations_are_not_the_published_ones() -> None:
    x = View(wave(2, 3, 4, 32, 32))
    with torch.no_grad():
        published, correct = (published_encoder(position="rope", rope_style=s)(x).x for s in ("tiled", "interleaved"))
    assert float((published - correct).abs().max()) > 0.05
