"""A run on clips, probed and reported on: segments and views, moving pictures, and the masks of each task."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from functools import partial
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from jepa import evaluate, run
from jepa.data import MovingShapes, Videos, side_crops
from jepa.data.moving_shapes.files import write_files
from jepa.explore import ExploreSettings, explorer
from jepa.probes.attentive_fit import AttentiveSettings, attentive_probe, fit_attentive
from jepa.probes.base import Labelled
from jepa.probes.features import InOrder, extract, recordings
from jepa.probes.finetune import FinetuneSettings, batches, finetune
from jepa.probes.linear import LinearSettings, linear_probe
from jepa.probing import rows
from jepa.report.__main__ import main as report
from jepa.types import Sample, UnreadableSample
from tests.conftest import forget_accelerate
from tests.test_report import section

TINY_CLIPS = (
    "recipe=vjepa_tiny",
    "data.size=[4,32,32]",
    "masker=multiblock3d",
    "predictor=vit",
    "predictor.mask_tokens=2",
    "encoder.patch_size=[2,8,8]",
    "data.dataset.count=40",
    "data.labelled.train.count=40",
    "data.labelled.test.count=20",
    "data.workers=0",
    "encoder.dim=32",
    "encoder.depth=1",
    "encoder.heads=2",
    "predictor.dim=32",
    "predictor.depth=1",
    "train.samples=null",
    "train.steps=2",
    "train.batch_size=8",
)
MOTION, APPEARANCE = {"direction", "speed", "bounce"}, {"shape", "colour", "count"}
ONE_SETTING = LinearSettings(lrs=(0.1,), weight_decays=(1e-3,), epochs=1, min_steps=5)
LITTLE = AttentiveSettings(2, lrs=(1e-3,), weight_decays=(1e-2,), epochs=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips") / "run"
    forget_accelerate()
    assert run.main([*TINY_CLIPS, f"run_dir={folder}"]) == 0
    forget_accelerate()
    return folder


@pytest.fixture(scope="module")
def page(trained: Path) -> str:
    assert report([f"run={trained}", "samples=16"]) == 0
    return (trained / "report.html").read_text()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which features reach the probes is under test here, not how well they are trained."""
    monkeypatch.setattr(rows, "LOW_SHOT", ONE_SETTING)
    monkeypatch.setattr(rows, "linear_probe", partial(linear_probe, settings=ONE_SETTING))
    monkeypatch.setattr(AttentiveSettings, "vjepa", lambda heads: LITTLE)
    monkeypatch.setattr(rows, "finetune", partial(finetune, settings=FinetuneSettings(epochs=1)))


def scores(folder: Path) -> list[dict]:
    return json.loads((folder / "evaluation.json").read_text())


def test_every_probe_on_motion_and_appearance(trained: Path, quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([f"run={trained}", "probes=[knn,linear,regression,attentive]"]) == 0
    rows = scores(trained)
    assert {row["task"] for row in rows} == MOTION | APPEARANCE
    for task in MOTION | APPEARANCE:
        probes = {row["probe"] for row in rows if row["task"] == task}
        assert probes == ({"regression"} if task in ("speed", "count") else {"knn", "linear", "attentive"})
    pixels = {row["probe"] for row in rows if row["features"] == "pixels"}
    assert pixels == {"knn", "linear", "regression", "attentive"}
    table = capsys.readouterr().out
    assert all(task in table for task in MOTION | APPEARANCE)
    assert report([f"run={trained}", "samples=16", f"output={trained / 'probed.html'}"]) == 0
    probed = section((trained / "probed.html").read_text(), "probes")
    assert "direction, attentive" in probed
    assert "shape, attentive" in probed


def test_segments_and_views_of_real_files(
    trained: Path, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = MovingShapes(20, (32, 48), 8)
    for split in ("train", "test"):  # the same videos: of so few, others would lack a class
        write_files(clips, tmp_path / split)
        lines = [f"{i:06}.mp4,{clips[i].labels['shape']}" for i in range(20)]
        (tmp_path / split / "shapes.csv").write_text("\n".join(["path,shape", *lines]))
    (tmp_path / "test" / "000000.mp4").write_bytes(b"no video")
    seen: list[tuple[int, ...]] = []
    probe = rows.attentive_probe

    def look(train: Labelled, test: Labelled, *arguments: object, **named: object) -> object:
        seen.extend((tuple(train.x.shape), tuple(test.x.shape)))
        return probe(train, test, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(rows, "attentive_probe", look)
    settings = {
        "": "videos",
        "root": tmp_path / "train",
        "test_root": tmp_path / "test",
        "dataset.list_file": "shapes.csv",
        "dataset.fps": "null",
        "dataset.stride": 1,
        "labelled.train.clips": 2,
        "eval_transform._target_": "jepa.data.side_crops",
        "eval_transform.views": 3,
        "workers": 0,
    }
    data = [f"data{'.' * bool(key)}{key}={value}" for key, value in settings.items()]
    assert evaluate.main([f"run={trained}", *data, "probes=[knn,attentive,finetune]"]) == 0
    # two clips of 2 x 4 x 4 tokens: of the encoder, and raw
    assert set(seen) == {(count, 3, 2 * 32, width) for count in (20, 19) for width in (32, 384)}
    assert {row["probe"] for row in scores(trained)} == {"knn", "attentive", "finetune"}


class Levels:
    """Three recordings of two clips, of one number each; of one recording nothing can be read, or one clip."""

    clips = 2

    def __init__(self, lost: Sequence[int] = (2, 3)) -> None:
        self.lost = lost

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> Sample:
        if i in self.lost:
            raise UnreadableSample(f"film {i // 2}#{i % 2}", "made so")
        x = torch.full((1, 2, 4, 8), float(i))
        return Sample(x + torch.arange(8.0) / 8, {"of": i // 2}, f"film {i // 2}#{i % 2}")


def columns(x: Tensor) -> dict[str, Tensor]:
    """As tokens (B, 2, 1) the mean of each frame; the mean of all."""
    tokens = x.float().mean((1, 3, 4))[..., None]
    return {"last": tokens.mean(1), "tokens": tokens}


def test_clips_of_a_recording_become_one_sample_and_views_stay_apart() -> None:
    dataset = Levels()
    found = extract(dataset, side_crops(4, views=3), columns, batch_size=2)
    assert found.names == ["film 0", "film 2"]
    assert found.labels["of"].tolist() == [0, 2]
    view = torch.tensor([1.5, 3.5, 5.5]) / 8  # mean of the columns that each sees
    tokens = torch.tensor([[0.0, 0, 1, 1], [4, 4, 5, 5]])[:, None] + view[:, None]
    assert torch.allclose(found.x["tokens"][..., 0], tokens)
    assert torch.allclose(found.x["last"][:, 0], tokens.mean((1, 2)))
    single = extract(dataset, None, columns)
    assert single.x["tokens"].shape == (2, 4, 1)
    assert recordings(dataset) == 3
    assert extract(dataset, None, columns, indices=[2]).names == ["film 2"]
    assert InOrder(dataset, side_crops(4, views=3), [0]).inputs == 6


@pytest.mark.parametrize("lost", [2, 3])
def test_what_is_readable_of_a_recording_is_averaged(lost: int, caplog: pytest.LogCaptureFixture) -> None:
    held = 5 - lost
    found = extract(Levels((lost,)), side_crops(4, views=3), columns, batch_size=12)
    assert found.names == ["film 0", "film 1", "film 2"]
    assert f"skipped film 1#{lost - 2}: made so" in caplog.text
    view = torch.tensor([1.5, 3.5, 5.5]) / 8
    assert torch.allclose(found.x["tokens"][1, ..., 0], held + view[:, None].expand(3, 4))
    assert torch.allclose(found.x["last"][1, 0], held + view.mean())
    assert torch.allclose(found.x["last"][2, 0], 4.5 + view.mean())
    items = InOrder(Levels((lost,)), side_crops(4, views=3), range(3))
    x, y, counts = next(batches(items, "of", 3, 0))
    assert counts == [6, 3, 6]
    assert y.tolist() == [0, 1, 2]
    assert x.shape == (15, 1, 2, 4, 4)
    assert x[6:9].floor().unique().tolist() == [held]


def test_names_are_those_of_the_videos(tmp_path: Path) -> None:
    write_files(MovingShapes(2, 32, 8), tmp_path)
    found = extract(Videos(tmp_path, 4, stride=1, clips=2, random=False), None, columns)
    assert found.names == ["000000.mp4", "000001.mp4"]
    assert found.x["tokens"].shape == (2, 8, 1)


def test_probabilities_are_averaged_over_views() -> None:
    torch.manual_seed(0)
    y = torch.arange(60) % 3
    x = torch.randn(60, 2, 5, 8) + torch.nn.functional.one_hot(y, 8)[:, None, None] * 2.0
    settings = AttentiveSettings(2, lrs=(1e-2,), weight_decays=(1e-2,), epochs=4, batch_size=16)
    probe, _ = fit_attentive(Labelled(x, y), settings)
    apart = torch.stack([probe.head(x[:, view]).softmax(1) for view in range(2)]).mean(0)
    assert torch.allclose(probe.log_probabilities(x).exp(), apart, atol=1e-5)
    assert torch.equal(probe.predict(x), probe.classes[apart.argmax(1)])
    assert torch.allclose(probe.log_probabilities(x[:, 0]), probe.head(x[:, 0]).log_softmax(1), atol=1e-6)
    score = attentive_probe(Labelled(x, y), Labelled(x, y), settings)
    assert score.score > 0.8


def test_one_view_is_as_no_view() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(40, 5, 8), torch.arange(40) % 2
    settings = AttentiveSettings(2, epochs=2)
    plain, axis = fit_attentive(Labelled(x, y), settings), fit_attentive(Labelled(x[:, None], y), settings)
    assert plain[1] == axis[1]
    assert torch.equal(plain[0].predict(x), axis[0].predict(x[:, None]))


def durations(source: str) -> list[int]:
    """Milliseconds of each frame of a picture that is shown at 128 x 128 again and again."""
    found = []
    with Image.open(BytesIO(base64.b64decode(source))) as moving:
        assert moving.size == (128, 128)
        assert moving.info.get("loop", 0) == 0
        for number in range(moving.n_frames):  # type: ignore[attr-defined]
            moving.seek(number)
            moving.load()
            found.append(moving.info["duration"])
    return found


def test_the_page_of_a_run_on_clips_moves(page: str) -> None:
    pictures = {name: re.findall("<img ", section(page, name)) for name in re.findall('<section id="(.*?)"', page)}
    assert {name: len(found) for name, found in pictures.items() if found} == {
        "masks": 4 * 2 * 4,
        "answers": 6 * (4 + 7),
        "features": 3 * 8,
        "attention": (1 + 1 + 2) * 8,
        "neighbours": 8 * 7,
    }
    for name in ("masks", "features", "attention", "neighbours"):
        sources = re.findall(r'<img src="data:image/webp;base64,([^"]*)"', section(page, name))
        lengths = [durations(source) for source in sources]
        assert {sum(found) for found in lengths} == {1600}
        assert max(len(found) for found in lengths) == 4  # fewer where frames are equal
    stills = re.findall(
        r'<source media="print, \(prefers-reduced-motion\)" srcset="data:image/webp;base64,([^"]*)"', page
    )
    assert len(stills) == page.count("<img ")
    assert Image.open(BytesIO(base64.b64decode(stills[0]))).n_frames == 1  # type: ignore[attr-defined]
    assert len(page) < 25_000 * len(stills)
    for name in ("curves", "panel", "throughput"):
        assert "<svg" in section(page, name)
    assert "4 × 32 × 32 with 3 channels, 2 × 4 × 4 tokens" in section(page, "run")


def test_the_masks_of_each_task_are_shown(page: str, trained: Path) -> None:
    titles = re.findall("<h3>(.*?)</h3>", section(page, "masks"))
    assert [title.rpartition(", ")[2] for title in titles] == ["task short", "task long"] * 4
    assert titles[0].rpartition(",")[0] == titles[1].rpartition(",")[0]
    sheet = Image.open(trained / "masks.png")
    assert sheet.size == ((32 + 6) * 4 * 3, 2 * 2 * 4 * ((32 + 6) * 3 + 18))


def test_the_explorer_lays_frames_out_to_be_clicked_on(trained: Path) -> None:
    found = explorer(ExploreSettings(run=str(trained), samples=16))
    side = 32 * found.zoom
    assert found.picture(0, 0).size == (2 * side, 2 * side)  # four frames
    places = [found.cell_at(x, y) for y in (0, side) for x in (0, side)]
    assert places == [0, 0, 16, 16]  # tokens are two frames long
    assert len(found.heads(0, 17, 0)) == 2
    assert found.place(0, 17) == f"Patch (2, 1, 2) of 2 × 4 × 4 in {found.names[0]}"
