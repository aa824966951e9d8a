"""Sound from files of many kinds, good and bad, as waveforms."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torchaudio.functional as F
from torch import Tensor
from torchaudio.transforms import Resample

from jepa import seeding
from jepa.data import Audio, Batches, DataError, loader
from jepa.data.container import mp3_samples
from jepa.data.resample import resampler
from jepa.data.sound import Excerpt, _Reader, read_sound
from jepa.data.waveform import Waveform
from jepa.probes.features import InOrder, recordings
from jepa.seeding import Stream
from jepa.types import UnreadableSample
from tests.films import film, talkie
from tests.recordings import everything, record, wave
from tests.test_data_batches import Coins, same

KINDS = {
    "pcm.wav": ("pcm_s16le", 16000, {}),
    "bytes.wav": ("pcm_u8", 8000, {}),
    "float.wav": ("pcm_f32le", 22050, {}),
    "pcm.aiff": ("pcm_s16be", 16000, {}),
    "free.flac": ("flac", 44100, {}),
    "free.ogg": ("flac", 44100, {}),  # libav's times after a seek are wrong in these
    "layer.mp3": ("libmp3lame", 44100, {"q": "5"}),
    "reservoir.mp3": ("libmp3lame", 16000, {"b": "32k"}),
    "opus.opus": ("libopus", 48000, {}),
}
SECONDS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sounds")


@pytest.fixture(scope="module")
def path(folder: Path) -> Path:
    return record(folder / "plain.wav", wave(16000, SECONDS), 16000)


def heard(path: Path, place: float = 0.5, *, rate: int = 16000, seconds: float = 0.5, **excerpt: object) -> Tensor:
    return read_sound(path, path.name, Excerpt(rate, round(rate * seconds), **excerpt), place)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", KINDS)
def test_a_crop_is_a_part_of_what_decoding_everything_gives(folder: Path, name: str) -> None:
    codec, rate, options = KINDS[name]
    path = record(folder / name, wave(rate, SECONDS), rate, codec, options=options)
    whole = everything(path)
    for place in (0.0, 0.31, 0.83, 0.95):
        crop = heard(path, place, rate=rate)
        near = round(place * (SECONDS - 0.5) * rate)
        found = [d for d in range(rate // 30) if 0 <= near + d <= whole.shape[1] - crop.shape[1]
                 and torch.equal(whole[:, near + d : near + d + crop.shape[1]], crop)]  # fmt: skip
        assert len(found) == 1, (place, found)  # MP3 and Opus files say that they are some milliseconds longer
        if codec not in ("libmp3lame", "libopus"):
            assert found == [0]


def test_the_sound_of_a_video_is_read_like_any_other(folder: Path) -> None:
    for name in ("film.mp4", "film.ts"):
        path = record(folder / name, wave(48000, SECONDS), 48000, "aac", picture=True)
        whole = everything(path)
        for place in (0.0, 0.6):
            crop, near = heard(path, place, rate=48000), round(place * (SECONDS - 0.5) * 48000)
            places = whole[0, near:].unfold(0, 2000, 1)[:1500]  # TS files say that they are a frame longer
            misses = (places - crop[0, :2000]).abs().mean(1)
            assert misses.min() < 0.02  # AAC fills bands with noise of its own, from where decoding began
            assert misses.median() > 0.1


@pytest.mark.parametrize(("own", "rate"), [(44100, 16000), (16000, 22050), (48000, 16000), (22050, 22050)])
def test_a_resampled_crop_is_a_part_of_the_whole_resampled(folder: Path, own: int, rate: int) -> None:
    path = record(folder / f"{own}.flac", wave(own, SECONDS), own, "flac")
    whole = F.resample(everything(path), own, rate)
    for place in (0.0, 0.37, 1.0):
        crop = heard(path, place, rate=rate)
        first = round(place * (SECONDS - 0.5) * rate)
        assert crop.shape == (1, rate // 2)
        torch.testing.assert_close(crop, whole[:, first : first + rate // 2], rtol=0, atol=3e-5)


@pytest.mark.parametrize("ratio", [(441, 160), (160, 441), (3, 1), (1, 3), (2, 1), (80, 147), (1, 40)])
def test_resampling_equals_torchaudio(ratio: tuple[int, int]) -> None:
    for count in (1, 700, 9001):
        x = torch.from_numpy(wave(count, 1, channels=2))
        torch.testing.assert_close(resampler(*ratio)(x), Resample(*ratio)(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("codec", ["pcm_u8", "pcm_s16le", "pcm_s32le", "pcm_f32le", "flac", "libmp3lame"])
@pytest.mark.parametrize("count", [1, 2])
def test_samples_of_every_kind_become_numbers_of_full_scale_1(folder: Path, codec: str, count: int) -> None:
    ending = {"flac": "flac", "libmp3lame": "mp3"}.get(codec, "wav")
    path = record(folder / f"kind_{codec}_{count}.{ending}", wave(16000, 1, count), 16000, codec)
    whole = everything(path)
    assert 0.2 < whole.abs().max() < 0.5
    torch.testing.assert_close(heard(path, 0), whole[:, :8000].mean(0, keepdim=True), rtol=0, atol=1e-7)
    assert torch.equal(heard(path, 0, channels=2), whole[:, :8000].expand(2, -1))


def test_a_recording_that_changes_on_the_way_is_unreadable() -> None:
    def frame(samples: int, rate: int = 16000, layout: str = "mono") -> av.AudioFrame:
        made = av.AudioFrame.from_ndarray(np.ones((1 + (layout == "stereo"), samples), np.float32), "fltp", layout)
        made.sample_rate = rate
        return made

    heard_so_far = Waveform("new.wav", frame(100), 1, 150)
    for count in (100, 100):  # more than expected
        heard_so_far.add(frame(count))
    assert torch.equal(heard_so_far.joined(), torch.ones(1, 200))
    for other in (frame(100, rate=8000), frame(100, layout="stereo")):
        with pytest.raises(UnreadableSample, match=r"new.wav: damaged: its rate, channels or kind of samples change"):
            heard_so_far.add(other)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Samples of the frames that are decoded from here on."""
    counts: list[int] = []
    frames = _Reader._frames

    def counted(self: _Reader, packets: Iterator) -> Iterator:
        for frame in frames(self, packets):
            counts.append(frame.samples)
            yield frame

    monkeypatch.setattr(_Reader, "_frames", counted)
    return counts


@pytest.mark.parametrize("name", ["free.flac", "layer.mp3", "opus.opus", "pcm.wav"])
def test_a_crop_of_a_long_recording_does_not_decode_it_whole(folder: Path, decoded: list[int], name: str) -> None:
    codec, rate, options = KINDS[name]
    path = record(folder / f"long_{name}", wave(rate, 20), rate, codec, options=options)
    heard(path, 0.9, rate=rate)
    assert sum(decoded) < 2 * rate  # half a second of crop, half of preroll, and frames that stick out


@pytest.mark.parametrize("rate", [44100, 16000])
@pytest.mark.parametrize("count", [1, 2])
def test_an_mp3_file_that_states_its_length_is_read_as_if_it_did_not(folder: Path, rate: int, count: int) -> None:
    path = record(folder / f"stated_{rate}_{count}.mp3", wave(rate, SECONDS, count), rate, "libmp3lame")
    data = bytearray(path.read_bytes())
    assert 0 <= mp3_samples(path, len(data)) - SECONDS * rate < 3 * 1152  # type: ignore[operator]
    data[data.index(b"Info") + 15] ^= 1  # the last byte of the number of bytes
    wrong = folder / f"wrong_{rate}_{count}.mp3"
    wrong.write_bytes(data)
    assert mp3_samples(wrong, len(data)) is None
    for place in (0.0, 0.05, 0.62, 1.0):
        assert torch.equal(heard(path, place, rate=rate), heard(wrong, place, rate=rate))


def test_channels_are_mixed_kept_or_repeated(folder: Path) -> None:
    x = wave(16000, 1, channels=2)
    path = record(folder / "stereo.wav", x, 16000, "pcm_f32le")
    whole = torch.from_numpy(x)
    torch.testing.assert_close(heard(path, 0, seconds=1), whole.mean(0, keepdim=True))
    assert torch.equal(heard(path, 0, seconds=1, channels=2), whole)
    mono = record(folder / "mono.wav", x[:1], 16000, "pcm_f32le")
    assert torch.equal(heard(mono, 0, seconds=1, channels=2), whole[:1].expand(2, -1))
    with pytest.raises(UnreadableSample, match="2 channels, neither 1 nor 3"):
        heard(path, channels=3)


def test_what_becomes_of_short_recordings_is_chosen(path: Path) -> None:
    whole = everything(path)
    padded = heard(path, 0.7, seconds=6)
    assert torch.equal(padded[:, : 4 * 16000], whole)
    assert not padded[:, 4 * 16000 :].any()
    looped = heard(path, 0.7, seconds=6, short="loop")
    assert torch.equal(looped, torch.cat((whole, whole[:, : 2 * 16000]), 1))
    with pytest.raises(UnreadableSample, match=r"plain.wav: 4.00 s are too short for a crop of 6 s"):
        heard(path, seconds=6, short="skip")
    assert torch.equal(heard(path, seconds=4, short="skip"), whole)


@pytest.mark.parametrize("short", ["pad", "loop", "skip"])
@pytest.mark.parametrize("ending", ["mov", "mkv"])
def test_a_crop_that_begins_at_a_time_is_silent_where_the_sound_is_not(folder: Path, ending: str, short: str) -> None:
    """The sound of a film of 4 s lasts from 1 to 3 s."""
    rate, sound = 16000, wave(16000, 2)
    path = talkie(folder / f"late.{ending}", sound, rate, count=120, begins=1.0, codec="pcm_s16le")
    silence = torch.zeros(1, rate)
    expected = torch.cat((silence, torch.from_numpy(sound), silence), 1)
    for begins in (0.25, 0.5, 1.0, 1.5, 2.5):
        crop = read_sound(path, path.name, Excerpt(rate, rate, short=short), begins=begins)
        first = round(begins * rate)
        torch.testing.assert_close(crop, expected[:, first : first + rate], rtol=0, atol=2e-4)
    long = read_sound(path, path.name, Excerpt(rate, 5 * rate, short=short), begins=-0.5)
    padded = torch.nn.functional.pad(expected, (rate // 2, rate // 2))
    torch.testing.assert_close(long, padded, rtol=0, atol=2e-4)
    for begins, clip in ((0.0, "0.00 to 1.00"), (3.0, "3.00 to 4.00"), (9.0, "9.00 to 10.00")):
        with pytest.raises(UnreadableSample, match=rf"late.{ending}: its sound lasts from 1.00 to 3.00 s, .* {clip} s"):
            read_sound(path, path.name, Excerpt(rate, rate, short=short), begins=begins)


@pytest.mark.parametrize("codec", ["pcm_s16le", "aac"])
def test_the_sound_of_a_film_may_end_before_its_file(folder: Path, codec: str) -> None:
    """Matroska files say how long they are, not how long their sound is."""
    rate = 16000  # a frame of AAC is 64 ms, and Matroska counts in milliseconds
    path = talkie(folder / f"early_{codec}.mkv", wave(rate, 1), rate, count=120, codec=codec)
    whole = everything(path)
    begun = read_sound(path, path.name, Excerpt(rate, rate), begins=0.5)
    there = whole.shape[1] - rate // 2
    assert (begun[:, :there] - whole[:, rate // 2 :]).abs().mean() < 0.02  # AAC fills bands with noise of its own
    assert not begun[:, there + 1024 :].any()
    assert (heard(path, 1.0, rate=rate) - whole[:, rate // 2 : rate]).abs().mean() < (0.02 if codec != "aac" else 1)


def test_silence_is_unreadable_below_a_stated_level(folder: Path) -> None:
    path = record(folder / "quiet.wav", np.full((1, 16000), 0.002, np.float32), 16000, "pcm_f32le")
    assert heard(path).max() == pytest.approx(0.002)
    with pytest.raises(UnreadableSample, match="silent: no sample of the crop is above -50 dB of full scale"):
        heard(path, silence=-50.0)
    hush = record(folder / "hush.wav", np.zeros((1, 16000), np.float32), 16000)
    with pytest.raises(UnreadableSample, match=r"silent: .* -60 dB"):
        heard(hush)
    assert not heard(hush, silence=None).any()


def spoil(folder: Path, name: str) -> Path:
    """A file that cannot be used, by what is wrong with it."""
    path = folder / f"{name}.wav"
    if name == "empty":
        path.write_bytes(b"")
    elif name == "text":
        path.write_bytes(b"hello, I am text. " * 100)
    elif name == "truncated":
        data = record(path, wave(16000, 1), 16000).read_bytes()
        path.write_bytes(data[: len(data) // 2])
    elif name == "flac":
        path = record(folder / "flac.flac", wave(16000, 4), 16000, "flac")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif name == "codec":
        data = bytearray(record(path, wave(16000, 1), 16000).read_bytes())
        data[data.index(b"fmt ") + 8] = 0x99  # the format's number
        path.write_bytes(data)
    elif name == "pictures":
        return film(folder / "pictures.mp4", 10)
    elif name == "no samples":
        record(path, np.zeros((1, 0), np.float32), 16000)
    elif name == "nan":
        record(path, np.full((1, 16000), np.nan, np.float32), 16000, "pcm_f32le")
    elif name == "odd":
        record(path, wave(44101, 1), 44101)
    return path


BAD = {
    "empty": "empty file",
    "text": r"cut off, damaged or not a sound file of a known kind \(.*\), starts with b'hello, I am '",
    "truncated": r"cut off: \d+ bytes of \d+",
    "flac": "(cut off or )?damaged: ",
    "codec": r"no decoder for its sound, codec unknown \(.* / 0x0099\)",
    "pictures": "no sound in it, only video",
    "no samples": "no samples in it",
    "nan": "holds samples that are not finite",
    "odd": "no practical filter from 44101 to 16000 Hz",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_unreadable_and_say_why(tmp_path: Path, name: str) -> None:
    path = spoil(tmp_path, name)
    with pytest.raises(UnreadableSample, match=f"^{path.name}: {BAD[name]}"):
        heard(path, 0.9)


@pytest.mark.parametrize("ending", ["flac", "ogg", "mka"])
def test_a_changed_bit_of_flac_is_noticed(folder: Path, tmp_path: Path, ending: str) -> None:
    path = record(folder / f"whole.{ending}", wave(16000, 4), 16000, "flac")
    data, rng = path.read_bytes(), np.random.default_rng(0)
    whole = heard(path, seconds=4)
    end = data.rindex(b"OggS") if ending == "ogg" else len(data) - 100  # without its last page, a file is but shorter
    for place in rng.integers(9000, end, 40).tolist():
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(8))
        (tmp_path / path.name).write_bytes(changed)
        with pytest.raises(UnreadableSample, match="damaged"):
            heard(tmp_path / path.name, seconds=4)
    tagged = tmp_path / f"tagged.{ending}"
    tagged.write_bytes(data + (b"TAG" + bytes(125) if ending == "flac" else b""))
    assert torch.equal(heard(tagged, seconds=4), whole)


def test_what_is_not_a_file_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableSample, match=r"gone.wav: No such file"):
        heard(tmp_path / "gone.wav")


def test_a_wav_file_of_unknown_length_is_read(path: Path, tmp_path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4:8] = b"\xff" * 4  # as written into a pipe
    (tmp_path / "pipe.wav").write_bytes(data)
    assert torch.equal(heard(tmp_path / "pipe.wav", 0.4), heard(path, 0.4))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, path: Path) -> Path:
    """Two classes of two recordings, one of them broken, and lists of them."""
    root = tmp_path_factory.mktemp("tree")
    for name in ("bark/1.wav", "bark/räv 2:30.WAV", "rain/1.wav"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(path, root / name)
    (root / "rain" / "bad.mp3").write_bytes(b"no sound")
    (root / "list.csv").write_text("path,what,level\nrain/1.wav,rain;wind,-3.5\nbark/1.wav,;,-9.0\n")
    return root


def test_a_folder_tree_is_enough(tree: Path) -> None:
    sounds = Audio(tree, 16000, 0.5, random=False)
    assert [sounds.files.name(i) for i in range(4)] == ["bark/1.wav", "bark/räv 2:30.WAV", "rain/1.wav", "rain/bad.mp3"]
    assert sounds.label_names == {"label": ["bark", "rain"]}
    assert [sounds[i].labels["label"] for i in range(3)] == [0, 0, 1]
    assert torch.equal(sounds[0].x, everything(tree / "bark/1.wav")[:, 28000:36000])


def test_a_column_may_name_several_classes(tree: Path) -> None:
    sounds = Audio(tree, 16000, 0.5, list_file="list.csv")
    assert sounds.label_names == {"what": ["rain", "wind"], "level": None}
    assert [sounds[i].labels["what"].tolist() for i in (0, 1)] == [[1, 1], [0, 0]]
    (tree / "one.csv").write_text("path,what\nrain/1.wav,rain;\n")
    with pytest.raises(DataError, match=r"label 'what' of the list .*one.csv: 1 classes between the `;`"):
        Audio(tree, 16000, 0.5, list_file="one.csv")


def test_crops_of_a_recording_follow_each_other_and_are_drawn_from_the_global_generators(tree: Path) -> None:
    sounds = Audio(tree, 16000, 0.5, crops=2)
    assert len(sounds) == 8
    assert sounds[1].name == "bark/1.wav#1"
    whole, starts = everything(tree / "bark/1.wav")[0], [set(), set()]
    for draw in range(8):
        for crop in (0, 1):
            with seeding.isolated(draw, Stream.SAMPLE):
                x = sounds[crop].x
            with seeding.isolated(draw, Stream.SAMPLE):
                assert torch.equal(sounds[crop].x, x)
            at = (whole.unfold(0, 16, 1) == x[0, :16]).all(1).nonzero()
            starts[crop].add(int(at))
    assert max(starts[0]) <= 28000 <= min(starts[1])
    assert min(map(len, starts)) > 6
    with pytest.raises(IndexError):
        sounds[8]


def test_probes_take_the_crops_of_a_recording_together(tree: Path) -> None:
    sounds = Audio(tree, 16000, 0.5, crops=3, random=False)
    assert (len(sounds), recordings(sounds)) == (12, 4)
    whole = InOrder(sounds, None, range(4))[1]
    assert (whole.name, whole.x.shape) == ("bark/räv 2:30.WAV", (1, 3, 1, 8000))
    assert all(torch.equal(whole.x[0, crop], sounds[3 + crop].x) for crop in range(3))


def test_the_fingerprint_knows_files_and_excerpts(tree: Path, tmp_path: Path) -> None:
    sounds = Audio(tree, 16000, 0.5)
    assert Audio(shutil.copytree(tree, tmp_path / "moved"), 16000, 0.5).fingerprint == sounds.fingerprint
    others = [Audio(tree, 8000, 0.5), Audio(tree, 16000, 1.0), Audio(tree, 16000, 0.5, crops=2),
              Audio(tree, 16000, 0.5, random=False), Audio(tree / "rain", 16000, 0.5)]  # fmt: skip
    assert len({other.fingerprint for other in [sounds, *others]}) == 6


@pytest.mark.parametrize("arguments", [{"rate": 0}, {"seconds": 0.0}, {"channels": 0}, {"crops": 0}, {"short": "cut"}])
def test_impossible_arguments_are_refused(tree: Path, arguments: dict) -> None:
    with pytest.raises(DataError, match="need "):
        Audio(tree, **{"rate": 16000, "seconds": 1.0, **arguments})


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_crops_resume_anywhere(tree: Path, workers: int) -> None:
    batches = Batches(
        dataset=Audio(tree, 16000, 0.1), transform=None, masker=Coins(), grid=(2, 2), seed=3, batch_size=2
    )
    expected = [batches[k] for k in range(5)]
    assert expected[0].target.x.shape == (2, 1, 1600)
    assert any("rain/bad.mp3: cut off, damaged or not" in reason for batch in expected for reason in batch.skipped)
    resumed = list(loader(batches, 2, 5, workers=workers))
    assert all(map(same, resumed, expected[2:]))
