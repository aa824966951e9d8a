"""Synthesised sounds, their files, and spectrograms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torchaudio.transforms import MelSpectrogram

from jepa.data import Audio, DataError, LogMel, Tones
from jepa.data.logmel import FLOOR
from jepa.data.tones.__main__ import main
from jepa.data.tones.synthesis import LOWEST, TIMBRES, Voice
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


def test_log_mel_is_torchaudios() -> None:
    x = torch.stack([Tones(2)[i].x for i in range(2)])
    logmel = LogMel(rate=16000, size=(64, 80), window=0.025, hop=0.016, low=20.0, high=7600.0, mean=-3.0, std=2.0)
    reference = MelSpectrogram(16000, n_fft=512, win_length=400, hop_length=256, f_min=20.0, f_max=7600.0, n_mels=80)
    expected = (reference(x).clamp_min(FLOOR).log()[..., :64].mT + 3) / 2
    made = logmel.normalize(x)
    assert made.shape == (2, 1, 64, 80)
    torch.testing.assert_close(made, expected)
    assert logmel.normalize(made) is made
    shorts = (x * 2**15).round().clamp(-(2**15), 2**15 - 1).short()
    torch.testing.assert_close(logmel.normalize(shorts), logmel.normalize(shorts / 2**15))
    assert logmel.raw_shape((1, 64, 80)) == (1, 16384)


def test_each_spectrogram_may_be_normalised_by_itself() -> None:
    x = torch.stack([Tones(3)[i].x for i in range(3)])
    made = LogMel(rate=16000, size=(64, 64), hop=0.016, window=0.064).forward(JepaBatch(View(x), [])).target.x
    torch.testing.assert_close(made.mean((1, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(made.std((1, 2, 3)), torch.ones(3))
    assert torch.isfinite(LogMel(rate=16000, size=(4, 8)).normalize(torch.zeros(1, 1, 640))).all()


def test_preemphasis_brings_it_near_kaldis() -> None:
    from torchaudio.compliance.kaldi import fbank

    x = Tones(1)[0].x
    options = {"n_fft": 512, "low": 20.0, "high": 8000.0, "mean": 0.0, "std": 1.0}
    ours = LogMel(rate=16000, size=(102, 64), preemphasis=0.97, **options).normalize(x[None, :, :16320])[0, 0]
    kaldi = fbank(x, num_mel_bins=64, window_type="hanning", htk_compat=True, sample_frequency=16000)
    assert (ours[2:101] - kaldi[:99]).median().abs() < 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": (0, 64)}, "need size"),
        ({"low": 9000.0}, "low < high <= rate / 2"),
        ({"mean": 1.0}, "give mean and std > 0, or neither"),
        ({"n_fft": 256}, "n_fft=256 is shorter than the window of 400"),
        ({"size": (64, 400)}, "mel bands .* of 400 hold no frequency"),
    ],
)
def test_impossible_spectrograms_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LogMel(**{"rate": 16000, "size": (64, 64), **arguments})


def test_waveforms_of_another_length_or_kind_are_refused() -> None:
    logmel = LogMel(rate=16000, size=(100, 64))
    with pytest.raises(ValueError, match=r"100 frames need waveforms \(B, C, 16000\), .* set data.dataset.seconds=1"):
        logmel.normalize(torch.zeros(2, 1, 15999))
    with pytest.raises(TypeError, match=r"floats or int16, not torch.uint8"):
        logmel.normalize(torch.zeros(2, 1, 16000, dtype=torch.uint8))
