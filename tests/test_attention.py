"""Attention within ragged sequences: all backends against the plain formulation, and blocks built on it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jepa.nn.attention import Attention, Backend, Layout, choose_backend, ragged_attention
from jepa.nn.blocks import Block, Transformer, drop_path_factors
from tests.published import relative_error

HEADS, WIDTH = 2, 8
RAGGED, EQUAL = [5, 1, 9, 3], [6, 6, 6]


def layout_of(lengths: list[int]) -> Layout:
    return Layout(torch.tensor(lengths), sum(lengths), min(lengths), max(lengths))


def plain_attention(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """Each sequence on its own, in the textbook's words."""
    parts = []
    for q1, k1, v1 in zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True):
        scores = torch.einsum("qhd,khd->hqk", q1, k1) / q.shape[-1] ** 0.5
        parts.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v1))
    return torch.cat(parts)


def projections(total: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Tensor]:
    torch.manual_seed(0)
    joint = torch.randn(total, 3, HEADS, WIDTH, dtype=dtype, device=device)  # strided views, as from one projection
    return [part.requires_grad_() for part in joint.unbind(1)]


def output_and_gradients(attend, inputs: list[Tensor]) -> list[Tensor]:
    out = attend(*inputs)
    weights = torch.linspace(-1, 1, out.numel(), device=out.device, dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad((out * weights).sum(), inputs)]


@pytest.mark.parametrize(
    ("lengths", "backend"),
    [(EQUAL, "equal"), (EQUAL, "padded"), (RAGGED, "padded"), ([1], "equal"), ([1, 2], "padded")],
)
def test_backends_equal_the_plain_formulation(lengths: list[int], backend: Backend) -> None:
    inputs, layout = projections(sum(lengths)), layout_of(lengths)
    ours = output_and_gradients(lambda q, k, v: ragged_attention(q, k, v, layout, backend), inputs)
    plain = output_and_gradients(lambda q, k, v: plain_attention(q, k, v, lengths), inputs)
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)  # one token alone: two gradients are nothing


def test_padded_bounds_need_not_be_tight() -> None:
    """A predictor's layout only knows bounds of its lengths: a longer maximum changes nothing."""
    inputs, tight = projections(sum(RAGGED)), layout_of(RAGGED)
    loose = Layout(tight.lengths, tight.total, 1, max(RAGGED) + 4)
    ours = ragged_attention(*inputs, loose)
    assert relative_error(ours, plain_attention(*inputs, RAGGED)) <= 1e-6


@pytest.mark.parametrize("lengths", [EQUAL, RAGGED])
def test_half_precision_on_the_cpu(lengths: list[int]) -> None:
    """Under autocast too: what goes in half comes out half, computed in single precision."""
    inputs, layout = projections(sum(lengths), torch.bfloat16), layout_of(lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = output_and_gradients(lambda q, k, v: ragged_attention(q, k, v, layout), inputs)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    plain = output_and_gradients(lambda q, k, v: plain_attention(q, k, v, lengths), exact)
    for mine, theirs in zip(ours, plain, strict=True):
        assert mine.dtype == torch.bfloat16
        assert relative_error(mine, theirs) <= 1e-2  # bfloat16 keeps 8 bits


@pytest.mark.skipif(not torch.cuda.is_available(), reason="varlen attention runs on CUDA only")
def test_varlen_equals_the_plain_formulation() -> None:
    layout = layout_of(RAGGED)
    layout = Layout(layout.lengths.cuda(), layout.total, layout.min_length, layout.max_length)
    inputs = projections(sum(RAGGED), torch.bfloat16, "cuda")
    assert choose_backend(inputs[0], layout) == "varlen"
    ours = output_and_gradients(lambda q, k, v: ragged_attention(q, k, v, layout), inputs)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    plain = output_and_gradients(lambda q, k, v: plain_attention(q, k, v, RAGGED), exact)
    for mine, theirs in zip(ours, plain, strict=True):
        assert relative_error(mine, theirs) <= 2e-2  # bfloat16 keeps 8 bits


@pytest.mark.parametrize("returns_tuple", [False, True])
def test_varlen_is_called_with_what_it_asks_for(monkeypatch: pytest.MonkeyPatch, returns_tuple: bool) -> None:
    """The kernel needs CUDA: here a reference takes its place and checks the arguments."""

    def kernel(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **options):
        assert not options
        for tensor in (query, key, value):
            assert tensor.shape == (sum(RAGGED), HEADS, WIDTH)
            assert tensor.is_contiguous()
        for ends in (cu_seq_q, cu_seq_k):
            assert ends.dtype == torch.int32
            assert ends.tolist() == [0, 5, 6, 15, 18]
        assert (max_q, max_k) == (9, 9)
        out = plain_attention(query, key, value, RAGGED)
        return (out, torch.zeros(())) if returns_tuple else out

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    inputs = projections(sum(RAGGED))
    ours = output_and_gradients(lambda q, k, v: ragged_attention(q, k, v, layout_of(RAGGED), "varlen"), inputs)
    plain = output_and_gradients(lambda q, k, v: plain_attention(q, k, v, RAGGED), inputs)
    for mine, theirs in zip(ours, plain, strict=True):
        assert mine.equal(theirs)


def test_choice_of_backend() -> None:
    q = torch.zeros(18, HEADS, WIDTH)
    assert choose_backend(q, layout_of([9, 9])) == "equal"
    assert choose_backend(q, layout_of(RAGGED)) == "padded"
    assert choose_backend(q.bfloat16(), layout_of(RAGGED)) == "padded"  # not on CUDA


def test_joint_projection_is_laid_out_as_published() -> None:
    """Rows of the joint weight: all of q, then k, then v; within each, head after head."""
    torch.manual_seed(0)
    dim = HEADS * WIDTH
    attention, x = Attention(dim, HEADS), torch.randn(18, dim)
    q, k, v = (
        torch.nn.functional.linear(x, w, b).view(-1, HEADS, WIDTH)
        for w, b in zip(attention.qkv.weight.split(dim), attention.qkv.bias.split(dim), strict=True)
    )
    expected = attention.proj(plain_attention(q, k, v, RAGGED).flatten(1))
    assert relative_error(attention(x, layout_of(RAGGED)), expected) <= 1e-6


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="heads=3 does not divide the width 16"):
        Attention(16, 3)


def test_drop_path_drops_whole_sequences_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    sequences, rate = 4000, 0.25
    factors = drop_path_factors(rate, sequences, torch.zeros(1))
    assert factors.shape == (2, sequences)
    assert set(factors.flatten().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    for branch in factors:
        assert abs(float((branch == 0).float().mean()) - rate) < 4 * (rate * (1 - rate) / sequences) ** 0.5
    assert not factors[0].equal(factors[1])


def test_factors_scale_the_branches_of_their_sequence() -> None:
    torch.manual_seed(0)
    block, layout, x = Block(16, 2), layout_of(RAGGED), torch.randn(18, 16)
    factors = torch.tensor([[0.0, 2.0, 1.0, 0.0], [0.0, 1.0, 3.0, 1.0]])
    out, seen = block(x, layout, factors).split(RAGGED), block.attn(block.norm1(x), layout).split(RAGGED)
    for own, before, branch, (first, second) in zip(out, x.split(RAGGED), seen, factors.T.tolist(), strict=True):
        middle = before + first * branch
        assert relative_error(own, middle + second * block.mlp(block.norm2(middle))) <= 1e-6
    assert out[0].equal(x[:5])  # dropped altogether


def test_drop_path_is_for_training_only() -> None:
    torch.manual_seed(0)
    dropping, plain, x = Transformer(16, 2, 2, drop_path=0.9), Transformer(16, 2, 2), torch.randn(18, 16)
    plain.load_state_dict(dropping.state_dict())
    expected = plain(x, layout_of(RAGGED))
    assert dropping.eval()(x, layout_of(RAGGED)).equal(expected)
    assert not dropping.train()(x, layout_of(RAGGED)).equal(expected)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 2.0])
def test_drop_path_rate_must_leave_something(rate: float) -> None:
    with pytest.raises(ValueError, match="drop_path"):
        Transformer(16, 2, 2, drop_path=rate)


def test_drop_path_rates_rise_linearly() -> None:
    assert Transformer(8, depth=5, heads=2, drop_path=0.4).drop_rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_block_is_pre_norm() -> None:
    torch.manual_seed(0)
    block, layout, x = Block(16, 2), layout_of(RAGGED), torch.randn(18, 16)
    middle = x + block.attn(block.norm1(x), layout)
    hidden = torch.nn.functional.gelu(block.mlp.fc1(block.norm2(middle)), approximate="none")
    assert relative_error(block(x, layout), middle + block.mlp.fc2(hidden)) <= 1e-6
    assert block.norm1.eps == block.norm2.eps == Transformer(16, 1, 2).norm.eps == 1e-6


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_checkpointing_changes_nothing(drop_path: float) -> None:
    torch.manual_seed(0)
    plain = Transformer(16, depth=3, heads=2, drop_path=drop_path)
    saving = Transformer(16, depth=3, heads=2, drop_path=drop_path, grad_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    x, weights, results = torch.randn(sum(RAGGED), 16), torch.randn(sum(RAGGED), 16), []
    for model in (plain, saving):
        torch.manual_seed(1)  # the same drops
        leaf = x.clone().requires_grad_()
        out = model(leaf, layout_of(RAGGED))
        results.append([out, *torch.autograd.grad((out * weights).sum(), [leaf, *model.parameters()])])
    for mine, theirs in zip(*results, strict=True):
        assert relative_error(mine, theirs) <= 1e-5
