"""The experiments that docs/results.md reports can still be run: every arm is a recipe, and its parts compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from benchmarks.small_data.parts import OverlappingStem, VariedViT
from jepa import recipe as recipes
from jepa.build import build, build_model
from jepa.data.batches import pose
from jepa.encoders import ViT
from jepa.types import Indices, JepaBatch, View

ROOT = Path(__file__).parents[1]
FOUND = {path: yaml.safe_load(path.read_text()) for path in sorted((ROOT / "benchmarks").glob("*/*.yaml"))}
SWEEPS = {path: found for path, found in FOUND.items() if "arms" in found}
ARMS = [pytest.param(sweep, arm, id=f"{path.stem}-{arm}") for path, sweep in SWEEPS.items() for arm in sweep["arms"]]
CLIP, PATCH, GRID = (4, 16, 32), (2, 4, 8), (2, 4, 4)


@pytest.mark.parametrize(("sweep", "arm"), ARMS)
def test_every_arm_is_a_recipe_and_parts_of_its_own_learn(sweep: dict[str, Any], arm: str):
    given = [*sweep.get("overrides", []), *sweep["arms"][arm]]
    recipe = recipes.load_recipe([f"recipe={sweep['recipe']}", *given])
    if "benchmarks." not in str(recipe):
        return
    model, masker = build_model(recipe), build(recipe["masker"], "masker")
    size = recipe["data"]["size"]
    x = torch.randn(2, 3, *([size, size] if isinstance(size, int) else size))
    drawn = masker.sample(2, model.encoder.grid(x.shape[2:]), torch.Generator().manual_seed(0))
    loss = model(JepaBatch(View(x), [pose(x, task) for task in drawn])).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def stem() -> OverlappingStem:
    torch.manual_seed(0)
    return OverlappingStem(3, PATCH, 16)


def test_overlapping_convolutions_of_a_whole_input_are_plain_ones():
    ours, x = stem(), torch.randn(2, 3, *CLIP)
    plain = x
    for conv, norm, stride in zip(ours.convs, ours.norms, [(1, 1, 2), (1, 2, 2), (2, 2, 2)], strict=True):
        plain = torch.nn.functional.conv3d(plain, conv.weight, stride=stride, padding=1)
        mean, var = plain.mean((0, 2, 3, 4), keepdim=True), plain.var((0, 2, 3, 4), correction=0, keepdim=True)
        plain = torch.nn.functional.gelu((plain - mean) / (var + norm[0].eps).sqrt())
    expected = ours.proj(plain.flatten(2).mT).flatten(0, 1)
    torch.testing.assert_close(ours(x, Indices.all(2, GRID)), expected, rtol=1e-4, atol=1e-5)


def test_overlapping_convolutions_do_not_see_what_is_hidden():
    keep = torch.rand(3, *GRID, generator=torch.Generator().manual_seed(1)) < 0.4
    index = Indices.from_maps(keep)
    seen = keep[:, None].repeat_interleave(2, 2).repeat_interleave(4, 3).repeat_interleave(8, 4)
    x = torch.randn(3, 3, *CLIP)
    other = torch.where(seen, x, 100 * torch.randn_like(x)).requires_grad_()
    ours, same = stem(), stem()
    torch.testing.assert_close(same(other, index), ours(x, index), rtol=0, atol=0)
    for a, b in zip(ours.buffers(), same.buffers(), strict=True):
        assert torch.equal(a, b)  # statistics too
    same(other, index).square().sum().backward()
    assert other.grad is not None
    seen = seen.expand_as(x)
    assert other.grad[~seen].eq(0).all()
    assert other.grad[seen].ne(0).float().mean() > 0.99


def test_a_varied_vit_is_a_vit_unless_told_otherwise():
    shape = {"dim": 24, "depth": 1, "heads": 2, "patch_size": PATCH}
    plain, x = ViT(**shape), torch.randn(2, 3, *CLIP)
    same, smaller = VariedViT(**shape), VariedViT(**shape, position_scale=0.1)
    same.load_state_dict(plain.state_dict())
    smaller.load_state_dict(plain.state_dict())
    torch.testing.assert_close(same(View(x)).x, plain(View(x)).x)
    assert not torch.allclose(smaller(View(x)).x, plain(View(x)).x)
