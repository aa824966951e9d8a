"""Clips with their sound: synthesised ones, their files, and films of any kind."""

from __future__ import annotations

import re
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from jepa.data import (
    BouncingSounds,
    DataError,
    Films,
    JointInputs,
    LogMel,
    Normalize,
    RandomErasing,
    each_modality,
    keep_modalities,
)
from jepa.data.bouncing_sounds import _Flight
from jepa.data.bouncing_sounds.__main__ import main as write_bouncing_sounds
from jepa.data.films import read_film
from jepa.data.moving_shapes.files import add_clip
from jepa.data.sampling import Sampling
from jepa.data.sound import Excerpt
from jepa.data.tones.files import add_sound
from jepa.types import JepaBatch, UnreadableSample, View
from tests.films import numbers, picture, talkie
from tests.recordings import wave

RATE = 16_000


def test_bouncing_sounds_are_a_function_of_seed_and_index() -> None:
    data = BouncingSounds(30)
    first, again = data[7], BouncingSounds(30)[7]
    assert first.x["clip"].equal(again.x["clip"])
    assert first.x["sound"].equal(again.x["sound"])
    assert first.x["clip"].shape == (3, 16, 48, 48)
    assert first.x["sound"].shape == (1, 32_000)
    assert not BouncingSounds(30, split="test")[7].x["clip"].equal(first.x["clip"])
    assert not BouncingSounds(30, seed=1)[7].x["sound"].equal(first.x["sound"])
    assert min(sample.labels["hits"] for sample in (data[i] for i in range(30))) >= 1
    for wrong in ({"frames": 2}, {"split": "both"}, {"size": 4}, {"fps": 200}):
        with pytest.raises(DataError, match="need count"):
            BouncingSounds(**wrong)
    with pytest.raises(IndexError):
        data[30]


def test_every_clip_is_heard() -> None:
    """Its first stroke comes at least 50 ms before its end."""
    for fps, frames in ((8, 16), (30, 8)):
        data = BouncingSounds(8000, fps=fps, frames=frames)
        seconds = [(frames - _Flight.drawn(data, i).hits[0]) / fps for i in range(8000)]
        assert 0.05 <= min(seconds) < 0.06
    assert _Flight.drawn(BouncingSounds(), 1).hits == pytest.approx([9.806567, 10.046045])  # as it was without that


def test_what_is_heard_is_what_is_seen() -> None:
    """Strokes come when the object turns back, and low ones from large objects."""
    data = BouncingSounds(60)
    times = np.arange(0, 16, 1e-3)
    pitches, sizes = [], []
    for i in range(60):
        flight, sample = _Flight.drawn(data, i), data[i]
        path = (flight.start + times[:, None] * flight.velocity) % (2 * flight.room)
        path = np.minimum(path, 2 * flight.room - path)  # as it is drawn
        turns = np.sort(np.concatenate([1 + (np.diff(np.sign(np.diff(axis))) != 0).nonzero()[0] for axis in path.T]))
        np.testing.assert_allclose(times[turns], [hit for hit in flight.hits if 0.002 < hit < 15.998], atol=0.002)
        assert sample.labels["hits"] == len(flight.hits)
        energy = sample.x["sound"][0].unfold(0, 160, 160).square().mean(1)  # 10 ms
        loud = int((energy > 0.02 * energy.max()).nonzero()[0])
        assert abs(0.01 * loud - flight.hits[0] / 8) < 0.03
        pitches.append(int(torch.fft.rfft(sample.x["sound"][0]).abs()[150:].argmax()))
        sizes.append(sample.labels["size"])
    correlation = torch.corrcoef(torch.stack((torch.tensor(sizes), torch.tensor(pitches).float().log())))
    assert correlation[0, 1] < -0.7


def test_films_of_bouncing_sounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert write_bouncing_sounds([str(tmp_path / "films"), "count=3"]) == 0
    drawn = BouncingSounds(3)
    films = Films(tmp_path / "films", 16, 16_000, fps=8, random=False, list_file="labels.csv")
    for i in range(3):
        read, made = films[i], drawn[i]
        assert (read.x["clip"].float() - made.x["clip"].float()).abs().mean() < 12
        sound = torch.cat((read.x["sound"], made.x["sound"]))
        assert torch.corrcoef(sound)[0, 1] > 0.98
        assert read.labels["hits"] == made.labels["hits"]
    assert write_bouncing_sounds([str(tmp_path / "x"), "size=25"]) == 1
    assert "even height" in capsys.readouterr().err
    assert write_bouncing_sounds([str(tmp_path / "x"), "rate=5000", "count=2"]) == 1
    assert re.fullmatch(r"error: AAC needs a rate of 7350, .*; got 5000\n", capsys.readouterr().err)
    once = BouncingSounds(3, files=tmp_path / "cache")
    assert once[1].x["clip"].equal(films[1].x["clip"])
    assert once.fingerprint != drawn.fingerprint


def test_the_sound_is_that_of_the_clip(tmp_path: Path) -> None:
    """Frames carry their number, the sound is noise: where the crop lies in it is found by correlation."""
    rate, fps, count = 16_000, 20, 120
    noise = torch.from_numpy(np.random.default_rng(0).uniform(-0.5, 0.5, (1, rate * count // fps)).astype(np.float32))
    clip = torch.from_numpy(np.stack([picture(number, (32, 64)) for number in range(count)])).permute(3, 0, 1, 2)
    with av.open(tmp_path / "a.mp4", "w") as container:
        for packets in (add_clip(container, clip, fps), add_sound(container, noise, rate, "aac")):
            for packet in packets:
                container.mux(packet)
    films = Films(tmp_path, 8, rate, duration=0.8, clips=3, random=False)
    assert len(films) == 3
    for i in range(3):
        x = films[i].x
        assert x["sound"].shape == (1, 12_800)
        begins = numbers(x["clip"].numpy())[0] / fps
        spectrum = torch.fft.rfft(noise[0]) * torch.fft.rfft(x["sound"][0], noise.shape[1]).conj()
        found = int(torch.fft.irfft(spectrum, noise.shape[1]).argmax())
        assert abs(found - begins * rate) <= 2
    silent = tmp_path / "silent"
    silent.mkdir()
    with av.open(silent / "b.mp4", "w") as container:
        for packet in add_clip(container, clip[:, :20], fps):
            container.mux(packet)
    with pytest.raises(UnreadableSample, match="no sound"):
        Films(silent, 8, rate, fps=10)[0]
    with pytest.raises(DataError, match="give fps or duration"):
        Films(tmp_path, 8, rate)


def read(path: Path, frames: int, fps: float, place: float, short: str) -> tuple[list[int], Tensor]:
    """Numbers of the frames of a clip, and its sound (samples,)."""
    excerpt = Excerpt(RATE, round(frames / fps * RATE), short=short)  # type: ignore[arg-type]
    x = read_film(path, path.name, Sampling(frames, fps=fps, short=short), excerpt, place)  # type: ignore[arg-type]
    return numbers(x["clip"].numpy()), x["sound"][0]


@pytest.mark.parametrize("short", ["pad", "loop", "skip"])
def test_a_film_that_is_long_enough_is_as_it_is_whatever_becomes_of_short_ones(tmp_path: Path, short: str) -> None:
    """The last frame of a clip may be the last one of the film, and then its sound ends with the film."""
    sound = torch.from_numpy(wave(RATE, 3))[0]
    path = talkie(tmp_path / "a.mov", sound[None].numpy(), RATE, count=30, fps=10, codec="pcm_s16le")
    frames, heard = read(path, 4, 2, 1.0, short)
    assert frames[0] / 10 == 1.5
    torch.testing.assert_close(heard[: 3 * RATE // 2], sound[3 * RATE // 2 :], rtol=0, atol=2e-4)
    assert not heard[3 * RATE // 2 :].any()


def test_a_film_that_starts_again_is_heard_again(tmp_path: Path) -> None:
    """With the period of its picture, whatever the length of its sound."""
    for seconds, begins in ((1.3, 0.0), (0.7, 0.2)):
        sound = wave(RATE, seconds)
        path = talkie(tmp_path / f"{seconds}.mov", sound, RATE, count=9, fps=9, begins=begins, codec="pcm_s16le")
        whole = np.zeros(RATE, np.float32)
        first = round(begins * RATE)
        whole[first : first + sound.shape[1]] = sound[0, : RATE - first]
        frames, heard = read(path, 8, 2, 0.3, "loop")
        assert frames == [0, 4] * 4
        torch.testing.assert_close(heard, torch.from_numpy(np.tile(whole, 4)), rtol=0, atol=2e-4)
        frames, heard = read(path, 8, 2, 0.3, "pad")
        assert frames == [0, 4, *[8] * 6]
        torch.testing.assert_close(heard[:RATE], torch.from_numpy(whole), rtol=0, atol=2e-4)
        with pytest.raises(UnreadableSample, match="too short for a clip"):
            read(path, 8, 2, 0.3, "skip")


def test_each_modality_has_its_own_transform() -> None:
    x = {"clip": torch.randn(2, 3, 4, 8, 12), "sound": torch.randn(2, 1, 16, 8)}
    changed = each_modality({"clip": lambda clip: clip + 1})(x)
    assert changed["clip"].equal(x["clip"] + 1)
    assert changed["sound"] is x["sound"]
    for wrong in (each_modality({"clp": torch.neg}), keep_modalities(["sound", "clp"])):
        with pytest.raises(DataError, match="names 'clp', the samples have clip, sound"):
            wrong(x)
        with pytest.raises(DataError, match="the samples have one modality, without a name"):
            wrong(x["clip"])
    both = JointInputs({"clip": Normalize([0.5] * 3, [0.2] * 3), "sound": LogMel(rate=4000, size=(8, 8), hop=0.01)})
    raw = {"clip": torch.zeros(2, 3, 4, 8, 8, dtype=torch.uint8), "sound": torch.randn(2, 1, 320)}
    made = both(JepaBatch(View(raw), [])).target.x
    assert made["clip"].unique().tolist() == [-2.5]
    assert made["sound"].shape == (2, 1, 8, 8)
    erasing = RandomErasing([0.5] * 3, [0.2] * 3, probability=1.0)
    erased = JointInputs({"clip": erasing, "sound": both.parts["sound"]})
    assert len(erased(JepaBatch(View(raw), [])).target.x["clip"].unique()) > 100
    assert erased.normalize(raw)["clip"].unique().tolist() == [-2.5]
    assert both.raw_shape({"clip": (3, 4, 8, 8), "sound": (1, 8, 8)}) == {"clip": (3, 4, 8, 8), "sound": (1, 320)}
