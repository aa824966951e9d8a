"""Finding one modality by the other with attention to tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from jepa.probes.contrastive import ContrastiveSettings, Towers, attended
from jepa.probes.retrieval import mapped

QUICK = ContrastiveSettings(heads=4, width=16, lrs=(3e-3,), batch_size=32, steps=600)


def pairs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Tokens that share one of 64 codes, in a token that a flag marks and that lies anywhere; the rest is noise."""
    random = torch.Generator().manual_seed(seed)
    codes = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    chosen = torch.randint(64, (count,), generator=random)
    sides = []
    for length, flag in ((9, 0), (5, 1)):
        x = torch.randn(count, length, 8, generator=random)
        x[:, :, flag] = 0.1 * x[:, :, flag]
        place = torch.randint(length, (count,), generator=random)
        x[torch.arange(count), place] = torch.cat([torch.zeros(count, 2), codes[chosen]], dim=1)
        x[torch.arange(count), place, flag] = 4
        sides.append(x)
    return sides[0], sides[1]


def test_attention_finds_what_a_mean_has_lost() -> None:
    train, test = pairs(1500, 1), pairs(64, 2)
    forth, back = attended(train, test, QUICK)
    linear = mapped((train[0].mean(1), train[1].mean(1)), (test[0].mean(1), test[1].mean(1)), 0)
    assert min(forth[10], back[10]) > 0.9 > 2 * max(linear[0][10], linear[1][10])  # chance is 10 / 64


def test_the_same_seed_finds_the_same() -> None:
    few = replace(QUICK, lrs=(3e-3, 1e-3), steps=20)
    first, again, other = (attended(pairs(100, 1), pairs(40, 2), few, seed=seed) for seed in (0, 0, 1))
    assert first == again != other


def test_pairs_that_have_nothing_in_common_are_found_by_chance() -> None:
    train, test = pairs(300, 1), pairs(200, 2)
    shuffled = (train[0], train[1][torch.randperm(300, generator=torch.Generator().manual_seed(0))])
    forth, back = attended(shuffled, test, replace(QUICK, steps=100))
    assert max(forth[10], back[10]) < 0.12  # chance is .05


def test_loss_of_towers_is_the_cross_entropy_of_both_directions() -> None:
    torch.manual_seed(0)
    towers = Towers((8, 12), ContrastiveSettings(heads=4, width=16, temperature=0.1))
    x = torch.randn(6, 3, 8), torch.randn(6, 7, 12)
    one, other = towers(x)
    assert one.shape == other.shape == (6, 16)
    assert torch.allclose(one.norm(dim=1), torch.ones(6))
    shares = (10 * one @ other.T).exp()
    own = shares.diagonal()
    expected = -((own / shares.sum(1)).log() + (own / shares.sum(0)).log()).mean() / 2
    assert torch.allclose(towers.loss(x), expected, atol=1e-5)
    towers.loss(x).backward()
    assert all(p.grad is not None for p in towers.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: (a[:50], b), "are not pairs"),
        (lambda a, b: (a.mean(1), b), "are not pairs"),
        (lambda a, b: (a.index_fill(0, torch.tensor([3]), torch.nan), b), "1 of 100 feature rows hold NaN"),
    ],
)
def test_tokens_that_cannot_be_used(change, message: str) -> None:
    good = pairs(100, 1)
    with pytest.raises(ValueError, match=message):
        attended(change(*good), good, QUICK)
    with pytest.raises(ValueError, match=message):
        attended(good, change(*good), QUICK)
