"""Exported folders: plain JSON, a card that says what they are, to the hub and back, looked at like runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

import jepa
from jepa import evaluate, run
from jepa.convert.__main__ import main as convert
from jepa.report.__main__ import main as report
from tests.conftest import forget_accelerate
from tests.test_convert import hf_model, ijepa_checkpoint, saved
from tests.tiny import TINY


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    forget_accelerate()
    assert run.main([*TINY, f"run_dir={path}"]) == 0
    forget_accelerate()
    row = {"task": "shape", "probe": "knn", "metric": "accuracy", "seed": 0, "details": {}}
    scores = {"model": 0.75, "random_init": 0.5, "pixels": 0.25, "chance": 0.2}
    rows = [{**row, "features": name, "score": score} for name, score in scores.items()]
    (path / "evaluation.json").write_text(json.dumps(rows))
    return path


def test_the_card_says_what_the_weights_are(run_dir: Path, tmp_path: Path) -> None:
    model = jepa.load(run_dir)
    model.facts["licence"] = "mit"
    model.save_pretrained(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.license, card.data.library_name) == ("mit", "jepa")
    for said in (
        "| licence | mit |",
        "| data | Shapes, inputs of 32 |",
        "| recipe | ijepa_tiny |",
        "| steps | 4 optimiser steps |",
        "| samples | 32 |",
        "| hardware | 1 x cpu (",
        f"| trained with | torch {torch.__version__} |",
        "| shape, knn | accuracy | 0.750 | 0.500 | 0.250 | 0.200 |",
        "_target_: jepa.encoders.ViT",
    ):
        assert said in card.text
    everything = card.content + (tmp_path / "out" / "config.json").read_text()
    assert str(run_dir) not in everything  # places on one's own machine are nobody's business
    loaded = jepa.load(tmp_path / "out")
    assert loaded.step == 4
    assert loaded.facts["licence"] == "mit"
    x = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    assert torch.equal(loaded.features(x), model.features(x))


def test_to_the_hub_and_back(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = tmp_path / "hub"

    class Api:
        def __init__(self, token: str | None = None) -> None: ...

        def create_repo(self, repo_id: str, **_: Any) -> SimpleNamespace:
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, *, repo_id: str, folder_path: Path, **_: Any) -> str:
            shutil.copytree(folder_path, hub / repo_id)
            (hub / repo_id / "code.py").write_text("raise SystemExit")
            return f"https://hub/{repo_id}"

    def snapshot(repo_id: str, *, allow_patterns: list[str], **_: Any) -> str:
        return shutil.copytree(hub / repo_id, tmp_path / "cache", ignore=lambda _, names: {*names} - {*allow_patterns})

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    monkeypatch.setattr("jepa.loading.snapshot_download", snapshot)
    model = jepa.load(run_dir)
    assert model.push_to_hub("me/tiny") == "https://hub/me/tiny"
    back = jepa.Pretrained.from_pretrained("me/tiny")
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["config.json", "model.safetensors"]
    for key, value in model.model.state_dict().items():
        assert torch.equal(back.model.state_dict()[key], value)
    assert not (tmp_path / "hub" / "me" / "tiny" / "evaluation.json").exists()


def converted(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> str:
    if kind == "hf":
        hf_model(tmp_path / "source")
        arguments = [f"from={tmp_path / 'source'}", "recipe=ijepa_tiny"]
    else:
        saved(ijepa_checkpoint(), tmp_path / "source.pth.tar")
        arguments = [f"from={tmp_path / 'source.pth.tar'}", "kind=ijepa", "recipe=ijepa_small", "heads=2"]
        arguments += ["predictor_heads=2", "licence=cc-by-nc-4.0"]
    assert convert([*arguments, f"to={tmp_path / 'out'}", "keys=true"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", ["ijepa", "hf"])
def test_evaluated_and_reported_like_a_run(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = converted(tmp_path, kind, capsys)
    assert "renamed" in said
    theirs = "encoder.module.norm.weight" if kind == "ijepa" else "layernorm.weight"
    assert f"{theirs} -> encoder.transformer.norm.weight" in said
    folder = tmp_path / "out"
    assert evaluate.main([f"run={folder}", "limit=60", "probes=[knn]"]) == 0
    assert {row["features"] for row in json.loads((folder / "evaluation.json").read_text())} >= {"model", "chance"}
    capsys.readouterr()
    assert report([f"run={folder}", "samples=16"]) == 0, capsys.readouterr().err
    page = (folder / "report.html").read_text()
    assert "converted from" in page
    assert ("These weights came without a predictor" in page) == (kind == "hf")
    if kind == "ijepa":
        assert "| licence | cc-by-nc-4.0 |" in (folder / "README.md").read_text()


def test_other_data_is_given_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hf_model(tmp_path / "source")
    assert convert([f"from={tmp_path / 'source'}", f"to={tmp_path / 'out'}"]) == 0  # the recipe of ImageNet
    for command in (evaluate.main, report):
        assert command([f"run={tmp_path / 'out'}"]) == 1
        assert "does not say where its data are: give data=NAME data.root=DIR" in capsys.readouterr().err
    for label in ("cat", "dog"):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (40, 36), (i * 9, 80 * len(label), 7)).save(tmp_path / "pictures" / label / f"{i}.png")
    assert report([f"run={tmp_path / 'out'}", "data=images", f"data.root={tmp_path / 'pictures'}", "samples=16"]) == 0
    assert "Images" in (tmp_path / "out" / "report.html").read_text()


def test_a_run_goes_out_by_the_command(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for format, name in (("hf", "hf"), ("timm", "t.safetensors")):
        arguments = [f"from={run_dir}", f"as={format}", f"to={tmp_path / name}"]
        assert convert(arguments) == 1
        assert "say which=target (what papers evaluate) or which=context" in capsys.readouterr().err
        assert convert([*arguments, "which=target"]) == 0
        assert "unused" in capsys.readouterr().out
    assert convert([f"from={run_dir}", "as=ijepa", f"to={tmp_path / 'm.pth.tar'}", "heads=2"]) == 1
    assert "would not be used" in capsys.readouterr().err
    assert convert([f"from={run_dir}", "as=ijepa", f"to={tmp_path / 'm.pth.tar'}"]) == 0
