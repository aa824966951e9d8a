"""The movement probe: what it is given, what it finds, and what no linear probe can find."""

from __future__ import annotations

from math import pi

import pytest
import torch
from torch import Tensor

from jepa.data import Saccades
from jepa.data.views import warp
from jepa.encoders import ViT
from jepa.maskers import Saccade
from jepa.probes.base import Labelled
from jepa.probes.movement import MOVEMENT, movement_probe, pair_features, token_features


def angles(count: int, upright: bool) -> tuple[Labelled, Labelled]:
    """Scenes that say perfectly which way up they are seen, before and after a turn of up to 40 degrees."""
    random = torch.Generator().manual_seed(0)
    parts = []
    for _ in range(2):
        before = torch.zeros(count) if upright else 2 * pi * torch.rand(count, generator=random)
        move = torch.zeros(count, 5)
        move[:, 0] = 40 * (2 * torch.rand(count, generator=random) - 1)
        after = before - move[:, 0].deg2rad()
        parts.append(Labelled(torch.stack((before.cos(), before.sin(), after.cos(), after.sin()), 1), move))
    return parts[0], parts[1]


def test_a_turn_is_read_where_scenes_have_an_upright_and_nowhere_else() -> None:
    assert movement_probe(*angles(2000, upright=True))["rotation"].score > 0.99
    assert abs(movement_probe(*angles(2000, upright=False))["rotation"].score) < 0.01


def test_components_are_scored_apart_and_only_those_that_move() -> None:
    move = Saccade(rotation=20, translation=0.2).sample(600, (1,), torch.Generator().manual_seed(0))[0].motion
    place = torch.randn(600, 2, generator=torch.Generator().manual_seed(1))
    pairs = torch.cat((place, place - move[:, 1:3]), 1)  # an object's place in either view
    train, test = Labelled(pairs[:400], move[:400]), Labelled(pairs[400:], move[400:])
    found = movement_probe(train, test)
    assert found.keys() == {"rotation", "translation"}
    assert found["translation"].score > 0.99
    assert found["translation"].details.keys() >= {"r2/right", "r2/down"}
    assert found["rotation"].score < 0.05


def test_pairs_are_the_views_that_training_sees() -> None:
    cut = Saccades(mean=[0.5] * 3, std=[0.5] * 3, size=16, translation=0.25)
    moves = Saccade(translation=0.25).sample(4, (1,), torch.Generator().manual_seed(0))[0].motion
    x = torch.randint(256, (4, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    asked: list[int] = []

    def sample(count: int) -> Tensor:
        asked.append(count)
        return moves

    found = pair_features(cut, lambda views: {"last": views.flatten(1)}, sample)(x)
    normal = cut.normalize(x)
    before, after = found["last"].split(3 * 16 * 16, dim=1)
    torch.testing.assert_close(before, normal[:, :, 4:20, 4:20].flatten(1))
    torch.testing.assert_close(after, warp(normal, moves, (16, 16)).flatten(1))
    assert found[MOVEMENT].equal(moves)
    assert asked == [4]


@pytest.mark.parametrize(("size", "cells"), [((16, 16), 4), ((32, 24), 9)])
def test_tokens_are_averaged_over_the_view_and_over_its_parts(size: tuple[int, int], cells: int) -> None:
    torch.manual_seed(0)
    encoder = ViT(dim=12, depth=1, heads=2, patch_size=8).eval()
    found = token_features(encoder, torch.randn(2, 3, *size))
    assert found["last"].shape == (2, 12)
    parts = found["cells"].view(2, 12, cells)
    if cells == 4:  # one token each
        torch.testing.assert_close(parts.mean(2), found["last"])
    assert parts.std(2).mean() > 0.1
