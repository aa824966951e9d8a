"""The bench measures a recipe and prints every row."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jepa import bench
from tests.tiny import TINY, TINY_BUT_TARGET

ROWS = ("recipe", "samples/s", "tokens/s", "TFLOP/s", "matmul peak", "memory", "step", *bench.PHASES)


@pytest.mark.parametrize(
    "extra", [[], ["target._target_=jepa.targets.StopGradient", "train.accumulate=2", "train.epochs=9"]]
)
def test_every_row_is_printed(
    extra: list[str],
    fresh_accelerate: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert bench.main([*(TINY_BUT_TARGET if extra else TINY), "bench.steps=2", "bench.warmup=1", *extra]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:15].strip() for line in lines] == list(ROWS)
    values = {line[:15].strip(): line[15:] for line in lines}
    for name in ROWS[1:]:
        number = float(re.match(r"[\d,.]+", values[name])[0].replace(",", ""))
        assert number > 0 or (extra and name in ("target", "target update")), name
    shares = [float(re.search(r"([\d.]+)%", values[name])[1]) for name in bench.PHASES]
    assert sum(shares) == pytest.approx(100, abs=1)
    assert list(tmp_path.iterdir()) == []  # nothing is written
