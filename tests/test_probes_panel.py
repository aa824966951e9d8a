"""The collapse panel: what it measures, what it remembers, and what it says of runs that collapse and that do not."""

import io
from collections.abc import Iterator
from math import isnan, nan

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.encoders import ViT
from jepa.losses import SmoothL1
from jepa.model import JEPA
from jepa.predictors import ViTPredictor
from jepa.probes import CollapsePanel, Thresholds, judge, mean_cosine, measure, position_variance, rank_me
from jepa.targets import EMA
from jepa.types import Indices, JepaBatch, StepOutput, Task, Tokens, View


def batches(steps: int, size: int = 32) -> Iterator[tuple[JepaBatch, Tensor]]:
    """Four noisy prototypes, 16 x 16, with one block of 2 x 2 of the 4 x 4 patches to be predicted."""
    rng = torch.Generator().manual_seed(1)
    prototypes = torch.randn(4, 3, 16, 16, generator=rng)
    rows = torch.arange(4)
    for _ in range(steps):
        y = torch.randint(0, 4, (size,), generator=rng)
        x = prototypes[y] + 0.5 * torch.randn(size, 3, 16, 16, generator=rng)
        top, left = torch.randint(0, 3, (2, size, 1), generator=rng).unbind(0)
        inside = [(rows >= start) & (rows < start + 2) for start in (top, left)]
        target = inside[0][:, :, None] & inside[1][:, None, :]
        task = Task(View(x, Indices.from_maps(~target)), Indices.from_maps(target))
        yield JepaBatch(View(x), [task]), y


def train(panel: CollapsePanel, steps: int, spread_out: bool) -> None:
    """A small run, measured at every fourth step; `spread_out` adds variance and covariance terms on the context."""
    torch.manual_seed(0)
    model = JEPA(
        encoder=ViT(dim=32, depth=2, heads=4, patch_size=4),
        predictor=ViTPredictor(embed_dim=32, dim=16, depth=1, heads=2),
        target=EMA(start=0.9, end=0.9),
        criterion=SmoothL1(),
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for step, (batch, y) in enumerate(batches(steps)):
        output = model(batch)
        loss = output.loss
        if spread_out:
            x = model.encoder(batch.tasks[0].context).x
            covariance = torch.cov(x.T)
            variance = covariance.diagonal()
            loss = loss + F.relu(1 - (variance + 1e-4).sqrt()).mean()
            loss = loss + 0.04 * (covariance.square().sum() - variance.square().sum()) / 32
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.update_target(0.9)
        if step % 4 == 0:
            panel.measure(output.intermediates, {"class": y})


def test_a_run_made_to_collapse_is_called_collapsed():
    panel = CollapsePanel()
    train(panel, 160, spread_out=False)
    assert panel.history[-1]["target_rank"] < 0.3 * panel.history[0]["target_rank"]
    verdict = panel.verdict()
    assert verdict.status == "collapsed"
    assert verdict.advice
    assert "one vector" in str(verdict)


def test_a_run_that_learns_is_called_healthy():
    panel = CollapsePanel()
    train(panel, 88, spread_out=True)
    assert panel.history[-1]["knn/class"] > 0.9 > 0.5 > panel.history[-1]["knn_chance/class"]
    assert panel.verdict().status == "healthy", panel.verdict()


def step(seed: int = 0, samples: int = 8, scale: float = 1.0) -> StepOutput:
    """Random embeddings on a 2 x 3 grid, two target sets per sample."""
    rng = torch.Generator().manual_seed(seed)
    target = Tokens(torch.randn(samples * 6, 5, generator=rng), Indices.all(samples, (2, 3)))
    maps = torch.rand(samples * 2, 2, 3, generator=rng) < 0.5
    maps[:, 0, 0] = True
    query = Indices.from_maps(maps)
    prediction = Tokens(scale * target.at(query), query)
    context = Tokens(torch.randn(samples * 6, 5, generator=rng), Indices.all(samples, (2, 3)))
    task = {"context": context, "prediction": prediction, "query": query}
    return StepOutput(torch.zeros(()), {}, {"target": target, "tasks": [task, task]})


def test_measurements_are_those_of_the_diagnostics():
    seen = step().intermediates
    values = measure(seen)
    target, context = seen["target"], seen["tasks"][0]["context"]
    assert values["target_rank"] == rank_me(target.x)
    assert values["context_rank_share"] == rank_me(context.x) / 5
    assert values["target_std"] == pytest.approx(float(target.x.std(0, unbiased=False).mean()))
    assert values["target_cosine"] == mean_cosine(target.x)
    assert values["sample_cosine"] == pytest.approx(mean_cosine(target.dense().mean(1)))
    assert values["position_share"] == position_variance(target.dense())
    assert values["agreement"] == pytest.approx(1, abs=1e-6)


def test_the_shuffled_baseline_keeps_the_position():
    seen = step(samples=64).intermediates
    assert abs(measure(seen)["agreement_same_position"]) < 0.2
    table = torch.randn(6, 5, generator=torch.Generator().manual_seed(9))
    seen["target"].x.copy_(table.repeat(64, 1))  # nothing but the position
    for task in seen["tasks"]:
        task["prediction"].x.copy_(seen["target"].at(task["query"]))
    values = measure(seen)
    assert values["position_share"] == pytest.approx(1, abs=1e-6)
    assert values["agreement"] == pytest.approx(values["agreement_same_position"], abs=1e-6)
    assert values["agreement_anywhere"] < 0.7
    assert abs(values["agreement_gain"]) < 0.5  # of nothing left to gain


def test_a_motion_is_compared_with_another_samples_target():
    rng = torch.Generator().manual_seed(0)
    target = Tokens(torch.randn(40, 5, generator=rng), Indices.all(40, (1,)))
    task = {"context": target, "prediction": target, "query": torch.zeros(40, 3)}
    values = measure({"target": target, "tasks": [task]})
    assert values["agreement"] == pytest.approx(1, abs=1e-6)
    assert abs(values["agreement_same_position"]) < 0.3


def test_a_single_sample_and_broken_embeddings():
    assert set(measure(step(samples=1).intermediates)) == {
        "target_rank",
        "target_rank_share",
        "context_rank",
        "context_rank_share",
        "target_std",
        "target_cosine",
    }
    broken = step().intermediates
    broken["target"].x[3, 2] = nan
    panel = CollapsePanel()
    assert isnan(panel.measure(broken, {})["target_rank"])
    assert panel.verdict().status == "collapsed"
    assert "not finite" in str(panel.verdict())


def embedded(x: Tensor) -> dict:
    """Intermediates whose pooled target embeddings are `x` (B, D)."""
    tokens = Tokens(x, Indices.all(len(x), (1,)))
    return {"target": tokens, "tasks": [{"context": tokens, "prediction": tokens, "query": torch.zeros(len(x), 1)}]}


def test_the_online_knn_never_classifies_a_sample_by_itself():
    rng = torch.Generator().manual_seed(0)
    x, y, index = torch.randn(400, 8, generator=rng), torch.randint(0, 4, (400,), generator=rng), torch.arange(400)
    panel = CollapsePanel(k=1)
    assert not any(name.startswith("knn") for name in panel.measure(embedded(x), {"y": y}, index))
    # labels are random: only its own earlier embedding could tell
    assert panel.measure(embedded(x), {"y": y}, index)["knn/y"] < 0.4
    assert panel.measure(embedded(x), {"y": y})["knn/y"] == 1


def test_the_online_knn_uses_integer_labels_and_forgets():
    rng = torch.Generator().manual_seed(0)
    labels = {"y": torch.arange(10) % 2, "size": torch.rand(10), "box": torch.zeros(10, 4, dtype=torch.long)}
    panel = CollapsePanel(bank_size=20, k=3)
    for _ in range(3):
        panel.remember(embedded(torch.randn(10, 8, generator=rng)), labels)
    values = panel.measure(embedded(torch.randn(10, 8, generator=rng)), labels)
    assert {name for name in values if name.startswith("knn")} == {"knn/y", "knn_chance/y"}
    assert values["knn_chance/y"] == 0.5
    assert panel.state_dict()["knn"]["x"].shape == (20, 8)
    with pytest.raises(ValueError, match="labels were"):
        panel.measure(embedded(torch.randn(10, 8, generator=rng)), {"z": labels["y"]})
    with pytest.raises(ValueError, match="'y' holds 10 values for 4 samples"):
        panel.remember(embedded(torch.randn(4, 8, generator=rng)), labels)


def test_a_resumed_panel_goes_on_exactly():
    def go(panel: CollapsePanel, numbers: range) -> None:
        for number in numbers:
            samples = 1 if number == 2 else 8  # one measurement with fewer names
            panel.measure(step(number, samples).intermediates, {"y": torch.arange(samples) % 3}, torch.arange(samples))

    straight, first, second = (CollapsePanel(bank_size=16, k=2) for _ in range(3))
    go(straight, range(8))
    go(first, range(4))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second.history == first.history
    go(second, range(4, 8))
    assert second.history == straight.history
    assert "knn/y" in straight.history[-1]
    fresh = CollapsePanel()
    fresh.load_state_dict(CollapsePanel().state_dict())
    assert fresh.history == []


GOOD = {
    "target_rank_share": 0.4,
    "context_rank_share": 0.5,
    "target_cosine": 0.2,
    "position_share": 0.5,
    "agreement_gain": 0.4,
}
START = {
    "target_rank_share": 0.11,
    "context_rank_share": 0.13,
    "target_cosine": 0.7,
    "position_share": 0.9,
    "agreement_gain": 0.0,
}


@pytest.mark.parametrize(
    ("changed", "status", "reason"),
    [
        ({}, "healthy", ""),
        ({"target_rank_share": 0.06, "context_rank_share": 0.08, "target_cosine": 0.94}, "collapsed", "effective rank"),
        ({"target_cosine": 0.99}, "collapsed", "one vector"),
        ({"position_share": 0.97}, "collapsed", "position alone explains 97%"),
        ({"position_share": 0.92}, "warning", "position alone still explains 92%"),
        ({"position_share": 0.89}, "healthy", ""),  # high, but falling
        ({"context_rank_share": 0.05}, "warning", "the context's effective rank is 5.0%"),
        ({"target_cosine": 0.93}, "warning", "much alike"),
        ({"agreement_gain": 0.0}, "warning", "hardly better than another sample's"),
    ],
)
def test_verdicts(changed, status, reason):
    history = [START] * 15 + [GOOD | changed] * 5
    verdict = judge(history)
    assert verdict.status == status
    assert reason in str(verdict)
    assert bool(verdict.advice) == (status != "healthy")
    # one measurement that disagrees is enough to wait, and a short history is not judged
    assert judge([*history[:-1], GOOD]).status == "healthy"
    assert str(judge(history[1:])) == "too early to tell: 19 of the 20 looks that a verdict needs"
    assert judge(history[1:], Thresholds(warmup=19)).status == status


# ijepa_tiny when it had a moving average, seed 0, without and with its terms: rank share and cosine of targets at every
# 40th of 1,000 steps
PUBLISHED_ALONE = """
.309 .298 .309 .265 .202 .166 .144 .125 .112 .109 .099 .097 .091 .087 .084 .086 .086 .083 .085 .079 .077 .079 .080 .079
.584 .686 .604 .610 .648 .714 .773 .765 .793 .832 .829 .841 .880 .861 .885 .880 .861 .879 .882 .900 .907 .906 .884 .906
"""
SHIPPED = """
.310 .363 .393 .424 .455 .480 .512 .529 .561 .592 .605 .630 .650 .665 .675 .693 .702 .709 .715 .724 .733 .734 .740 .743
.579 .475 .410 .358 .316 .261 .212 .180 .164 .114 .104 .098 .074 .079 .066 .055 .054 .055 .050 .052 .048 .047 .043 .049
"""


@pytest.mark.parametrize(("run", "end"), [(PUBLISHED_ALONE, "collapsed"), (SHIPPED, "healthy")])
def test_recorded_runs(run, end):
    ranks, cosines = (map(float, line.split()) for line in run.strip().splitlines())
    history = [{"target_rank_share": r, "target_cosine": c} for r, c in zip(ranks, cosines, strict=True)]
    limits = Thresholds(warmup=8)
    found = [judge(history[: n + 1], limits).status for n in range(len(history))]
    assert found[:8] == ["too early to tell"] * 7 + ["healthy"]
    assert set(found[16:]) == {end}


@pytest.mark.parametrize(
    ("rank", "cosine", "status"),
    [
        (0.11, 0.86, "collapsed"),
        (0.11, 0.76, "warning"),  # fewer directions, but the tokens are not much closer than they were
        (0.14, 0.86, "warning"),  # half of the rank is gone, not two thirds
        (0.25, 0.86, "healthy"),
    ],
)
def test_collapse_is_told_from_where_a_run_began(rank, cosine, status):
    begin = START | {"target_rank_share": 0.36, "target_cosine": 0.6}
    late = GOOD | {"target_rank_share": rank, "target_cosine": cosine}
    assert judge([begin] * 15 + [late] * 5).status == status


def test_targets_that_begin_as_position_are_no_collapse():
    def run(*positions: float) -> str:
        return judge([GOOD | {"position_share": p} for p in (*[0.97] * 15, *positions)]).status

    assert run(0.97, 0.965, 0.97, 0.96, 0.955) == "warning"
    assert run(0.96, 0.94, 0.92, 0.90, 0.88) == "healthy"
    assert run(*[0.99] * 5) == "collapsed"


def test_a_name_that_was_measured_later_is_judged_from_there():
    rows = [{"target_rank_share": 0.4}] * 5 + [GOOD] * 20
    assert judge(rows).status == "healthy"


def test_a_sudden_loss_of_rank_is_a_partial_collapse():
    verdict = judge([START] * 5 + [GOOD] * 15 + [GOOD | {"target_rank_share": 0.15}] * 5)
    assert verdict.status == "warning"
    assert "fell from 40.0% to 15.0%" in str(verdict)


# ijepa_small with the paper's masks, seed 0, at step 20 and every 120th of 3,490
LOST_AGAIN = """
.149 .170 .501 .710 .796 .832 .845 .854 .858 .859 .858 .626 .455 .366 .286
.261 .254 .232 .222 .217 .207 .200 .203 .202 .204 .214 .217 .220 .231 .230
"""


def test_a_rank_that_had_grown_and_is_lost_again_is_a_collapse():
    history = [GOOD | {"target_rank_share": float(share)} for share in LOST_AGAIN.split()]
    found = [judge(history[: n + 1], Thresholds(warmup=8)).status for n in range(len(history))]
    assert found == ["too early to tell"] * 7 + ["healthy"] * 10 + ["warning"] + ["collapsed"] * 12
    assert "fell from 85.9% to 23.0% of the possible" in str(judge(history))


def course(*points: tuple[float, float, float]) -> list[dict[str, float]]:
    """A history at 100 looks, along straight lines through (share of the run, rank share, position share)."""
    at, ranks, positions = (list(column) for column in zip(*points, strict=True))
    looks = np.linspace(0, 1, 100)
    lines = zip(np.interp(looks, at, ranks), np.interp(looks, at, positions), strict=True)
    return [GOOD | {"target_rank_share": float(r), "position_share": float(p)} for r, p in lines]


# saccade_tiny without its terms, seed 0: effective rank 25, 28 and 23 of 96 at steps 10, 300 and 1,000, position to .77
SACCADE_ALONE = course((0, 25 / 96, 0.5), (0.3, 28 / 96, 0.5), (1, 23 / 96, 0.77))

# ijepa_tiny with terms half as strong and twice the samples, seed 0: position explains more and more, and the rank
# falls, but to more than random weights had
SELF_TAUGHT = course((0, 0.34, 0.45), (0.16, 0.59, 0.5), (1, 0.52, 0.78))


@pytest.mark.parametrize(
    ("history", "status"),
    [
        (SACCADE_ALONE, "warning"),
        (SACCADE_ALONE[:60], "healthy"),  # hardly anything is lost yet
        (course((0, 0.3, 0.8), (0.5, 0.25, 0.5), (1, 0.35, 0.4)), "healthy"),  # content takes over from position
        (course((0, 0.3, 0.5), (0.5, 0.25, 0.8), (1, 0.29, 0.8)), "healthy"),  # it comes back
        (course((0, 0.3, 0.5), (1, 0.25, 0.55)), "healthy"),  # directions are lost, but not to position
        (course((0, 0.3, 0.5), (1, 0.5, 0.8)), "healthy"),
        (SELF_TAUGHT, "healthy"),
    ],
)
def test_a_rank_that_sinks_while_position_takes_over_is_warned_about(history, status):
    verdict = judge(history)
    assert verdict.status == status, verdict
    if status == "warning":
        assert "falls, from 29.1% to 24.0% of the possible, while position comes to explain 77%" in str(verdict)
        assert any("variance and covariance" in line for line in verdict.advice)


def test_a_low_rank_that_grew_is_no_collapse():
    wide = START | {"target_rank_share": 0.03}  # of many dimensions a new encoder uses a smaller share
    assert judge([wide] * 15 + [GOOD | {"target_rank_share": 0.07}] * 5).status == "warning"


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="warmup=3 must cover"):
        Thresholds(warmup=3)
    with pytest.raises(ValueError, match="k=30"):
        CollapsePanel(bank_size=20, k=30)
    with pytest.raises(ValueError, match="max_samples=1"):
        CollapsePanel(max_samples=1)
