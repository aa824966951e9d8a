"""Scenes that earlier runs were started on."""

from __future__ import annotations

from jepa.data import Shapes


def test_runs_that_know_nothing_of_light_go_on() -> None:
    """They hold this fingerprint; another one would be other data."""
    assert Shapes(count=10_000, size=64, seed=0, split="train").fingerprint == "a391a26cadbc1766"
    assert len({Shapes(light=light).fingerprint for light in (0.0, 0.5, 1.0)}) == 3
