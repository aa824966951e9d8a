"""The collapse panel beside a run: what it writes, says and asks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jepa.metrics import read_metrics
from jepa.probes.panel import CollapsePanel
from jepa.probes.verdict import Verdict
from tests.conftest import Ran
from tests.tiny import TINY, steps_kept

PANEL = {"target_rank", "context_rank", "target_std", "target_cosine", "position_share", "agreement_gain"}
WATCHED = [*TINY, "train.steps=6", "train.watch_every=2"]


@pytest.fixture
def collapsed_from_the_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    def verdict(self: CollapsePanel) -> Verdict:
        if len(self.history) < 2:
            return Verdict("healthy")
        return Verdict("collapsed", ("the rank fell",), ("a regulariser",))

    monkeypatch.setattr(CollapsePanel, "verdict", verdict)


def test_its_numbers_are_in_the_metrics_where_they_are_due(tmp_path: Path, jepa_run: Callable[..., Ran]) -> None:
    assert jepa_run(*WATCHED, f"run_dir={tmp_path}").status == 0
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if row.keys() >= PANEL] == [2, 4, 6]
    assert any("knn/shape" in row for row in rows)


def test_it_can_be_left_out(tmp_path: Path, jepa_run: Callable[..., Ran]) -> None:
    assert jepa_run(*TINY, "train.watch_every=null", f"run_dir={tmp_path}").status == 0
    assert not any(row.keys() & PANEL for row in read_metrics(tmp_path / "metrics.jsonl"))


def test_a_collapse_is_said_once_with_its_step_and_what_helps(
    tmp_path: Path, jepa_run: Callable[..., Ran], collapsed_from_the_second_look: None
) -> None:
    ran = jepa_run(*WATCHED, f"run_dir={tmp_path}")
    assert ran.status == 0
    assert ran.log.count("step 4: collapsed: the rank fell. What usually helps: a regulariser") == 1
    assert "state      finished" in ran.out


def test_a_collapse_can_stop_the_run_with_a_checkpoint(
    tmp_path: Path, jepa_run: Callable[..., Ran], collapsed_from_the_second_look: None
) -> None:
    ran = jepa_run(*WATCHED, "train.stop_on_collapse=true", f"run_dir={tmp_path}")
    assert ran.status == 0
    assert "stopped after step 4 (collapsed: the rank fell)" in ran.out
    assert steps_kept(tmp_path) == [4]


def test_looking_changes_nothing_that_is_learned(tmp_path: Path, jepa_run: Callable[..., Ran]) -> None:
    for name, every in (("often", "1"), ("never", "null")):
        assert jepa_run(*TINY, f"train.watch_every={every}", f"run_dir={tmp_path / name}").status == 0
    often, never = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("often", "never"))
    assert [row["loss"] for row in often] == [row["loss"] for row in never]
