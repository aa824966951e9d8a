"""Trained attentive probes of others: the logits they give there they give here, on data too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import VJEPA2Config, VJEPA2ForVideoClassification

import jepa
from jepa import evaluate
from jepa.build import RecipeError
from jepa.checkpoint import CheckpointError
from jepa.convert import ConversionError, read_probe
from jepa.convert.__main__ import main
from jepa.data import MovingShapes
from jepa.probes.features import Features, extract
from jepa.probes.trained import TrainedProbe
from jepa.probing import sources
from tests.test_convert import saved, vit_keys
from tests.test_convert_attacks import Bomb
from tests.test_convert_video import CLIPS
from tests.test_probes_attentive import written_down
from tests.test_published import filled

CROSS = "pooler.cross_attention_block"


def published(kind: str, width: int = 32, classes: int = 5) -> dict[str, Any]:
    """What the published code saves."""
    shapes: dict[str, tuple[int, ...]] = {"pooler.query_tokens": (1, 1, width)}
    for name, rows, columns in (
        (f"{CROSS}.xattn.q", width, width),
        (f"{CROSS}.xattn.kv", 2 * width, width),
        (f"{CROSS}.mlp.fc1", 4 * width, width),
        (f"{CROSS}.mlp.fc2", width, 4 * width),
        ("linear", classes, width),
    ):
        shapes |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    shapes |= {f"{CROSS}.{norm}.{p}": (width,) for norm in ("norm1", "norm2") for p in ("weight", "bias")}
    rest: dict[str, Any] = {"epoch": 20, "batch_size": 4, "world_size": 64, "lr": 0.0}
    if kind == "vjepa_probe":
        shapes |= {f"{CROSS}.xattn.proj.weight": (width, width), f"{CROSS}.xattn.proj.bias": (width,)}
        return {"classifier": weights(shapes), "opt": {"state": {}}, "scaler": {"scale": 1.0}, **rest}
    shapes |= {k: s for k, s in vit_keys("pooler.", width, 3, 4 * width).items() if "blocks" in k}
    return {"classifiers": [weights(shapes), weights(shapes, 1.1)], "opt": [{}, {}], "scaler": None, **rest}


def weights(shapes: dict[str, tuple[int, ...]], factor: float = 1.0) -> dict[str, Tensor]:
    return {f"module.{key}": factor * filled(key, torch.Size(shape)) for key, shape in shapes.items()}


def state(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    found = checkpoint["classifier"] if "classifier" in checkpoint else checkpoint["classifiers"][0]
    return {key.removeprefix("module."): value.double() for key, value in found.items()}


@pytest.mark.parametrize(
    ("kind", "width", "heads", "told"),
    [("vjepa_probe", 32, 4, 4), ("vjepa_probe", 192, 3, None), ("vjepa2_probe", 32, 16, None)],
)
def test_published_probes(kind: Any, width: int, heads: int, told: int | None, tmp_path: Path) -> None:
    checkpoint = published(kind, width)
    probe, report = read_probe(saved(checkpoint, tmp_path / "probe.pth.tar"), kind, told)
    assert probe.settings.heads == heads
    assert "LayerNorm epsilon: 1e-05 (fixed in their code)" in str(report)
    x = torch.randn(3, 7, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = written_down(state(checkpoint), x, heads, probe.settings.depth)
    torch.testing.assert_close(probe.head.double()(x), expected, rtol=0, atol=1e-12)

    part = "classifier" if kind == "vjepa_probe" else "classifiers.0"
    rest = checkpoint.keys() - {"classifier", "classifiers"} | ({"classifiers.1"} if kind == "vjepa2_probe" else set())
    accounted = [entry.theirs for entry in report.entries]
    assert sorted(accounted) == sorted({f"{part}.module.{key}" for key in state(checkpoint)} | rest)
    assert {e.ours for e in report.entries if e.ours} == probe.head.state_dict().keys()
    unused = {entry.theirs for entry in report.of("unused")} - rest
    assert unused == {f"{part}.module.{CROSS}.xattn.proj.{p}" for p in ("weight", "bias") if kind == "vjepa_probe"}


def classifier(folder: Path, **config: Any) -> VJEPA2ForVideoClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "crop_size": 32, "patch_size": 8}
    sizes |= {"frames_per_clip": 4, "pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
    sizes |= {"num_pooler_layers": 2}
    model = VJEPA2ForVideoClassification(VJEPA2Config(**{**sizes, **config})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    "config",
    [
        {"num_labels": 4},
        {"num_labels": 2, "layer_norm_eps": 1e-2, "hidden_act": "relu"},
        {"num_labels": 7, "num_pooler_layers": 3, "num_attention_heads": 4, "mlp_ratio": 2.0},
        {"num_labels": 3, "num_pooler_layers": 0},
    ],
)
def test_probes_of_transformers(config: dict[str, Any], tmp_path: Path) -> None:
    theirs = classifier(tmp_path, **config)
    probe, report = read_probe(tmp_path, "hf_probe")
    assert probe.settings.norm_eps == theirs.config.layer_norm_eps
    assert probe.names is None
    assert {entry.theirs for entry in report.entries} == theirs.state_dict().keys()
    with torch.no_grad():
        x = theirs.vjepa2(torch.randn(2, 4, 3, 32, 32), skip_predictor=True).last_hidden_state
        expected = theirs.classifier(theirs.pooler(x))
        torch.testing.assert_close(probe.head(x), expected, rtol=1e-5, atol=1e-5)


def test_a_converted_probe_is_scored_on_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Model and probe of one folder of transformers, through both commands: the accuracy that transformers gives."""
    data = MovingShapes(count=24, size=[32, 32], frames=4, seed=1, split="test")
    names = data.label_names["shape"]
    assert names is not None
    theirs = classifier(
        tmp_path / "hf", num_labels=len(names), id2label=dict(enumerate(reversed(names))), num_pooler_layers=1
    )
    (tmp_path / "clips.yaml").write_text(CLIPS)
    folder = tmp_path / "folder"
    assert main([f"from={tmp_path / 'hf'}", f"recipe={tmp_path / 'clips.yaml'}", f"to={folder}"]) == 0
    assert "kind=hf_probe reads it" in capsys.readouterr().out
    assert main([f"from={tmp_path / 'hf'}", "kind=hf_probe", f"to={folder}"]) == 0
    assert "named by the source" in capsys.readouterr().out
    model = jepa.load(folder)
    clips = model.normalize(torch.stack([data[i].x for i in range(24)]))
    with torch.no_grad():
        outputs = theirs(clips.transpose(1, 2)).logits.argmax(1)
    right = [theirs.config.id2label[int(o)] == names[int(data[i].labels["shape"])] for i, o in enumerate(outputs)]
    assert 0 < sum(right) < 24

    command = [f"run={folder}", f"trained_probe={folder}"]
    clips_data = ["data=moving_shapes", "data.workers=0", "data.labelled.test.count=24"]
    assert evaluate.main([*command, *clips_data]) == 0
    rows = {(r["task"], r["features"]): r for r in json.loads((folder / "evaluation.json").read_text())}
    assert rows["shape", "model"]["score"] == sum(right) / 24
    assert rows["shape", "model"]["details"]["samples"] == 24
    assert rows["shape", "chance"]["score"] >= 1 / len(names)
    assert not (folder / "features").exists()

    with monkeypatch.context() as patched:  # two clips of each recording: the probe reads the tokens of both
        patched.setattr(MovingShapes, "clips", 2, raising=False)
        assert evaluate.main([*command, *clips_data]) == 0
    tokens = model.features(clips, pool="none").flatten(1, -2).unflatten(0, (12, 2)).flatten(1, 2)
    probe = TrainedProbe.load(folder)
    answers = probe.codes(names)[probe.head(tokens).argmax(1)].tolist()
    right = [answer == int(data[2 * i].labels["shape"]) for i, answer in enumerate(answers)]
    joined = next(r for r in json.loads((folder / "evaluation.json").read_text()) if r["task"] == "shape")
    assert (joined["score"], joined["details"]["samples"]) == (sum(right) / 12, 12)

    for name, width, many in (("wide", 48, len(names)), ("many", 32, 97)):
        path = saved(published("vjepa_probe", width, many), tmp_path / f"{name}.pth.tar")
        assert main([f"from={path}", "kind=vjepa_probe", "heads=4", f"to={tmp_path / name}"]) == 0
    capsys.readouterr()
    for arguments, said in [
        ([f"trained_probe={tmp_path / 'many'}"], "has 97 classes; labels of the data and their classes: "),
        ([f"trained_probe={tmp_path / 'wide'}"], "takes tokens of width 48, this model's are 32 wide"),
        ([f"trained_probe={tmp_path / 'hf'}"], "holds no trained probe"),
        ([f"trained_probe={folder}", "probes=[knn]"], "probes= would not be used"),
        ([f"trained_probe={folder}", "embed=x.parquet"], "embed= would not be used"),
    ]:
        assert evaluate.main([f"run={folder}", *arguments, *clips_data]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert said in error

    def hot(*arguments: Any, **named: Any) -> Features:
        found = extract(*arguments, **named)
        return Features(found.x, {name: y[:, None].expand(-1, 3) for name, y in found.labels.items()}, found.names)

    monkeypatch.setattr(sources, "extract", hot)
    assert evaluate.main([*command, *clips_data]) == 1
    assert "gives samples several classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "edit", "said"),
    [
        ("vjepa_probe", lambda c: c.pop("classifier"), r"lacks 'classifier'; it holds 'opt'"),
        ("vjepa2_probe", lambda c: c.update(classifiers={}), "is not a list of probes"),
        ("vjepa_probe", lambda c: c["classifier"].pop("module.linear.bias"), r"1 keys are missing .*linear\.bias"),
        ("vjepa_probe", lambda c: c["classifier"].update({"module.x": torch.ones(1)}), "1 are not accounted for"),
        ("vjepa_probe", lambda c: c["classifier"].update({"x": torch.ones(1)}), "does not begin with 'module.'"),
        ("vjepa_probe", lambda c: c["classifier"].update({"module.linear.bias": torch.ones(4)}), r"shape \(4,\)"),
        ("vjepa_probe", lambda c: c["classifier"].update({"module.linear.bias": torch.ones(5).int()}), "int32"),
        (
            "vjepa_probe",
            lambda c: c["classifier"].update({"module.pooler.query_tokens": torch.ones(1, 3, 32)}),
            "one, \\(1, 1, width\\)",
        ),
        (
            "vjepa_probe",
            lambda c: c["classifier"].update({"module.pooler.blocks.0.norm1.weight": torch.ones(32)}),
            "1 are not accounted for",
        ),
        ("vjepa_probe", lambda c: c["classifier"].pop("module.pooler.query_tokens"), "has no attentive probe"),
        ("vjepa_probe", lambda c: c.update(extra=torch.ones(1)), "'extra' holds a Tensor that is not accounted for"),
    ],
)
def test_other_files_are_refused(kind: Any, edit: Callable[[dict], Any], said: str, tmp_path: Path) -> None:
    checkpoint = published(kind)
    edit(checkpoint)
    with pytest.raises(ConversionError, match=said):
        read_probe(saved(checkpoint, tmp_path / "probe.pth.tar"), kind, 4)


def test_what_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(published("vjepa_probe"), tmp_path / "probe.pth.tar")
    with pytest.raises(ConversionError, match="width of 32 does not say"):
        read_probe(path, "vjepa_probe")
    with pytest.raises(ConversionError, match="heads=5 does not divide"):
        read_probe(path, "vjepa_probe", 5)
    assert main([f"from={path}", "kind=vjepa_probe", f"to={tmp_path / 'x'}", "as=onnx"]) == 1
    assert "as= would not be used" in capsys.readouterr().err
    bomb = Bomb(tmp_path / "exploded")
    torch.save({**published("vjepa_probe"), "opt": bomb}, path)
    with pytest.raises(ConversionError, match="Nothing in it was run"):
        read_probe(path, "vjepa_probe", 4)
    assert not bomb.path.exists()


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda c: c.update(format="jepa probe 9"), "format: Input should be 'jepa probe 1'"),
        (lambda c: c["head"].update(_target_="os.system"), "_target_: Extra inputs"),
        (lambda c: c["head"].update(heads=5), "heads=5 does not divide"),
        (lambda c: c["head"].update(classes="5"), r"head\.classes: "),
        (lambda c: c["head"].update(classes=6), "does not fit the model"),
        (lambda c: c.update(names=["a"]), "has 1 names for 5 classes"),
        (lambda c: c["weights"].update(sha256="0"), "is damaged"),
    ],
)
def test_folders_that_say_otherwise(edit: Callable[[dict], Any], said: str, tmp_path: Path) -> None:
    probe, _ = read_probe(saved(published("vjepa_probe"), tmp_path / "probe.pth.tar"), "vjepa_probe", 4)
    probe.save(tmp_path)
    back = TrainedProbe.load(tmp_path).head.state_dict()
    assert all(torch.equal(back[key], value) for key, value in probe.head.state_dict().items())
    config = json.loads((tmp_path / "probe.json").read_text())
    edit(config)
    (tmp_path / "probe.json").write_text(json.dumps(config))
    with pytest.raises((RecipeError, CheckpointError), match=said):
        TrainedProbe.load(tmp_path)
