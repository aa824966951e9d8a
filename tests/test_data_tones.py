"""Synthesised sounds, their files, and spectrograms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchaudio.functional import preemphasis
from torchaudio.transforms import MelSpectrogram

from jepa.build import build
from jepa.data import Audio, DataError, LogMel, Tones
from jepa.data.logmel import FLOOR
from jepa.data.tones.__main__ import main
from jepa.data.tones.synthesis import LOWEST, TIMBRES, Voice
from jepa.recipe import load_recipe
from jepa.types import JepaBatch, View


def test_sounds_depend_on_seed_split_and_number_alone() -> None:
    tones = Tones(count=8)
    sample = tones[3]
    assert sample.x.shape == (1, 16384)
    assert sample.x.dtype == torch.float32
    assert torch.equal(Tones(count=100)[3].x, sample.x)
    for other in (Tones(count=8, seed=1), Tones(count=8, split="test")):
        assert not torch.equal(other[3].x, sample.x)
    assert len({t.fingerprint for t in (tones, Tones(count=9), Tones(count=8, seed=1), Tones(8, split="test"))}) == 4
    with pytest.raises(IndexError):
        tones[8]


def test_labels_say_what_is_heard() -> None:
    tones = Tones(count=64)
    samples = [tones[i] for i in range(64)]
    assert {s.labels["sources"] for s in samples} == {1.0, 2.0, 3.0}
    assert len({s.labels["timbre"] for s in samples}) == len(TIMBRES)
    for s in samples:
        assert 20 * np.log10(float(s.x.abs().max())) == pytest.approx(s.labels["loudness"], abs=1e-3)
        assert s.labels["timbres"][s.labels["timbre"]] == 1
        assert 1 <= s.labels["timbres"].sum() <= s.labels["sources"]
    assert tones.label_names["timbres"] == list(TIMBRES)
    assert samples[0].labels.keys() == tones.label_names.keys()


@pytest.mark.parametrize("timbre", TIMBRES)
def test_an_instrument_plays_its_pitch(timbre: str) -> None:
    voice = Voice(timbre, pitch=2.0, rhythm="once")
    spectrum = np.abs(np.fft.rfft(voice.play(16000, 16000, np.random.default_rng(0))))  # bins of 1 Hz
    pitch = LOWEST * 4 * np.sqrt(1 + TIMBRES[timbre].stretch)
    near = spectrum[round(pitch) - 15 : round(pitch) + 16]
    assert near.max() > 0.5 * spectrum.max()
    assert near.max() > 20 * np.median(spectrum)


def test_impossible_sounds_are_refused() -> None:
    for arguments in ({"count": 0}, {"rate": 100}, {"seconds": 0.1}, {"seed": -1}, {"split": "both"}):
        with pytest.raises(DataError, match="need count >= 1"):
            Tones(**arguments)


def test_files_hold_the_same_sounds_and_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tones = Tones(4, seconds=0.5)
    read = Tones(4, seconds=0.5, files=tmp_path)
    for i in range(4):
        torch.testing.assert_close(read[i].x, tones[i].x, rtol=0, atol=1e-4)
    assert read.fingerprint != tones.fingerprint
    for kind in ("flac", "opus"):
        assert main([str(tmp_path / kind), "count=4", "seconds=0.5", f"kind={kind}"]) == 0
        assert capsys.readouterr().out == f"4 sounds: {tmp_path / kind / 'labels.csv'}\n"
        files = Audio(tmp_path / kind, 16000, 0.5, list_file="labels.csv", silence=None, random=False)
        assert files.label_names["timbres"] is not None
        for i in range(4):
            ours, theirs = tones[i].labels, files[i].labels
            assert files.label_names["rhythm"][theirs["rhythm"]] == tones.label_names["rhythm"][ours["rhythm"]]
            assert theirs["pitch"] == pytest.approx(ours["pitch"])
            heard = {n for n, on in zip(files.label_names["timbres"], theirs["timbres"], strict=True) if on}
            assert heard == {n for n, on in zip(TIMBRES, ours["timbres"], strict=True) if on}
            if kind == "flac":
                assert torch.equal(files[i].x, read[i].x)
            else:
                spectra = torch.fft.rfft(torch.cat((files[i].x, tones[i].x))).abs()
                assert torch.corrcoef(spectra)[0, 1] > 0.9


def test_the_command_explains_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "kind=wav" in capsys.readouterr().out
    assert main([str(tmp_path), "kind=mp4", "count=2"]) == 1
    assert "need kind wav, flac, opus" in capsys.readouterr().err


SPECTROGRAMS = {  # settings of LogMel and of torchaudio
    "torchaudio's own": (
        {"size": (40, 64), "window": 0.025, "hop": 0.0125, "n_fft": 400},
        {"sample_rate": 16000, "n_mels": 64},  # of 128 bands some would be empty
    ),
    "limits": (
        {"size": (64, 80), "window": 0.025, "hop": 0.016, "low": 20.0, "high": 7600.0},
        {"sample_rate": 16000, "n_fft": 512, "win_length": 400, "hop_length": 256, "f_min": 20.0, "f_max": 7600.0,
         "n_mels": 80},
    ),
    "choices": (
        {"size": (64, 80), "window": 0.032, "window_type": "hamming", "mel_scale": "slaney", "norm": "slaney",
         "power": 1.0},
        {"sample_rate": 16000, "n_fft": 512, "hop_length": 160, "n_mels": 80, "window_fn": torch.hamming_window,
         "mel_scale": "slaney", "norm": "slaney", "power": 1.0},
    ),
}  # fmt: skip
SHIPPED = {  # recipes
    "ajepa_tiny": {"sample_rate": 16000, "n_fft": 1024, "hop_length": 256, "n_mels": 64},
    "ajepa_vitb16": {"sample_rate": 16000, "n_fft": 1024, "win_length": 400, "hop_length": 160, "f_min": 20.0},
    "audio_jepa_vitb16": {"sample_rate": 32000, "n_fft": 4096, "win_length": 3125, "hop_length": 1250, "f_min": 20.0},
    "avjepa_tiny": {"sample_rate": 16000, "n_fft": 1024, "hop_length": 250, "n_mels": 64},
    "avjepa_vitb16": {"sample_rate": 16000, "n_fft": 1024, "win_length": 400, "hop_length": 160},
}


def waves(samples: int) -> Tensor:
    """(2, 2, samples), two channels of two sounds, as often as needed."""
    x = torch.stack([torch.cat((Tones(4)[i].x, Tones(4)[i + 2].x)) for i in range(2)])
    return x.repeat(1, 1, -(-samples // x.shape[2]))[:, :, :samples]


def assert_is_torchaudios(logmel: LogMel, settings: dict[str, Any]) -> None:
    x = waves(logmel.raw_shape((2, logmel.frames, 1))[1])
    expected = MelSpectrogram(**settings)(preemphasis(x, logmel.preemphasis)).clamp_min(FLOOR).log()
    expected = expected[..., : logmel.frames].mT
    torch.testing.assert_close(logmel.energies(x).clamp_min(FLOOR).log(), expected)
    assert expected.shape[:3] == (2, 2, logmel.frames)


@pytest.mark.parametrize("name", SPECTROGRAMS)
def test_log_mel_is_torchaudios(name: str) -> None:
    ours, theirs = SPECTROGRAMS[name]
    assert_is_torchaudios(LogMel(rate=16000, **ours), theirs)


@pytest.mark.parametrize("recipe", SHIPPED)
def test_spectrograms_of_the_recipes_are_torchaudios(recipe: str) -> None:
    node = load_recipe([f"recipe={recipe}", "dry_run=true"])["data"]["batch_transform"]
    assert_is_torchaudios(build(node.get("parts", {}).get("sound", node), "data.batch_transform"), SHIPPED[recipe])


@pytest.mark.parametrize("recipe", ["ajepa_vitb16", "avjepa_vitb16"])
@pytest.mark.parametrize("rate", [44100, 48000])
def test_the_recipes_take_any_rate(recipe: str, rate: int) -> None:
    node = load_recipe([f"recipe={recipe}", "dry_run=true", f"data.dataset.rate={rate}"])["data"]["batch_transform"]
    logmel = build(node.get("parts", {}).get("sound", node), "data.batch_transform")
    assert (logmel.rate, logmel.mel.n_fft) == (rate, 2048)


def test_spectrograms_are_normalised_and_taken_as_they_are() -> None:
    x = waves(16384)
    logmel = LogMel(rate=16000, size=(64, 80), hop=0.016, mean=-3.0, std=2.0)
    made = logmel.normalize(x)
    assert made.shape == (2, 2, 64, 80)
    torch.testing.assert_close(made, (logmel.energies(x).clamp_min(FLOOR).log() + 3) / 2)
    assert logmel.normalize(made) is made
    shorts = (x * 2**15).round().clamp(-(2**15), 2**15 - 1).short()
    torch.testing.assert_close(logmel.normalize(shorts), logmel.normalize(shorts / 2**15))
    assert logmel.raw_shape((1, 64, 80)) == (1, 16384)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 32000, 44100, 48000])
def test_the_transform_holds_the_window_and_leaves_no_band_empty(rate: int) -> None:
    logmel = LogMel(rate=rate, size=(4, 128), low=20.0)
    points, window = logmel.mel.n_fft, round(0.025 * rate)
    assert points & (points - 1) == 0
    assert points >= window
    if points >= 4 * window:  # twice as much as the window needs
        with pytest.raises(ValueError, match="hold no frequency"):
            LogMel(rate=rate, size=(4, 128), low=20.0, n_fft=points // 2)


def test_sounds_of_other_lengths_have_features_but_are_not_trained_on() -> None:
    x = waves(16384)
    logmel = LogMel(rate=16000, size=(64, 80), hop=0.016, mean=0.0, std=1.0)
    half = logmel.normalize(x[..., :8192])
    torch.testing.assert_close(half[:, :, :30], logmel.normalize(x)[:, :, :30])  # the last frames see the mirror
    assert half.shape == (2, 2, 32, 80)
    with pytest.raises(
        ValueError, match=r"64 frames need .* 16384\), which are 1.024 s at 16000 Hz, got \(2, 2, 8192\)"
    ):
        logmel(JepaBatch(View(x[..., :8192]), []))
    for wrong in (8191, 256):
        with pytest.raises(ValueError, match=r"a multiple of 256 \(the hop\) and more than 256 samples at 16000 Hz"):
            logmel.normalize(x[..., :wrong])


def test_each_spectrogram_may_be_normalised_by_itself() -> None:
    x = torch.stack([Tones(3)[i].x for i in range(3)])
    made = LogMel(rate=16000, size=(64, 64), hop=0.016, window=0.064).forward(JepaBatch(View(x), [])).target.x
    torch.testing.assert_close(made.mean((1, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(made.std((1, 2, 3)), torch.ones(3))
    assert torch.isfinite(LogMel(rate=16000, size=(4, 8)).normalize(torch.zeros(1, 1, 640))).all()


@pytest.mark.parametrize(("window", "most", "nearly_all"), [("povey", 0.03, 0.02), ("hann", 0.6, 0.15)])
@pytest.mark.parametrize("before", [0.0, 0.97])
def test_it_is_nearly_kaldis(window: str, most: float, nearly_all: float, before: float) -> None:
    """Kaldi's triangles have straight sides in mel, not in Hz; its Hann window is symmetric."""
    from torchaudio.compliance.kaldi import fbank

    theirs = {"povey": "povey", "hann": "hanning"}[window]
    for i in range(3):
        x = Tones(3)[i].x
        kaldi = fbank(x, num_mel_bins=64, window_type=theirs, sample_frequency=16000, remove_dc_offset=False,
                      preemphasis_coefficient=before)  # fmt: skip
        logmel = LogMel(rate=16000, size=(102, 64), low=20.0, n_fft=512, window_type=window, preemphasis=before,
                        mean=0.0, std=1.0)  # fmt: skip
        ours = logmel.normalize(x[None, :, 40 : 40 + 16320])[0, 0]  # frame k + 1 is centred where Kaldi's frame k is
        apart = (ours[2:100] - kaldi[1:99]).abs()
        assert apart.max() < most
        assert apart.quantile(0.99) < nearly_all


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": (0, 64)}, "need size"),
        ({"low": 9000.0}, "low < high <= rate / 2"),
        ({"mean": 1.0}, "give mean and std > 0, or neither"),
        ({"n_fft": 256}, "n_fft=256 is shorter than the window of 400"),
        ({"size": (64, 400), "n_fft": 512}, "mel bands .* of 400 hold no frequency: fewer bands, or n_fft above 512"),
        ({"size": (64, 4000)}, "mel bands .* of 4000 hold no frequency: fewer bands, or n_fft above 4096"),
        ({"window_type": "kaiser"}, "window_type='kaiser': need one of hann, hamming, blackman, povey"),
        ({"mel_scale": "bark"}, "mel_scale='bark': need one of htk, slaney"),
        ({"norm": "l2"}, "norm='l2': need one of None, slaney"),
        ({"power": 0.0}, "need power > 0"),
    ],
)
def test_impossible_spectrograms_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LogMel(**{"rate": 16000, "size": (64, 64), **arguments})


def test_waveforms_of_another_kind_are_refused() -> None:
    with pytest.raises(TypeError, match=r"floats or int16, not torch.uint8"):
        LogMel(rate=16000, size=(100, 64)).normalize(torch.zeros(2, 1, 16000, dtype=torch.uint8))
