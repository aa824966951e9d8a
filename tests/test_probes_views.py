"""Attention maps, and nearest neighbours by content."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from jepa.encoders import ViT
from jepa.interfaces import Encoder
from jepa.nn.attention import Attention, Layout
from jepa.nn.rotary import rotate
from jepa.probes.attention_maps import attention_layers, attention_weights
from jepa.probes.neighbours import centred, nearest
from jepa.types import Indices, Tokens, View


@pytest.fixture(params=["sincos", "rope"])
def vit(request: pytest.FixtureRequest) -> ViT:
    torch.manual_seed(0)
    return ViT(dim=24, depth=3, heads=2, patch_size=4, position=request.param).eval()


def test_weights_are_the_softmax_over_keys_layer_by_layer(vit: ViT) -> None:
    with torch.no_grad():
        for block in vit.transformer.blocks:
            block.attn.qkv.weight.mul_(20)  # far from uniform attention
    x = torch.randn(2, 3, 8, 12)
    found = attention_weights(vit, View(x), (0, 1, -1))
    assert [w.shape for w in found] == [(2, 2, 6, 6)] * 3
    hidden, layout, _ = vit._embed(View(x))
    for block, weights in zip(vit.transformer.blocks, found, strict=True):
        q, k, _ = block.attn.qkv(block.norm1(hidden)).unflatten(-1, (3, 2, 12)).unbind(1)
        if layout.rotary is not None:
            q, k = rotate(q, layout.rotary), rotate(k, layout.rotary)
        for sample in range(2):
            for head in range(2):
                rows = slice(6 * sample, 6 * sample + 6)
                scores = q[rows, head] @ k[rows, head].T / 12**0.5
                assert torch.allclose(weights[sample, head], scores.softmax(-1), atol=1e-5)
        assert torch.allclose(weights.sum(-1), torch.ones(2, 2, 6))
        assert not torch.allclose(weights, weights.transpose(-2, -1), atol=1e-2)  # from and towards differ
        hidden = block(hidden, layout)


def test_views_that_keep_a_part_show_that_part(vit: ViT) -> None:
    keep = Indices.of(torch.tensor([0, 2, 1, 3]), torch.tensor([2, 2]), (2, 2))
    assert attention_weights(vit, View(torch.randn(2, 3, 8, 8), keep))[0].shape == (2, 2, 2, 2)
    ragged = Indices.of(torch.tensor([0, 1, 3]), torch.tensor([1, 2]), (2, 2))
    with pytest.raises(ValueError, match="1 to 2 tokens"):
        attention_weights(vit, View(torch.randn(2, 3, 8, 8), ragged))


def test_layers_that_do_not_exist(vit: ViT) -> None:
    with pytest.raises(ValueError, match="ViT has 3 self-attention layers"):
        attention_weights(vit, View(torch.randn(1, 3, 8, 8)), (3,))


class Scaled(Attention):
    """Attention that does more than the maps would show."""

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        return super().forward(x, layout) * 1.5


def test_a_layer_that_computes_more_is_refused(vit: ViT) -> None:
    torch.manual_seed(0)
    vit.transformer.blocks[2].attn = Scaled(24, 2)
    assert len(attention_weights(vit, View(torch.randn(1, 3, 8, 8)), (1,))) == 1
    with pytest.raises(ValueError, match="Scaled computes more"):
        attention_weights(vit, View(torch.randn(1, 3, 8, 8)))


class Flat(Encoder):
    """No attention at all."""

    embed_dim = 3

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(3, 3)

    def grid(self, input_size: object) -> tuple[int, ...]:
        return (1,)

    def forward(self, view: View) -> Tokens:
        return Tokens(self.proj(view.x.mean((2, 3))), Indices.all(len(view.x), (1,)))


def test_an_encoder_without_attention() -> None:
    assert attention_layers(Flat()) == []


def test_nearest_is_exact_and_leaves_out_own_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jepa.probes.neighbours._CHUNK", 100)  # several chunks
    bank, x = torch.randn(40, 5), torch.randn(9, 5)
    sample = torch.arange(40) % 10
    cosine = torch.nn.functional.cosine_similarity(x[:, None], bank[None], dim=-1)
    values, rows = nearest(bank, x, 3)
    assert torch.equal(rows, cosine.argsort(dim=1, descending=True)[:, :3])
    assert torch.allclose(values, cosine.gather(1, rows), atol=1e-6)
    _, rows = nearest(bank, bank[:9], 1, bank_sample=sample, sample=sample[:9])
    assert bool((sample[rows[:, 0]] != sample[:9]).all())
    assert torch.equal(nearest(bank, bank[:9], 1)[1][:, 0], torch.arange(9))


def test_too_few_neighbours() -> None:
    bank = torch.randn(4, 2)
    with pytest.raises(ValueError, match="4 rows, not 5"):
        nearest(bank, bank, 5)
    with pytest.raises(ValueError, match="fewer than 4 rows from other samples"):
        nearest(bank, bank, 4, bank_sample=torch.arange(4), sample=torch.arange(4))


def test_content_is_what_positions_do_not_share() -> None:
    position, content = torch.randn(1, 6, 3) * 100, torch.randn(5, 6, 3)
    found, mean = centred(position + content)
    assert torch.allclose(found, content - content.mean(0), atol=1e-3)
    assert torch.allclose(mean, position[0] + content.mean(0), atol=1e-3)
