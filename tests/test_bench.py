"""The bench measures a recipe and prints every row."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import flop_registry

from benchmarks import gpu
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


def test_arithmetic_of_packed_attention_is_that_of_its_sequences() -> None:
    """As torch counts it for each sequence alone."""
    pytest.importorskip("torch.nn.attention.varlen")
    bench.register_varlen()
    q, lengths = torch.empty(18, 3, 8), [5, 1, 9, 3]
    ends = torch.tensor([0, 5, 6, 15, 18])
    forward, backward = torch.ops.torch_attn._varlen_attn, torch.ops.torch_attn._varlen_attn_backward
    alone = {name: flop_registry[getattr(torch.ops.aten, name)] for name in (
        "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_backward")}  # fmt: skip
    expected = [0, 0]
    for length in lengths:
        x = torch.empty(1, 3, length, 8, device="meta")
        for i, count in enumerate(alone.values()):
            expected[i] += count(*[x] * (3 + i))
    assert flop_registry[forward](q, q, q, ends, ends, 9, 9) == expected[0] > 0
    assert flop_registry[backward](q, q, q, q, q, q, ends, ends, 9, 9, False, q) == expected[1] > 0


def test_steps_on_a_device_are_compared(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu, "compile_blocks", lambda model: None)
    monkeypatch.setattr(gpu, "ROUNDS", 2)
    monkeypatch.setattr(gpu, "matmul_peak", lambda device, dtype: 1e12)
    small = [f"{part}.{key}" for part in ("encoder", "predictor") for key in ("dim=24", "depth=1", "heads=2")]
    gpu.compare("vjepa_vitl16", 2, torch.device("cpu"), [*small, "data.size=[4,224,224]"])
    lines = capsys.readouterr().out.splitlines()
    assert [line[2:22].strip() for line in lines[1:]] == list(gpu.VARIANTS)
    shares = [float(re.search(r"median ([\d.]+)", line)[1]) for line in lines[1:]]
    work = [float(re.search(r"([\d.]+) TFLOP,", line)[1]) for line in lines[1:]]
    assert min(shares) > 0
    assert work[1] == work[2]
