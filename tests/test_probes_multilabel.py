"""Labels of several classes at once: mean average precision and the probe that is scored by it."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import average_precision_score

from jepa.probes import Labelled, average_precision, mean_average_precision, multilabel_probe
from jepa.probes.features import Features
from jepa.probing import Split, chances, probe_rows


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


def test_evaluation_probes_such_labels_linearly() -> None:
    x, y = torch.randn(60, 4), torch.randint(2, (60, 3))
    features = Features({"last": x, "last4": x}, {"what": y}, [str(i) for i in range(60)])
    rows = probe_rows("linear", "what", {"model": Split(features, features)}, 0, "cpu")
    rows += chances(rows, y, y)
    found = [(row.probe, row.features, row.metric) for row in rows]
    assert found == [("linear", "model", "map"), ("linear last4", "model", "map"), ("linear", "chance", "map")]
    assert rows[-1].score == pytest.approx(y.double().mean(0).mean())
