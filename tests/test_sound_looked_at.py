"""A run on sound, looked at: spectrograms upright and wide, in the report, in masks.png and in the explorer."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from jepa import run
from jepa.data import JointInputs, LogMel, Normalize
from jepa.explore import Explorer, ExploreSettings, explorer
from jepa.pictures import frame_width, mask_sheet, sounds_of, to_image, to_rgb, upright
from jepa.report.__main__ import main as report
from jepa.report.blocks import picture
from jepa.report.source import Settings, gather, open_run
from jepa.types import Indices, JepaBatch, Task, View
from tests.conftest import Ran, forget_accelerate
from tests.test_clips_looked_at import TINY_CLIPS
from tests.test_report import section
from tests.tiny import TINY

FRAMES, BANDS = 64, 16
TINY_SOUNDS = (
    "recipe=ajepa_tiny",
    f"data.size=[{FRAMES},{BANDS}]",
    "data.dataset.count=24",
    "data.workers=0",
    "masker=random_patches",
    "encoder.dim=32",
    "encoder.depth=1",
    "encoder.heads=2",
    "predictor.dim=32",
    "predictor.depth=1",
    "predictor.heads=2",
    "train.samples=null",
    "train.steps=1",
    "train.batch_size=8",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sounds") / "run"
    forget_accelerate()
    assert run.main([*TINY_SOUNDS, f"run_dir={folder}"]) == 0
    forget_accelerate()
    return folder


def test_what_is_handed_to_the_model_is_named(tmp_path: Path, jepa_run: Callable[..., Ran]) -> None:
    for command, name in ((TINY_SOUNDS, "waves"), (TINY, "images"), ([*TINY_CLIPS, "train.steps=1"], "clips")):
        ran = jepa_run(*command, f"run_dir={tmp_path / name}")
        assert f"jepa.load('{tmp_path / name}').features({name})" in ran.out, ran.err


@pytest.fixture(scope="module")
def found(trained: Path) -> Explorer:
    return explorer(ExploreSettings(run=str(trained), samples=16))


def pictures(text: str) -> list[Image.Image]:
    sources = re.findall(r'<img src="data:image/\w+;base64,([^"]*)"', text)
    return [Image.open(BytesIO(base64.b64decode(source))) for source in sources]


def test_time_runs_to_the_right_and_low_frequencies_are_at_the_bottom() -> None:
    x = torch.zeros(1, 1, 6, 4)
    x[..., 5, 0] = 1  # the last frame, the lowest band
    shown = upright(to_rgb(x))[0]
    assert shown.shape == (3, 4, 6)
    assert (shown[0] == 1).nonzero().tolist() == [[3, 5]]


def test_a_batch_transform_says_which_modalities_are_sounds() -> None:
    class Own(nn.Module):
        parts = ("left", "right")  # which are no transforms
        rate = 0.5  # of nothing that could be heard

    mel, pixels = LogMel(rate=4000, size=(8, 8)), Normalize([0.5] * 3, [0.2] * 3)
    assert sounds_of(mel) == {"": 4000}
    assert sounds_of(JointInputs({"clip": pixels, "sound": mel})) == {"sound": 4000}
    assert sounds_of(pixels) == sounds_of(Own()) == {}


def test_outlines_follow_both_sides_of_a_picture() -> None:
    assert [frame_width(size) for size in ((48, 48), (224, 224), (16, 224, 224), (1024, 128))] == [1, 2, 2, 3]


def test_wide_pictures_keep_512_pixels() -> None:
    assert Image.open(BytesIO(base64.b64decode(picture(torch.rand(3, 128, 1024)).source.split(",")[1]))).size == (
        512,
        64,
    )
    assert picture(torch.rand(3, 128, 1024)).ratio == 8


def test_every_picture_of_the_page_is_upright(trained: Path) -> None:
    assert report([f"run={trained}", "samples=16"]) == 0
    page = (trained / "report.html").read_text()
    settings = Settings(run=str(trained), samples=16)
    opened = open_run(settings)
    material = gather(opened, settings, lambda _: None)[0]
    assert material.spectrograms
    assert material.rate == 16000
    expected = to_image(upright(to_rgb(material.x[:8]))[3])
    for name in ("features", "attention"):
        assert pictures(section(page, name))[3].convert("RGB").tobytes() == expected.tobytes()
    for name in ("masks", "features", "attention", "neighbours"):
        assert {shown.size for shown in pictures(section(page, name))} == {(FRAMES, BANDS)}
    asked = pictures(section(page, "answers"))
    assert {shown.size for shown in asked[:4]} == {(FRAMES, BANDS)}
    assert "Time runs to the right" in section(page, "masks")


def test_masks_of_long_spectrograms_lie_below_each_other() -> None:
    x = torch.rand(3, 1, 512, 64, generator=torch.Generator().manual_seed(0))
    grid = (32, 4)
    context = Indices.of(torch.arange(3), torch.ones(3, dtype=torch.long), grid)
    query = Indices.of(torch.tensor([9, 99] * 3), torch.ones(6, dtype=torch.long), grid)
    batch = JepaBatch(View(x), [Task(View(x, context), query)])
    sheet = mask_sheet(batch, spectrograms=("",))
    assert sheet.size == (512 + 6, 2 * 5 * (64 + 6 + 18))
    first = to_image(upright(to_rgb(x))[0])
    assert sheet.crop((0, 18, 512, 18 + 64)).tobytes() == first.tobytes()
    twice = x.repeat(1, 1, 2, 1)
    assert mask_sheet(JepaBatch(View(twice), [Task(View(twice, context), query)]), spectrograms=("",)).width == 512 + 3


def test_masks_of_a_run_are_upright(trained: Path) -> None:
    sheet = Image.open(trained / "masks.png")
    assert sheet.width == FRAMES + 6


def test_the_explorer_shows_spectrograms(found: Explorer) -> None:
    assert found.rgb.shape[1:] == (3, BANDS, FRAMES)
    assert found.grid == (FRAMES // 8, BANDS // 8)
    image = found.picture(0, 0)
    assert image.size == (FRAMES * found.zoom, BANDS * found.zoom)
    assert found.cell_at(0, image.height - 1) == 0  # the first frames, the lowest bands
    assert found.cell_at(image.width - 1, 0) == FRAMES // 8 * BANDS // 8 - 1
    for cell in (0, 3, 15):
        time, frequency = divmod(cell, BANDS // 8)
        left, bottom = 8 * time * found.zoom, image.height - 1 - 8 * frequency * found.zoom
        assert found.picture(0, cell).getpixel((left, bottom)) == (234, 88, 12)
    assert len(found.heads(0, 3, 0)) == 2
    assert len(found.neighbours(0, 3)) > 0
