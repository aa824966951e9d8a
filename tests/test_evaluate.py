"""Probing a run from the command line: the table, its baselines, and that no test label is used for any choice."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from jepa import evaluate, run
from jepa.data import Shapes
from jepa.encoders import ViT
from jepa.nn.position import sincos_table
from jepa.probes import features
from jepa.probes.features import pixel_features
from jepa.probes.linear import LinearSettings, linear_probe
from jepa.probing import rows, sources
from tests.conftest import forget_accelerate
from tests.tiny import TINY

FEW_STEPS = LinearSettings(lrs=(0.1,), weight_decays=(1e-1, 1e-3), epochs=1, min_steps=10)
QUICK = ("data=shapes", "limit=120")
SMALL = ("data.labelled.train.count=120", "data.labelled.test.count=80")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    forget_accelerate()
    assert run.main([*TINY, "encoder.depth=4", f"run_dir={folder}"]) == 0
    forget_accelerate()
    return folder


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """How probes are chosen is under test here, not how well they are trained."""
    monkeypatch.setattr(rows, "LOW_SHOT", FEW_STEPS)
    monkeypatch.setattr(rows, "linear_probe", partial(linear_probe, settings=FEW_STEPS))


def rows_of(folder: Path) -> list[dict]:
    return json.loads((folder / "evaluation.json").read_text())


def test_table_sets_the_model_beside_its_baselines(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([f"run={trained}", *QUICK, *SMALL, "probes=[knn,linear,regression]"]) == 0
    rows = rows_of(trained)
    assert all({"task", "probe", "features", "metric", "score", "seed"} <= row.keys() for row in rows)
    probes = {(row["task"], row["probe"]) for row in rows}
    assert {("shape", "knn"), ("shape", "linear"), ("shape", "linear last4"), ("position", "regression")} <= probes
    for task, probe in probes:
        sources = {row["features"] for row in rows if (row["task"], row["probe"]) == (task, probe)}
        expected = {"model", "random_init"} | (set() if "last4" in probe else {"pixels", "chance"})
        assert sources == expected
    assert all(0 <= row["score"] <= 1 for row in rows if row["metric"] == "accuracy")
    printed = capsys.readouterr().out
    assert "random_init" in printed
    assert "linear last4" in printed
    assert (trained / "evaluation.csv").read_text().count("\n") == len(rows) + 1


def test_features_are_kept_and_used_again(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [f"run={trained}", *QUICK, *SMALL, "probes=[knn]"]
    assert evaluate.main(command) == 0
    before = rows_of(trained)

    def never(*arguments: object, **named: object) -> None:
        raise AssertionError("features were extracted again")

    monkeypatch.setattr(sources, "extract", never)
    assert evaluate.main(command) == 0
    assert rows_of(trained) == before
    with pytest.raises(AssertionError):
        evaluate.main([f"run={trained}", *QUICK, *SMALL, "probes=[knn]", "which=context"])


def test_some_labels_only(trained: Path) -> None:
    (trained / "evaluation.json").unlink(missing_ok=True)
    few = ("probes=[knn,regression]", "labels=[count,shape]")
    assert evaluate.main([f"run={trained}", *QUICK, *SMALL, *few]) == 0
    assert {row["task"] for row in rows_of(trained)} == {"count", "shape"}


def test_no_test_label_is_used_for_any_choice(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [f"run={trained}", *QUICK, *SMALL, "probes=[knn,linear,lowshot,regression]"]
    assert evaluate.main(command) == 0
    honest = rows_of(trained)
    cached = features.cached

    def shuffled(folder: Path, key: dict, make) -> features.Features:
        found = cached(folder, key, make)
        if key["part"] != "test":
            return found
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(1))
        return features.Features(found.x, {n: y[order] for n, y in found.labels.items()}, found.names)

    monkeypatch.setattr(sources, "cached", shuffled)
    assert evaluate.main(command) == 0
    wrong = rows_of(trained)
    strip = [{k: v for k, v in row.items() if k not in ("score", "details")} for row in wrong]
    assert strip == [{k: v for k, v in row.items() if k not in ("score", "details")} for row in honest]
    assert [r["details"].get("chosen") for r in wrong] == [r["details"].get("chosen") for r in honest]
    assert [r["score"] for r in wrong] != [r["score"] for r in honest]


def test_attentive_probes_run_on_tokens(trained: Path) -> None:
    command = [f"run={trained}", "data=shapes", "data.labelled.train.count=60", "data.labelled.test.count=30"]
    assert evaluate.main([*command, "probes=[attentive]"]) == 0
    assert {row["features"] for row in rows_of(trained)} == {"model", "random_init", "pixels", "chance"}


def test_raw_patches_are_what_the_encoder_is_given_and_where() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 13, 12)
    encoder = ViT(dim=24, depth=1, heads=2, patch_size=(2, 4, 4))
    encode = pixel_features(lambda x: x, encoder.grid)
    tokens = encode(x)["tokens"]
    places = sincos_table(96, (2, 3, 3))
    assert tokens.shape == (2, 18, 96)
    kernel = encoder.patch_embed.proj.weight.view(24, 3, 2, 4, 4)
    embedded = torch.conv3d(x, kernel, stride=(2, 4, 4)).flatten(2).mT
    assert torch.allclose((tokens - places) @ encoder.patch_embed.proj.weight.T, embedded, atol=1e-5)
    assert "tokens" not in pixel_features(lambda x: x)(x)


def test_fine_tuning_stands_beside_training_from_scratch(trained: Path) -> None:
    command = [f"run={trained}", "data=digits", "data.dataset.placed=false", "data.dataset.copies=1", "limit=64"]
    assert evaluate.main([*command, "probes=[finetune]"]) == 0
    before = rows_of(trained)
    assert {row["features"] for row in before} == {"model", "random_init", "chance"}
    assert evaluate.main([*command, "probes=[finetune]"]) == 0
    assert rows_of(trained) == before


@pytest.mark.parametrize("suffix", [".safetensors", ".parquet"])
def test_embeddings_are_written_with_names(trained: Path, tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"embeddings{suffix}"
    assert evaluate.main([f"run={trained}", *QUICK, *SMALL, f"embed={target}"]) == 0
    if suffix == ".safetensors":
        with safe_open(target, "pt") as file:
            assert file.get_tensor("embedding").shape == (120, 32)
            assert len(json.loads(file.metadata()["names"])) == 120
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        table = parquet.read_table(target)
        assert table.num_rows == 120
        assert {"name", "embedding", "label_shape"} <= set(table.column_names)


def folder_of_pictures(root: Path, classes: int, each: int) -> Path:
    shapes = Shapes(count=classes * each, size=32)
    for i in range(classes * each):
        place = root / f"class{i % classes}" if classes > 1 else root
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(shapes[i].x.permute(1, 2, 0).numpy()).save(place / f"{i}.png")
    return root


def test_own_folder_holds_out_its_own_test_set(trained: Path, tmp_path: Path) -> None:
    root = folder_of_pictures(tmp_path / "pictures", classes=3, each=20)
    assert evaluate.main([f"run={trained}", "data=images", f"data.root={root}", "data.workers=0", "probes=[knn]"]) == 0
    assert {row["task"] for row in rows_of(trained)} == {"label"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["data=shape"], "did you mean 'shapes'"),
        (["probe=[knn]"], "did you mean 'probes'"),
        (["probes=[knnn]"], "probes"),
        (["data.root=x"], "data=images data.root=x"),
        (["data=images"], "data.root"),
        (["data=images", "data.root=missing"], "missing"),
        (["embed=out.csv", *QUICK], ".parquet"),
        (["data=shapes", "limit=9", "probes=[knn]"], "choose k between 1 and that"),
        (["data=shapes", "limit=9", "probes=[movement]"], "masker jepa.maskers.Saccade"),
        (["data=shapes", "limit=9", "probes=[retrieval]", "sources=[pixels]"], "needs a model that joins modalities"),
        (["data=shapes", "limit=9", "probes=[finetune]", "sources=[pixels]"], "score nothing on the labels shape"),
        (["data=shapes", "labels=[colors]"], "labels: no 'colors' in the data, did you mean 'colour'?"),
        (["labels=[]"], "labels=[]: Value error, name at least one"),
        (["sources=[]"], "sources=[]: Value error, name at least one"),
        (["probes=[]"], "probes=[]: Value error, name at least one"),
        (["seeds=[]"], "seeds=[]: Value error, name at least one"),
        (["embed=out.parquet", "sources=[model]", *QUICK], "embed= probes nothing: sources= would not be used"),
        (["trained_probe=x", "sources=[model]"], "draws nothing: sources= would not be used"),
    ],
)
def test_bad_requests_get_one_clear_error(
    trained: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    written = (trained / "evaluation.json").read_text() if (trained / "evaluation.json").is_file() else ""
    assert evaluate.main([f"run={trained}", *arguments]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert said in error
    assert written == ((trained / "evaluation.json").read_text() if written else "")


def test_data_that_cannot_be_probed(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unlabelled = folder_of_pictures(tmp_path / "unlabelled", classes=1, each=6)
    assert evaluate.main([f"run={trained}", "data=images", f"data.root={unlabelled}", "data.workers=0"]) == 1
    assert "no labels" in capsys.readouterr().err
    few = folder_of_pictures(tmp_path / "few", classes=2, each=1)
    assert evaluate.main([f"run={trained}", "data=images", f"data.root={few}", "data.workers=0", "probes=[knn]"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_scores_stay_beside_later_ones_of_the_same_data(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    request = [f"run={trained}", *QUICK, *SMALL, "labels=[shape]", "sources=[model]"]
    caplog.set_level(logging.INFO, "jepa")

    def scored(*more: str) -> dict[str, float]:
        assert evaluate.main([*request, *more]) == 0
        return {row["probe"]: row["score"] for row in rows_of(trained) if row["features"] == "model"}

    (trained / "evaluation.json").unlink(missing_ok=True)
    first = scored("probes=[knn]", "seeds=[3]")
    both = scored("probes=[linear]", "seeds=[3]")
    assert both.keys() == {"knn", "linear", "linear last4"}
    assert both["knn"] == first["knn"]
    assert scored("probes=[knn]", "seeds=[3]") == both  # again, instead of twice
    assert len(rows_of(trained)) == 5  # with two of chance
    assert scored("probes=[knn]", "seeds=[3]", "which=context").keys() == {"knn"}
    assert "5 rows of other weights, data or limit= are replaced" in caplog.text


def test_an_interrupted_evaluation_leaves_what_it_has(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rows, "linear_probe", interrupted)
    (trained / "evaluation.json").unlink(missing_ok=True)
    with pytest.raises(KeyboardInterrupt):
        evaluate.main([f"run={trained}", *QUICK, *SMALL, "labels=[shape]", "sources=[model]", "probes=[knn,linear]"])
    assert {row["probe"] for row in rows_of(trained)} == {"knn"}


def test_a_run_without_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([f"run={tmp_path}"]) == 1
    assert "not a run directory" in capsys.readouterr().err


def test_another_number_of_channels(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = trained / "recipe.yaml"
    text = recipe.read_text()
    try:
        recipe.write_text(text.replace("in_chans: 3", "in_chans: 4"))
        assert evaluate.main([f"run={trained}", *QUICK]) == 1
        assert "does not fit the model" in capsys.readouterr().err
    finally:
        recipe.write_text(text)
