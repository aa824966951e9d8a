"""The ridge probe, against scikit-learn on the same features."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, r2_score
from sklearn.preprocessing import StandardScaler

from jepa.probes import Labelled, random_split, ridge_probe

LAMBDAS = (1e-4, 1e-2, 1.0, 1e2)


def table(samples: int, seed: int) -> Labelled:
    """Features with a constant dimension; a position, a noisy size and a count to be read from them."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(samples, 3))
    mix = np.random.default_rng(9).normal(size=(3, 20))
    x = np.concatenate((hidden @ mix + 0.3 * rng.normal(size=(samples, 20)), np.full((samples, 1), 4.0)), 1)
    size = hidden[:, 1] + 2 * rng.normal(size=samples)
    y = np.stack((10 * hidden[:, 0] + 3, size, np.round(2 * hidden[:, 2])), 1)
    return Labelled(torch.tensor(x), torch.tensor(y))


@pytest.mark.parametrize("samples", [120, 18])  # more, and fewer, than features
def test_ridge_agrees_with_scikit_learn(samples: int):
    train, test = table(samples, 0), table(500, 1)
    score = ridge_probe(train, test, names=("position", "size", "count"), lambdas=LAMBDAS, seed=7)
    fit, held = (train.take(rows) for rows in random_split(len(train), 0.2, 7))

    def predict(data: Labelled, x: torch.Tensor, column: int, penalty: float) -> np.ndarray:
        scaler = StandardScaler().fit(data.x)
        model = Ridge(alpha=penalty * len(data)).fit(scaler.transform(data.x), data.y[:, column])
        return model.predict(scaler.transform(x))

    validation, r2 = [], []
    for column, name in enumerate(("position", "size", "count")):
        r2_held = {p: r2_score(held.y[:, column], predict(fit, held.x, column, p)) for p in LAMBDAS}
        best = max(r2_held, key=r2_held.get)
        validation.append(r2_held[best])
        theirs, truth = predict(train, test.x, column, best), test.y[:, column]
        assert score.chosen[f"lambda/{name}"] == best
        np.testing.assert_allclose(score.predictions[:, column], theirs, rtol=1e-8, atol=1e-8)
        assert score.details[f"r2/{name}"] == pytest.approx(r2_score(truth, theirs))
        assert score.details[f"mae/{name}"] == pytest.approx(mean_absolute_error(truth, theirs))
        r2.append(score.details[f"r2/{name}"])
    assert score.score == pytest.approx(np.mean(r2))
    assert score.validation == pytest.approx(np.mean(validation))
    assert score.details["r2/position"] > 0.9 > 0.4 > score.details["r2/size"]


def test_counts_are_rounded():
    train, test = table(400, 0), table(300, 1)
    score = ridge_probe(train, test, lambdas=LAMBDAS)
    hits = score.predictions[:, 2].round() == test.y[:, 2]
    assert score.details["rounded_accuracy/2"] == pytest.approx(float(hits.double().mean()))
    assert score.details["rounded_accuracy/2"] > 0.6
    assert "rounded_accuracy/0" not in score.details


def test_a_vector_of_numbers_is_one_column():
    train, test = table(200, 0), table(100, 1)
    score = ridge_probe(Labelled(train.x, train.y[:, 0]), Labelled(test.x, test.y[:, 0]))
    assert score.predictions.shape == (100, 1)
    assert score.score == score.details["r2/0"] > 0.9


def test_nothing_but_the_score_depends_on_test_numbers():
    train, test = table(200, 0), table(100, 1)
    honest, wrong = ridge_probe(train, test), ridge_probe(train, Labelled(test.x, test.y.flip(0)))
    assert honest.score > 0.5 > 0 > wrong.score
    assert (honest.chosen, honest.validation) == (wrong.chosen, wrong.validation)
    assert torch.equal(honest.predictions, wrong.predictions)


def test_more_dimensions_than_samples():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(40, 300, generator=rng)
    data = Labelled(x, x[:, 0])
    assert ridge_probe(data, data).score > 0.9


def test_refusals():
    train, test = table(50, 0), table(50, 1)
    with pytest.raises(ValueError, match=r"column 'size' is 2\.0 in all training samples"):
        ridge_probe(Labelled(train.x, torch.full((50,), 2)), Labelled(test.x, test.y[:, 0]), names=("size",))
    with pytest.raises(ValueError, match="2 names for 3 columns"):
        ridge_probe(train, test, names=("a", "b"))
    with pytest.raises(ValueError, match="3 training columns but 2 test columns"):
        ridge_probe(train, Labelled(test.x, test.y[:, :2]))
    with pytest.raises(ValueError, match="finite numbers"):
        ridge_probe(Labelled(train.x, torch.full((50,), torch.nan)), test)
    with pytest.raises(ValueError, match="lambdas > 0"):
        ridge_probe(train, test, lambdas=(0.0,))
    with pytest.raises(ValueError, match="50 features but 49 labels"):
        Labelled(train.x, train.y[1:])
    with pytest.raises(ValueError, match="cannot be split"):
        random_split(1, 0.2, 0)
