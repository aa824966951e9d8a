"""kNN, linear and low-shot probes, against scikit-learn on the same features."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from jepa.probes import (
    Labelled,
    LinearSettings,
    fit_linear,
    held_out_split,
    knn_predict,
    knn_probe,
    label_draw,
    linear_probe,
    low_shot,
    random_split,
)
from jepa.probes.linear import _standardise

DECAYS = (1e-1, 1e-2, 1e-3)
QUICK = LinearSettings(lrs=(1e-1,), weight_decays=DECAYS, epochs=1, min_steps=400)


def digits(kind: str) -> tuple[Labelled, Labelled]:
    """Noisy random features of scans: 897 to train on, 900 to test on."""
    data, target = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    x = data / 16 + rng.normal(size=data.shape) * 0.3
    weight = rng.normal(size=(64, 96))
    if kind == "low rank":
        weight = weight * np.logspace(0, -4, 96)  # as collapsed features: few directions, a large mean
    x = torch.tensor(np.tanh(x @ weight * 0.3) + (5 if kind == "low rank" else 0)).float()
    y = torch.tensor(target).long() * 3 - 7  # any integers will do
    return Labelled(x[:897], y[:897]), Labelled(x[897:], y[897:])


@pytest.mark.parametrize("kind", ["full rank", "low rank"])
def test_knn_is_identical_to_scikit_learn(kind):
    train, test = digits(kind)
    ours = knn_predict(train, test.x, ks=(1, 5, 20, 200))
    for k, predictions in ours.items():
        theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
        theirs.fit(train.x.double().numpy(), train.y.numpy())
        assert (predictions.numpy() == theirs.predict(test.x.double().numpy())).all()


def test_knn_of_equal_neighbours_takes_the_earlier():
    bank = Labelled(torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]]), torch.tensor([4, 2, 2, 9]))
    assert knn_predict(bank, torch.tensor([[2.0, 0]]), ks=(1, 2, 3)) == {1: 4, 2: 2, 3: 2}


def test_knn_probe_chooses_k_without_the_test_samples():
    train, test = digits("full rank")
    score = knn_probe(train, test, ks=(1, 5, 100))
    fit, held = (train.take(rows) for rows in held_out_split(train.y, 0.2, 0))
    validation = {k: float((p == held.y).double().mean()) for k, p in knn_predict(fit, held.x, ks=(1, 5, 100)).items()}
    assert score.chosen["k"] == max(validation, key=validation.get)
    assert score.validation == max(validation.values())
    assert score.score == score.details[f"accuracy_k{score.chosen['k']}"]


def scikit_learn_accuracy(train: Labelled, test: Labelled) -> float:
    """Logistic regression with its best C by the same split and the same rule."""
    fit, held = (train.take(rows) for rows in held_out_split(train.y, QUICK.held_out, 0))
    found = []
    for decay in DECAYS:
        scaler = StandardScaler().fit(fit.x)
        model = LogisticRegression(C=1 / (decay * len(fit)), max_iter=2000).fit(scaler.transform(fit.x), fit.y)
        probability = model.predict_proba(scaler.transform(held.x))
        accuracy = model.score(scaler.transform(held.x), held.y)
        found.append((-accuracy, log_loss(held.y, probability, labels=model.classes_), decay))
    scaler = StandardScaler().fit(train.x)
    model = LogisticRegression(C=1 / (min(found)[2] * len(train)), max_iter=2000).fit(
        scaler.transform(train.x), train.y
    )
    return model.score(scaler.transform(test.x), test.y)


@pytest.mark.parametrize("kind", ["full rank", "low rank"])
def test_linear_probe_agrees_with_scikit_learn(kind):
    train, test = digits(kind)
    score = linear_probe(train, test, QUICK)
    assert score.score == pytest.approx(scikit_learn_accuracy(train, test), abs=0.005)
    assert score.score > 0.7  # and the features are worth probing


def test_heads_of_a_grid_are_independent():
    train, _ = digits("full rank")
    train = train.take(torch.arange(200))
    settings = replace(QUICK, lrs=(3e-2,), weight_decays=(1e-2,), min_steps=20)
    alone, _ = fit_linear(train, settings)
    # the second setting cannot win: its learning rate leaves it where it starts
    beside, chosen = fit_linear(train, replace(settings, lrs=(3e-2, 1e-12)))
    assert chosen["lr"] == 3e-2
    torch.testing.assert_close(alone.weight, beside.weight)


def test_linear_probe_depends_on_its_seed_alone():
    train, _ = digits("full rank")
    settings = replace(QUICK, batch_size=256, min_steps=40)
    torch.manual_seed(1)
    first = fit_linear(train, settings, seed=3)[0].weight
    torch.manual_seed(2)
    assert torch.equal(first, fit_linear(train, settings, seed=3)[0].weight)
    assert not torch.equal(first, fit_linear(train, settings, seed=4)[0].weight)


def test_a_linear_probe_survives_constant_dimensions_and_diverging_heads():
    train, test = digits("full rank")
    widened = [Labelled(torch.cat((part.x, torch.full((len(part), 2), 1e4)), 1), part.y) for part in (train, test)]
    plain, wide = linear_probe(train, test, QUICK), linear_probe(*widened, QUICK)
    assert wide.score == pytest.approx(plain.score, abs=0.005)
    assert linear_probe(train, test, replace(QUICK, lrs=(1e-1, 1e30), min_steps=40)).chosen["lr"] == 1e-1


def test_nothing_but_the_score_depends_on_test_labels():
    train, test = digits("full rank")
    shuffled = Labelled(test.x, test.y.flip(0))
    quick = replace(QUICK, min_steps=30)
    for probe in (lambda t: knn_probe(train, t, ks=(1, 20)), lambda t: linear_probe(train, t, quick)):
        honest, wrong = probe(test), probe(shuffled)
        assert honest.score > 0.7 > 0.3 > wrong.score
        assert (honest.chosen, honest.validation) == (wrong.chosen, wrong.validation)
        assert torch.equal(honest.predictions, wrong.predictions)
    honest, wrong = (low_shot(train, t, fraction=0.1, draws=2, settings=quick) for t in (test, shuffled))
    for one, other in zip(honest.scores, wrong.scores, strict=True):
        assert one.chosen == other.chosen
        assert torch.equal(one.predictions, other.predictions)


def test_splits_are_stratified_and_complete():
    y = torch.tensor([0] * 50 + [1] * 10 + [2] * 2 + [3])
    fit, held = held_out_split(y, 0.2, seed=5)
    assert torch.equal(torch.cat((fit, held)).sort().values, torch.arange(len(y)))
    assert y[held].bincount(minlength=4).tolist() == [10, 2, 1, 0]
    assert not torch.equal(held, held_out_split(y, 0.2, seed=5, number=1)[1])
    assert not torch.equal(held, held_out_split(y, 0.2, seed=6)[1])
    assert torch.equal(held, held_out_split(y, 0.2, seed=5)[1])
    assert [len(part) for part in random_split(10, 0.25, seed=0)] == [8, 2]


def test_low_shot_draws_hold_every_class():
    y = torch.arange(5).repeat_interleave(torch.tensor([300, 200, 50, 10, 3]))
    assert y[label_draw(y, 0.01, seed=0)].bincount().tolist() == [3, 2, 1, 1, 1]
    assert y[label_draw(y, 0.1, seed=0)].bincount().tolist() == [30, 20, 5, 1, 1]
    assert not torch.equal(label_draw(y, 0.1, 0, 0), label_draw(y, 0.1, 0, 1))


def test_low_shot_reports_mean_and_spread():
    train, test = digits("full rank")
    settings = replace(QUICK, min_steps=30, splits=2)
    few = low_shot(train, test, fraction=0.01, draws=3, settings=settings)  # one of each class: nothing to hold out
    assert few.samples == 10
    assert all(np.isnan(score.validation) and score.chosen["weight_decay"] == DECAYS[1] for score in few.scores)
    more = low_shot(train, test, fraction=0.1, draws=3, settings=settings)
    values = [score.score for score in more.scores]
    assert (more.mean, more.spread) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert more.spread > 0
    assert more.mean > few.mean > 0.3


def test_refusals():
    train, test = digits("full rank")
    with pytest.raises(ValueError, match=r"k=\[10, 2000\] but the bank holds 897"):
        knn_predict(train, test.x, ks=(10, 2000))
    one = Labelled(train.x, torch.ones_like(train.y))
    for probe in (knn_probe, linear_probe):
        with pytest.raises(ValueError, match="class 1: a probe needs at least two"):
            probe(one, test)
        with pytest.raises(ValueError, match=r"\(96,\), test features \(95,\)"):
            probe(train, Labelled(test.x[:, 1:], test.y))
    broken = train.x.clone()
    broken[3, 2] = torch.nan
    with pytest.raises(ValueError, match="1 of 897 feature rows hold NaN or infinity, the first is row 3"):
        Labelled(broken, train.y)
    with pytest.raises(ValueError, match="897 features but 896 labels"):
        Labelled(train.x, train.y[1:])
    with pytest.raises(ValueError, match="vector of integers"):
        linear_probe(Labelled(train.x, train.y.float()), test)
    with pytest.raises(ValueError, match="fraction=1"):
        low_shot(train, test, fraction=1)


def test_features_wider_than_samples_are_turned_alike():
    train, _ = digits("full rank")
    few = train.take(torch.arange(60))
    mean, basis = _standardise(few.x)
    assert basis.shape == (96, 59)
    z, std = (few.x - mean) @ basis, few.x.std(0, correction=0)
    covariance = z.T @ z / 60
    assert torch.allclose(covariance, covariance.diagonal().diag(), atol=1e-3)
    assert (covariance.diagonal().diff() <= 1e-3).all()  # the strongest axis first
    standard = (few.x - mean) / std
    torch.testing.assert_close(z @ z.T, standard @ standard.T, rtol=1e-3, atol=1e-2)
    padded = Labelled(torch.cat((few.x, few.x, few.x)), few.y.repeat(3))  # the same features by the other way
    torch.testing.assert_close(_standardise(padded.x)[1].abs()[:, :59], basis.abs(), rtol=1e-2, atol=1e-3)
