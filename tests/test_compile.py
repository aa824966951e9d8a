"""Compiled blocks: equal to eager ones, whole, and compiled once for all lengths."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from jepa.encoders import ViT
from jepa.losses import SmoothL1
from jepa.model import JEPA
from jepa.nn.attention import Layout
from jepa.nn.blocks import Transformer, compile_blocks
from jepa.predictors import ViTPredictor
from jepa.targets import EMA
from jepa.types import JepaBatch, Task, View
from tests.published import relative_error
from tests.ragged import random_indices

GRID, SAMPLES = (8, 8), 3
EQUAL_FIRST = ([20, 20, 20], [5] * 6)
EQUAL_LATER = ([31, 31, 31], [7] * 6)
RAGGED_FIRST = ([20, 31, 17], [4, 6, 5, 5, 9, 4])
RAGGED_LATER = [([25, 14, 33], [8, 6, 2, 3, 5, 7]), ([11, 40, 12], [3, 2, 4, 9, 6, 5])]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def model_with(**options) -> JEPA:
    torch.manual_seed(0)
    return JEPA(
        encoder=ViT(dim=48, depth=3, heads=4, patch_size=4, **options),
        predictor=ViTPredictor(embed_dim=48, dim=24, depth=2, heads=4, **options),
        target=EMA(),
        criterion=SmoothL1(),
    )


def batch_of(lengths: tuple[list[int], list[int]]) -> JepaBatch:
    x = torch.randn(SAMPLES, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    context, targets = lengths
    return JepaBatch(View(x), [Task(View(x, random_indices(context, GRID)), random_indices(targets, GRID, seed=1))])


def loss_and_gradients(model: JEPA, batch: JepaBatch) -> list[torch.Tensor]:
    torch.manual_seed(0)  # the same drops
    loss = model(batch).loss
    return [loss, *torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])]


@pytest.mark.parametrize(
    "options", [{}, {"drop_path": 0.3, "grad_checkpointing": True, "position": "rope", "activation": "swiglu"}]
)
def test_new_lengths_and_depths_compile_nothing_new(options: dict) -> None:
    eager = model_with(**options)
    compiled = copy.deepcopy(eager)
    compile_blocks(compiled, backend="aot_eager")

    def compare(lengths: tuple[list[int], list[int]]) -> int:
        batch = batch_of(lengths)
        for mine, theirs in zip(loss_and_gradients(compiled, batch), loss_and_gradients(eager, batch), strict=True):
            assert relative_error(mine, theirs) <= 1e-5
        return counters["stats"]["unique_graphs"]

    compare(RAGGED_FIRST)
    known = compare(EQUAL_FIRST)
    assert 1 <= known <= 5  # targets, and context and predictor each with ragged and with equal lengths
    for lengths in (*RAGGED_LATER, EQUAL_LATER):
        assert compare(lengths) == known
    assert not counters["graph_break"]
    with torch.no_grad():
        compiled.eval()(batch_of(RAGGED_FIRST))  # probes: without gradients


@pytest.mark.skipif(not shutil.which("g++"), reason="the CPU code generator needs a compiler")
def test_generated_code_equals_eager() -> None:
    torch.manual_seed(0)
    eager = Transformer(16, depth=1, heads=2)
    compiled = copy.deepcopy(eager)
    compile_blocks(compiled)
    for lengths in ([5, 2, 10], [8, 11, 3]):  # none of them a size of the weights
        layout = Layout(torch.tensor(lengths), sum(lengths), min(lengths), max(lengths))
        x, weights, results = torch.randn(sum(lengths), 16), torch.randn(sum(lengths), 16), []
        for model in (compiled, eager):
            leaf = x.clone().requires_grad_()
            out = model(leaf, layout)
            results.append([out, *torch.autograd.grad((out * weights).sum(), [leaf, *model.parameters()])])
        for mine, theirs in zip(*results, strict=True):
            assert relative_error(mine, theirs) <= 1e-5
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
