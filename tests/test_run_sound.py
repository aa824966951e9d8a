"""Sound files train as pictures do: exact resume, two processes, dry run, panel, probes, and a page to listen to."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest
import torch

import jepa
from jepa import dry_run, evaluate, run
from jepa import recipe as recipes
from jepa.data import Audio
from jepa.data.tones.__main__ import main as write_tones
from jepa.metrics import read_metrics
from jepa.report.__main__ import main as report
from jepa.report.blocks import BITS, HEARD, player
from tests.conftest import Ran, forget_accelerate
from tests.films import film
from tests.recordings import record, wave
from tests.test_bad_input import only_line
from tests.test_distributed import STEPS, assert_same_training, torchrun
from tests.test_report import section
from tests.test_resume import assert_same_weights, numbers
from tests.tiny import losses

Run = Callable[..., Ran]
COUNT, RATE = 24, 8000


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sounds")
    assert write_tones([str(folder), f"count={COUNT}", f"rate={RATE}", "kind=flac"]) == 0
    return folder


def tiny(root: Path, *more: str) -> list[str]:
    """Of files, with masks that change in the course of the run."""
    return [
        "recipe=ajepa_tiny",
        "data=audio",
        f"data.root={root}",
        "data.dataset.list_file=labels.csv",
        f"data.dataset.rate={RATE}",
        "data.dataset.seconds=0.512",
        "data.size=[32,32]",
        "data.batch_transform.window=0.064",
        "data.batch_transform.hop=0.016",
        "data.workers=0",
        "masker=curriculum",
        "masker.then.targets=1",
        "encoder.dim=32",
        "encoder.depth=1",
        "encoder.heads=2",
        "predictor.dim=32",
        "predictor.depth=1",
        "train.batch_size=8",
        "train.log_every=1",
        *STEPS,
        *more,
    ]


@pytest.fixture(scope="module")
def trained(sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "whole"
    forget_accelerate()
    assert run.main([*tiny(sounds), f"run_dir={folder}"]) == 0
    forget_accelerate()
    return folder


def test_a_run_on_sound_files_resumes_exactly(sounds: Path, trained: Path, tmp_path: Path, jepa_run: Run) -> None:
    shutil.copytree(trained, tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "step_00000006")
    ran = jepa_run(*tiny(sounds), f"run_dir={tmp_path / 'stopped'}")
    assert ran.status == 0, ran.err
    assert "resumed after step 3" in ran.log
    assert len(losses(trained)) == 6
    assert numbers(tmp_path / "stopped") == numbers(trained)
    assert_same_weights(tmp_path / "stopped", trained)


def test_the_panel_watches_sound(trained: Path) -> None:
    looked = [row for row in numbers(trained) if "target_rank" in row]
    assert [row["step"] for row in looked] == [2, 4, 6]
    for name in ("target_rank", "target_std", "position_share", "agreement_gain"):
        assert all(np.isfinite(row[name]) for row in looked), name


def test_two_processes_train_on_sound_as_one(sounds: Path, trained: Path, tmp_path: Path) -> None:
    ran = torchrun(*tiny(sounds), f"run_dir={tmp_path / 'two'}")
    assert ran.returncode == 0, ran.stderr
    assert_same_training(tmp_path / "two", trained)


def test_a_dry_run_of_sound_files(sounds: Path) -> None:
    text = dry_run.describe(recipes.load_recipe([*tiny(sounds), "dry_run=true"]))
    assert "4 x 4 = 16 tokens" in text
    assert f"48 = 2.0 epochs of {COUNT}" in text


def test_features_of_sounds_of_any_length(trained: Path) -> None:
    pretrained = jepa.load(trained)
    waves = torch.from_numpy(wave(RATE, 1.024))[None]
    assert pretrained.features(waves).shape == (1, 32)
    assert pretrained.features(waves, pool="none").shape == (1, 8, 4, 32)
    assert pretrained.features(waves[..., :4096], pool="none").shape == (1, 4, 4, 32)
    with pytest.raises(ValueError, match=r"a multiple of 128 \(the hop\)"):
        pretrained.features(waves[..., :4000])


@pytest.mark.parametrize(
    ("recipe", "same"),
    [
        ("ajepa_vitb16", {"list_file": "l.csv", "rate": 8000, "seconds": 5.12, "channels": 2, "crops": 8,
                          "short": "loop", "silence": -40.0}),
        ("avjepa_vitb16", {"list_file": "l.csv", "frames": 8, "fps": 4.0, "duration": 3.0, "rate": 8000, "channels": 2,
                           "clips": 3, "short": "skip", "silence": -40.0, "min_side": 64}),
    ],
)  # fmt: skip
def test_what_probes_are_given_is_cut_as_in_training(recipe: str, same: dict[str, object]) -> None:
    given = [f"data.dataset.{key}={value}" for key, value in same.items()]
    data = recipes.load_recipe([f"recipe={recipe}", "data.root=DIR", *given, "dry_run=true"])["data"]
    assert data["dataset"].keys() == {*same, "_target_", "root"}
    for part in ("train", "test"):
        assert {key: data["labelled"][part][key] for key in same} == same
        assert data["labelled"][part]["random"] is False


def folder_of(root: Path, count: int) -> list[str]:
    """Two steps on a folder, with at most so many samples in a batch."""
    changed = ("data.dataset.list_file", "train.steps", "train.batch_size", "train.watch_every")
    kept = [key for key in tiny(root) if not key.startswith(changed)]
    return [*kept, "train.steps=2", f"train.batch_size={count}", "train.watch_every=null"]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("damaged", "0.wav: cut off, damaged or not a sound file"),
        ("silent", "0.wav: silent: no sample of the crop is above -60 dB of full scale"),
        ("pictures", "0.mp4: no sound in it, only video"),
    ],
)
def test_a_folder_without_any_sound_is_refused(kind: str, reason: str, tmp_path: Path, jepa_run: Run) -> None:
    root = tmp_path / kind
    root.mkdir()
    for number in range(5):
        if kind == "damaged":
            (root / f"{number}.wav").write_bytes(b"no sound " * 100)
        elif kind == "silent":
            record(root / f"{number}.wav", np.zeros((1, RATE), np.float32), RATE)
        else:
            film(root / f"{number}.mp4", 10)
    line = only_line(jepa_run(*folder_of(root, 4), f"run_dir={tmp_path / 'run'}"))
    assert line.startswith("error: 5 samples in a row are unreadable (the whole dataset): ")
    assert reason in line
    assert line.endswith("; ...")


def test_bad_files_among_sounds_are_named_and_counted(tmp_path: Path, jepa_run: Run) -> None:
    for number in range(3):
        record(tmp_path / "sounds" / f"{number}.flac", wave(RATE, 1), RATE, "flac")
    record(tmp_path / "sounds" / "hush.wav", np.zeros((1, RATE), np.float32), RATE)
    damaged = bytearray((tmp_path / "sounds" / "0.flac").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "sounds" / "changed.flac").write_bytes(damaged)
    ran = jepa_run(*folder_of(tmp_path / "sounds", 5), f"run_dir={tmp_path / 'run'}")
    assert ran.status == 0, ran.err
    assert "skipped hush.wav: silent" in ran.log
    assert re.search("skipped changed.flac: (cut off or )?damaged", ran.log)
    skipped = [row["skipped"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert skipped == sorted(skipped)
    assert skipped[-1] >= 4  # each epoch is a batch


def test_two_channels_are_trained_on(tmp_path: Path, jepa_run: Run) -> None:
    for number in range(4):
        record(tmp_path / "sounds" / f"{number}.wav", wave(RATE, 1, channels=2), RATE)
    stereo = [*folder_of(tmp_path / "sounds", 4), "data.dataset.channels=2"]
    line = only_line(jepa_run(*stereo, f"run_dir={tmp_path / 'run'}"))
    assert "the data has 2 channels: set encoder.in_chans=2" in line
    ran = jepa_run(*stereo, "encoder.in_chans=2", f"run_dir={tmp_path / 'run'}")
    assert ran.status == 0, ran.err
    assert len(losses(tmp_path / "run")) == 2
    waves = torch.from_numpy(wave(RATE, 0.512, channels=2))[None]
    assert jepa.load(tmp_path / "run").features(waves).shape == (1, 32)


def test_a_list_with_several_classes_is_probed(sounds: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.split(",") for line in (sounds / "labels.csv").read_text().splitlines()]
    column = lines[0].index("timbres")
    (sounds / "timbres.csv").write_text("".join(f"{cells[0]},{cells[column]}\n" for cells in lines))
    others = ["data=audio", f"data.root={sounds}", "data.dataset.list_file=timbres.csv", "data.workers=0"]
    status = evaluate.main([f"run={trained}", "probes=[linear]", *others])
    assert status == 0, capsys.readouterr().err
    rows = json.loads((trained / "evaluation.json").read_text())
    assert {(row["task"], row["metric"]) for row in rows} == {("timbres", "map")}
    assert {row["features"] for row in rows} == {"model", "random_init", "pixels", "chance"}
    assert all(0 < row["score"] <= 1 for row in rows)


def decoded(source: str) -> np.ndarray:
    """(samples,) at 48 kHz of a data URI."""
    kind, _, text = source.partition(",")
    assert kind == "data:audio/webm;base64"
    with av.open(BytesIO(base64.b64decode(text))) as container:
        return np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1).mean(0)


def test_the_neighbours_of_a_sound_can_be_heard(sounds: Path, trained: Path, tmp_path: Path) -> None:
    assert report([f"run={trained}", "samples=16", f"output={tmp_path / 'page.html'}"]) == 0
    page = (tmp_path / "page.html").read_text()
    near = section(page, "neighbours")
    players = re.findall(r'<audio controls preload="metadata" src="([^"]*)"></audio>', near)
    assert len(players) == near.count("<img ") == page.count("<audio ") == 8 * 7
    assert not re.search(r"https?://|<script", page)
    name = re.findall("<h3>(.*?)</h3>", near)[0]
    audio = Audio(sounds, RATE, 0.512, list_file="labels.csv")
    whole = Audio(sounds, RATE, 1.024, list_file="labels.csv")
    number = next(i for i in range(COUNT) if audio.files.name(i) == name)
    played, track = decoded(players[0]), whole[number].x[0]
    assert len(played) == pytest.approx(0.512 * 48000, abs=1000)
    low = torch.nn.functional.avg_pool1d(torch.from_numpy(played)[None], 6)[0]  # 8 kHz again, roughly
    found = torch.nn.functional.conv1d(track[None, None], low[200:3800][None, None])[0, 0]
    energy = torch.nn.functional.conv1d(track[None, None] ** 2, torch.ones(1, 1, 3600))[0, 0]
    assert (found / (energy * (low[200:3800] ** 2).sum()).sqrt()).max() > 0.9


def test_players_are_small_and_the_same_each_time() -> None:
    x = torch.randn(2, 20 * 22050, generator=torch.Generator().manual_seed(0)) / 8
    heard = player(x, 22050)
    assert heard == player(x, 22050)
    assert len(heard) < 1.1 * HEARD * BITS / 8 * 4 / 3 + 2000
    assert len(decoded(heard)) == pytest.approx(HEARD * 48000, abs=2000)
