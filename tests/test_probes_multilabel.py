"""Labels of several classes at once: mean average precision and the probe that is scored by it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from sklearn.metrics import average_precision_score

from jepa.probes import (
    AttentiveSettings,
    Labelled,
    attentive_probe,
    average_precision,
    fit_attentive,
    mean_average_precision,
    multilabel_probe,
)
from jepa.probes.features import Features
from jepa.probing import Split, chances, probe_rows
from jepa.probing.rows import SEVERAL
from jepa.report.gallery import label_text


@pytest.mark.parametrize("levels", [None, 5])  # without and with equal scores
def test_average_precision_is_scikit_learns(levels: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(200, 6, generator=generator)
    scores = scores if levels is None else (scores * levels / 4).round()
    truth = (torch.rand(200, 6, generator=generator) < torch.linspace(0.02, 0.9, 6)).long()
    expected = [average_precision_score(truth[:, k].numpy(), scores[:, k].numpy()) for k in range(6)]
    torch.testing.assert_close(average_precision(scores, truth), torch.tensor(expected, dtype=torch.float64))
    truth[:, 2] = 0
    assert average_precision(scores, truth)[2].isnan()
    assert mean_average_precision(scores, truth) == pytest.approx(sum(expected[:2] + expected[3:]) / 5)


def test_the_probe_finds_what_is_linear_and_nothing_in_noise() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(400, 8, generator=generator)
    y = (x[:, :3] + 0.3 * torch.randn(400, 3, generator=generator) > 0.5).long()
    score = multilabel_probe(Labelled(x[:300], y[:300]), Labelled(x[300:], y[300:]))
    assert (score.metric, score.predictions.shape) == ("map", (100, 3))
    assert score.score > 0.9
    assert score.validation > 0.9
    chance = mean_average_precision(torch.zeros(100, 3), y[300:])
    noise = multilabel_probe(Labelled(x[:300, 4:], y[:300]), Labelled(x[300:, 4:], y[300:]))
    assert noise.score < chance + 0.15


def test_what_cannot_be_probed_is_refused() -> None:
    x = torch.randn(20, 4)
    with pytest.raises(ValueError, match="zeros and ones"):
        multilabel_probe(Labelled(x, torch.full((20, 3), 2)), Labelled(x, torch.zeros(20, 3)))
    with pytest.raises(ValueError, match="none of 20 test samples has a class"):
        multilabel_probe(Labelled(x, torch.randint(2, (20, 3))), Labelled(x, torch.zeros(20, 3)))


def tokens_of(y: torch.Tensor, views: int = 0) -> torch.Tensor:
    """Tokens (N, 6, 8), or (N, V, 6, 8) of views: at a place of its own each class that a sample has, among noise."""
    generator = torch.Generator().manual_seed(2)
    x = 0.3 * torch.randn(len(y), max(1, views), 6, 8, generator=generator)
    for k in range(y.shape[1]):
        place = torch.randint(6, (len(y),), generator=generator)
        x[torch.arange(len(y)), :, place, k] += 3.0 * y[:, k, None]
    return x if views else x[:, 0]


@pytest.mark.parametrize("views", [0, 2])
def test_the_attentive_probe_tells_several_classes_at_once(views: int) -> None:
    y = torch.randint(2, (300, 3), generator=torch.Generator().manual_seed(3))
    x = tokens_of(y, views)
    settings = AttentiveSettings(2, lrs=(1e-2, 1e-12), weight_decays=(1e-3,), epochs=30, batch_size=32)
    train, test = Labelled(x[:200], y[:200]), Labelled(x[200:], y[200:])
    score = attentive_probe(train, test, settings)
    assert (score.metric, score.chosen["lr"], score.predictions.shape) == ("map", 1e-2, (100, 3))
    assert score.score == pytest.approx(mean_average_precision(score.predictions, y[200:]))
    assert min(score.score, score.validation) > 0.75 > y.double().mean(0).mean() + 0.2  # chance
    assert bool(((score.predictions > 0) & (score.predictions < 1)).all())
    probe, _ = fit_attentive(train, replace(settings, epochs=1))
    alone = probe.head(test.x[:, 1] if views else test.x).sigmoid()
    other = probe.head(test.x[:, 0]).sigmoid() if views else alone
    assert torch.allclose(probe.predict(test.x), (alone + other) / 2, atol=1e-5)
    with pytest.raises(ValueError, match="zeros and ones"):
        attentive_probe(Labelled(x, y + 1), test, settings)
    with pytest.raises(ValueError, match="none of 100 test samples has a class"):
        attentive_probe(train, Labelled(x[200:], torch.zeros(100, 3)), replace(settings, epochs=1))


def test_captions_name_all_classes_of_a_sample() -> None:
    names = {"scene": ["street", "park"], "what": ["car", "horn", "rain"], "level": None, "many": ["a", "b"]}
    labels = {
        "scene": torch.tensor([1, 0]),
        "what": torch.tensor([[1, 0, 1], [0, 0, 0]]),
        "level": torch.tensor([0.5, 0.2]),
        "many": torch.tensor([[1, 1], [0, 1]]),
    }
    run, material = SimpleNamespace(dataset=SimpleNamespace(label_names=names)), SimpleNamespace(labels=labels)
    assert [label_text(run, material, i) for i in range(2)] == ["park car + rain", "street"]


def test_evaluation_probes_such_labels() -> None:
    x, y = torch.randn(60, 4), torch.randint(2, (60, 3))
    features = Features({"last": x, "last4": x}, {"what": y}, [str(i) for i in range(60)])
    rows = probe_rows("linear", "what", {"model": Split(features, features)}, 0, "cpu")
    rows += chances(rows, y, y)
    found = [(row.probe, row.features, row.metric) for row in rows]
    assert found == [("linear", "model", "map"), ("linear last4", "model", "map"), ("linear", "chance", "map")]
    assert rows[-1].score == pytest.approx(y.double().mean(0).mean())
    tokens = Features({"tokens": torch.randn(60, 5, 4)}, {"what": y}, features.names)
    rows = probe_rows("attentive", "what", {"model": Split(tokens, tokens)}, 0, "cpu")
    assert [(row.probe, row.metric) for row in rows + chances(rows, y, y)] == [("attentive", "map")] * 2
    assert {"linear", "attentive", "attentive_deep"} == set(SEVERAL)
