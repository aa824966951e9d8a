"""Attentive probes: the published shapes and forward, written down again, and what training them must do."""

from dataclasses import replace
from math import sqrt

import pytest
import torch
from torch import Tensor, nn

from jepa.probes import (
    AttentiveClassifier,
    AttentivePooler,
    AttentiveSettings,
    Labelled,
    attentive_probe,
    fit_attentive,
    linear_probe,
)
from jepa.probes.linear import LinearSettings

QUICK = AttentiveSettings(heads=2, lrs=(1e-2, 1e-3), weight_decays=(1e-2,), epochs=12, batch_size=64)


def count(module: nn.Module, trained: bool) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)


def test_parameter_counts_are_the_published_ones():
    d, classes = 64, 10
    norms, mlp, linear = 4 * d, 8 * d * d + 5 * d, d * classes + classes
    cross = (d * d + d) + (2 * d * d + 2 * d) + norms + mlp
    projection, query = d * d + d, d
    block = (3 * d * d + 3 * d) + (d * d + d) + norms + mlp

    vjepa = AttentiveClassifier(classes=classes, dim=d, heads=4, unused_proj=True)
    assert count(vjepa, trained=False) == query + cross + projection + linear == 12 * d * d + 14 * d + linear
    assert count(vjepa, trained=True) == query + cross + linear
    vjepa2 = AttentiveClassifier(classes=classes, dim=d, heads=16, depth=4)
    assert count(vjepa2, trained=False) == query + cross + linear + 3 * block == count(vjepa2, trained=True)


def written_down(state: dict[str, Tensor], x: Tensor, heads: int, depth: int) -> Tensor:
    """The probe's forward in float64, from its description alone: loops over samples and heads."""

    def norm(t: Tensor, name: str) -> Tensor:
        centred = t - t.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(t: Tensor, name: str) -> Tensor:
        return t @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        width = q.shape[-1] // heads
        parts = [slice(h * width, (h + 1) * width) for h in range(heads)]
        return torch.cat([(q[:, s] @ k[:, s].T / sqrt(width)).softmax(-1) @ v[:, s] for s in parts], -1)

    def mlp(t: Tensor, name: str) -> Tensor:
        hidden = linear(t, f"{name}.fc1")
        return linear(hidden * 0.5 * (1 + torch.erf(hidden / sqrt(2))), f"{name}.fc2")

    answers = []
    for tokens in x:
        for i in range(depth - 1):
            block = f"pooler.blocks.{i}"
            q, k, v = linear(norm(tokens, f"{block}.norm1"), f"{block}.attn.qkv").chunk(3, -1)
            tokens = tokens + linear(attend(q, k, v), f"{block}.attn.proj")
            tokens = tokens + mlp(norm(tokens, f"{block}.norm2"), f"{block}.mlp")
        cross = "pooler.cross_attention_block"
        query = state["pooler.query_tokens"][0]
        k, v = linear(norm(tokens, f"{cross}.norm1"), f"{cross}.xattn.kv").chunk(2, -1)
        pooled = query + attend(linear(query, f"{cross}.xattn.q"), k, v)
        pooled = pooled + mlp(norm(pooled, f"{cross}.norm2"), f"{cross}.mlp")
        answers.append(linear(pooled, "linear")[0])
    return torch.stack(answers)


@pytest.mark.parametrize(("depth", "unused_proj"), [(1, True), (1, False), (4, False)])
def test_forward_is_the_published_one(depth, unused_proj):
    model = AttentiveClassifier(classes=5, dim=16, heads=4, depth=depth, unused_proj=unused_proj).double()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # biases, norms and the unused projection too
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=rng, dtype=torch.float64))
    x = 0.01 * torch.randn(3, 7, 16, generator=rng, dtype=torch.float64)  # small: an epsilon of 1e-6 would show
    torch.testing.assert_close(model(x), written_down(model.state_dict(), x, 4, depth), rtol=1e-9, atol=1e-9)


def test_weights_start_rescaled():
    torch.manual_seed(0)
    pooler = AttentivePooler(dim=128, heads=4, depth=4, unused_proj=True)

    def std(linear: nn.Linear) -> float:
        return float(linear.weight.detach().std())

    cross = pooler.cross_attention_block
    assert std(cross.mlp.fc2) == pytest.approx(0.02 / sqrt(6), rel=0.03)
    assert std(AttentivePooler(dim=128, heads=4).cross_attention_block.mlp.fc2) == pytest.approx(
        0.02 / sqrt(2), rel=0.03
    )
    for level, block in enumerate(pooler.blocks, start=1):
        assert std(block.attn.proj) == pytest.approx(0.02 / sqrt(2 * level), rel=0.03)
        assert std(block.mlp.fc2) == pytest.approx(0.02 / sqrt(2 * level), rel=0.03)
    for linear in (cross.xattn.q, cross.xattn.kv, cross.xattn.proj, cross.mlp.fc1, pooler.blocks[2].attn.qkv):
        assert std(linear) == pytest.approx(0.02, rel=0.03)
        assert not linear.bias.any()
    assert float(pooler.query_tokens.detach().std()) == pytest.approx(0.02, rel=0.3)


def marked_tokens(samples: int, seed: int) -> Labelled:
    """Class 1 where the one marked token, at a random place, has its last number positive; the mean does not tell."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 9, 16, generator=rng)
    y = torch.randint(0, 2, (samples,), generator=rng)
    place = torch.randint(0, 9, (samples,), generator=rng)
    rows = torch.arange(samples)
    x[..., -1] = 3 * x[..., -1].sign()
    x[rows, place, 0] += 8
    x[rows, place, -1] = 3 * (2.0 * y - 1)
    return Labelled(x, y + 4)


def test_an_attentive_probe_reads_what_a_mean_hides():
    train, test = marked_tokens(700, 0), marked_tokens(300, 1)
    mean = [Labelled(part.x.mean(1), part.y) for part in (train, test)]
    assert linear_probe(*mean, LinearSettings(lrs=(1e-1,), weight_decays=(1e-3,))).score < 0.75
    score = attentive_probe(train, test, QUICK)
    assert score.score > 0.9
    assert score.validation > 0.9
    assert set(score.predictions.tolist()) == {4, 5}


def test_heads_do_not_disturb_each_other_and_the_unused_projection_never_moves():
    train = marked_tokens(400, 0)
    settings = replace(AttentiveSettings.vjepa(heads=2), lrs=(1e-2,), weight_decays=(0.5,), epochs=8, batch_size=64)
    settings = replace(settings, refit=False)
    alone, first = fit_attentive(train, settings)
    beside, second = fit_attentive(train, replace(settings, lrs=(1e-2, 1e-12)))  # the other one stays at the start
    assert second == first
    for one, other in zip(alone.head.parameters(), beside.head.parameters(), strict=True):
        assert torch.equal(one, other)
    start, _ = fit_attentive(train, replace(settings, lrs=(1e-12,), weight_decays=(0.0,)))
    pairs = zip(alone.head.named_parameters(), start.head.parameters(), strict=True)
    moved = {name for (name, after), before in pairs if not torch.allclose(after, before, rtol=0, atol=1e-6)}
    unused = {f"pooler.cross_attention_block.xattn.proj.{name}" for name in ("weight", "bias")}
    assert {name for name, _ in alone.head.named_parameters()} - moved == unused


def test_published_settings():
    vjepa, vjepa2 = AttentiveSettings.vjepa(heads=4), AttentiveSettings.vjepa2()
    assert (vjepa.depth, vjepa.clip, vjepa.final_weight_decay, vjepa.decay_all) == (1, 1.0, 1e-6, False)
    assert 1e-3 in vjepa.lrs
    assert {0.01, 0.001} <= set(vjepa.weight_decays)
    assert (vjepa2.depth, vjepa2.heads, vjepa2.clip, vjepa2.decay_all) == (4, 16, None, True)
    assert vjepa2.final_weight_decay is None
    assert len(vjepa2.lrs) * len(vjepa2.weight_decays) == 20


def test_training_depends_on_its_seed_alone_and_test_labels_choose_nothing():
    train, test = marked_tokens(120, 0), marked_tokens(60, 1)
    settings = replace(QUICK, epochs=4, batch_size=32)
    torch.manual_seed(1)
    honest = attentive_probe(train, test, settings)
    torch.manual_seed(2)
    wrong = attentive_probe(train, Labelled(test.x, 9 - test.y), settings)
    assert honest.score == pytest.approx(1 - wrong.score)
    assert (honest.chosen, honest.validation) == (wrong.chosen, wrong.validation)
    assert torch.equal(honest.predictions, wrong.predictions)


def test_refusals():
    data = marked_tokens(20, 0)
    with pytest.raises(ValueError, match=r"tokens \(N, L, D\) or \(N, V, L, D\), got \(20, 16\)"):
        fit_attentive(Labelled(data.x[:, 0], data.y), QUICK)
    with pytest.raises(ValueError, match="heads=3 does not divide the width 16"):
        fit_attentive(data, replace(QUICK, heads=3))
    with pytest.raises(ValueError, match="at least two classes"):
        fit_attentive(Labelled(data.x, torch.zeros(20, dtype=torch.long)), QUICK)
    with pytest.raises(ValueError, match="depth=0"):
        AttentivePooler(dim=8, heads=2, depth=0)


@pytest.mark.parametrize(
    ("samples", "steps"),
    [
        (100_000, 391),  # enough of them: as published
        (25_600, 100),
        (4000, 100),  # 2,000 steps in all, of 40
        (1600, 50),  # of 32, no fewer
        (20, 1),
    ],
)
def test_few_samples_make_smaller_batches_instead_of_few_steps(samples: int, steps: int) -> None:
    assert AttentiveSettings.vjepa(8).steps_per_epoch(samples) == steps
