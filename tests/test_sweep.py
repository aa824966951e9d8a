"""Sweeps: their curves, and the table: a column for each number, and arms that are probed in their own way."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from benchmarks import curves
from benchmarks.sweep import read, table

ARMS = {"recipe": "x", "evaluate": ["limit=9"], "arms": {"one": [], "two": []}, "evaluate_arms": {"two": ["limit=3"]}}


def written(folder: Path, sweep: dict) -> str:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep))
    return str(path)


def test_every_metric_of_a_probe_has_a_column(tmp_path: Path) -> None:
    sweep = read([written(tmp_path, ARMS), "seeds=0", "arms=one", f"out={tmp_path}"])
    rows = [("clip", "retrieval", f"recall@{k}", score) for k, score in ((1, 0.1), (5, 0.3), (10, 0.5))]
    rows += [("shape", "linear", "accuracy", 0.9)]
    run_dir = sweep.run_dir("one", 0)
    run_dir.mkdir(parents=True)
    named = [dict(zip(("task", "probe", "metric", "score"), row, strict=True), features="model") for row in rows]
    (run_dir / "evaluation.json").write_text(json.dumps(named))
    (run_dir / "metrics.jsonl").write_text("")
    head, _, line, *_ = (text.strip("| ").split(" | ") for text in table(sweep).splitlines())
    columns = ["clip, retrieval, recall@1", "clip, retrieval, recall@5", "clip, retrieval, recall@10", "shape, linear"]
    assert head[-6:-2] == columns
    assert line[2:6] == ["0.100", "0.300", "0.500", "0.900"]


def test_an_arm_may_be_probed_in_its_own_way(tmp_path: Path) -> None:
    sweep = read([written(tmp_path, ARMS)])
    assert sweep.probing("one") == ["limit=9"]
    assert sweep.probing("two") == ["limit=9", "limit=3"]
    with pytest.raises(SystemExit, match=r"evaluate_arms names \['three'\]; the arms are \['one', 'two'\]"):
        read([written(tmp_path, ARMS | {"evaluate_arms": {"three": []}})])


def test_curves_of_two_runs(tmp_path: Path) -> None:
    for name, rank in (("healthy", 40.0), ("collapsed", 3.0)):
        rows = [{"step": s, "samples": 32 * s, "loss": 1 / s, "target_rank": rank * s} for s in (1, 2, 3)]
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "curves.svg"
    curves.main([str(out), *(f"{n} & so on={tmp_path / n}" for n in ("healthy", "collapsed")), "show=loss,target_rank"])
    page = ElementTree.fromstring(out.read_text())
    texts = [text.text for text in page.iterfind(".//{*}text")]
    assert {"loss, over samples", "target rank, over samples", "healthy & so on", "collapsed & so on"} <= set(texts)
    lines = [path.get("d") for path in page.iterfind(".//{*}path") if (path.get("d") or "").count("L") == 2]
    assert len(lines) == len(set(lines)) + 1 == 4  # the losses are alike, the ranks are not
