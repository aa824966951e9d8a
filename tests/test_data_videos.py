"""Clips from files of many kinds, good and bad."""

import shutil
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import pytest
import torch
from PIL import Image

from jepa import seeding
from jepa.data import Batches, DataError, Videos, loader
from jepa.data.clips import read_clip, read_timed_clip
from jepa.data.sampling import Sampling
from jepa.seeding import Stream
from jepa.types import UnreadableSample
from tests.films import every_frame, film, numbers, turn
from tests.test_data_batches import Coins, same

KINDS = {
    "long.mp4": ("libx264", {}),
    "open.mp4": ("libx264", {"x264-params": "open-gop=1:bframes=5:b-adapt=0"}),
    "h265.mp4": ("libx265", {"x265-params": "log-level=none:keyint=15"}),
    "vp9.webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
    "h264.mkv": ("libx264", {}),
    "h264.ts": ("libx264", {}),
    "mpeg2.mpg": ("mpeg2video", {"bf": "2"}),
    "mpeg4.avi": ("mpeg4", {"bf": "2"}),
    "h264.avi": ("libx264", {}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("films")


@pytest.fixture(scope="module")
def path(folder: Path) -> Path:
    """Sixty frames in two seconds."""
    return film(folder / "plain.mp4")


def clip(path: Path, place: float = 0.0, **sampling: object) -> np.ndarray:
    return read_clip(path, path.name, Sampling(**sampling), place).numpy()


@pytest.mark.parametrize("name", KINDS)
def test_frames_are_those_of_a_decoder_that_starts_at_the_beginning(folder: Path, name: str) -> None:
    codec, options = KINDS[name]
    whole = every_frame(film(folder / name, codec=codec, options=options))
    order = numbers(whole)
    for place in (0.0, 0.55, 0.999):
        for sampling in ({"stride": 1}, {"stride": 4}, {"fps": 10}):
            found = clip(folder / name, place, frames=5, **sampling)
            seen = numbers(found)
            assert set(np.diff(seen)) == {sampling.get("stride", 3)}
            assert np.array_equal(found, whole[:, [order.index(number) for number in seen]])


def test_every_stride_has_every_place(path: Path) -> None:
    room = 60 - 13
    firsts = [numbers(clip(path, (first + 0.5) / (room + 1), frames=4, stride=4))[0] for first in range(room + 1)]
    assert firsts == list(range(room + 1))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Times of the packets that were handed to a decoder."""
    from jepa.data import clips

    times: list[int] = []
    frames = clips._Reader._frames

    def noted(self: object, packets: list, wanted: set) -> object:
        times.extend(packet.pts for packet in packets)
        return frames(self, packets, wanted)

    monkeypatch.setattr(clips._Reader, "_frames", noted)
    return times


def test_only_the_frames_of_a_clip_are_decoded(path: Path, decoded: list[int]) -> None:
    clip(path, 0.7, frames=3, stride=1)
    assert len(decoded) <= 15 + 3 + 4  # from the key frame before it, and what is needed to know the order


@pytest.mark.parametrize(("kind", "codec"), [("mkv", "libx264"), ("webm", "libvpx-vp9")])
def test_files_that_do_not_state_their_length(folder: Path, kind: str, codec: str, decoded: list[int]) -> None:
    """As a pipe leaves them: nobody could go back to their start."""
    path = piped(film(folder / f"whole.{kind}", codec=codec), folder / f"piped.{kind}")
    whole = every_frame(path)
    order = numbers(whole)
    for place in (0.0, 0.5, 0.9):
        decoded.clear()
        found = clip(path, place, frames=4, stride=2)
        first = int(place * 54)
        assert numbers(found) == [first + 2 * j for j in range(4)]
        assert np.array_equal(found, whole[:, [order.index(number) for number in numbers(found)]])
        assert len(decoded) <= 15 + 7


def piped(source: Path, path: Path) -> Path:
    """The packets of a video in a file that was written from its start to its end."""
    with path.open("wb") as file, av.open(source) as whole, av.open(Pipe(file), "w", format="matroska") as container:
        stream = container.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.size:
                packet.stream = stream
                container.mux(packet)
    with av.open(path) as container:
        assert container.duration is None
        assert container.streams.video[0].duration is None
    return path


class Pipe:
    """Where bytes can be written, and that is all."""

    def __init__(self, file: BinaryIO) -> None:
        self.write = file.write


def test_frames_of_a_variable_rate_are_chosen_by_time(folder: Path) -> None:
    times = np.cumsum([0, *[20] * 29, *[100] * 30]).tolist()  # 50 frames per second, then 10
    path = film(folder / "variable.mp4", times=times)
    for place in (0.0, 0.2, 0.5, 0.9):
        found, begins = read_timed_clip(path, path.name, Sampling(8, fps=5), place)
        wanted = [1000 * begins + 200 * j for j in range(8)]
        assert numbers(found.numpy()) == [max(i for i, time in enumerate(times) if time <= t + 1) for t in wanted]
        assert set(np.diff(numbers(clip(path, place, frames=8, stride=3)))) == {3}
    assert numbers(clip(path, frames=8, fps=5)) == [0, 10, 20, 29, 31, 33, 35, 37]


@pytest.mark.parametrize("sampling", [{"fps": 4}, {"duration": 4.0}])
def test_clips_begin_while_a_frame_is_held(folder: Path, sampling: dict[str, float]) -> None:
    """Slides of five seconds: three of four clips of 3.75 seconds show two of them."""
    path = film(folder / "slides.mp4", 8, times=[5000 * k for k in range(8)])
    several = []
    for place in np.linspace(0, 0.95, 24):
        found, begins = read_timed_clip(path, path.name, Sampling(16, **sampling), place)
        seen = numbers(found.numpy())
        assert seen == [int((begins + j / 4 + 1e-3) / 5) for j in range(16)]
        several.append(len(set(seen)))
    assert set(several) == {1, 2}
    assert np.mean(several) == pytest.approx(1.75, abs=0.1)


def test_a_duration_is_spread_over_the_frames(path: Path) -> None:
    assert numbers(clip(path, frames=8, duration=1.6)) == [0, 6, 12, 18, 24, 30, 36, 42]
    assert numbers(clip(path, frames=5, duration=2.0)) == [0, 12, 24, 36, 48]
    assert numbers(clip(path, frames=4, fps=7.5)) == [0, 4, 8, 12]


@pytest.mark.parametrize("sampling", [{"stride": 4}, {"fps": 7.5}, {"duration": 32 / 7.5}])
def test_short_videos(folder: Path, sampling: dict) -> None:
    path = film(folder / "short.mp4", 10)
    assert numbers(clip(path, 0.7, frames=32, **sampling)) == [0, 4, 8, *[9] * 29]
    looped = [4 * j % 10 for j in range(32)]
    assert numbers(clip(path, 0.7, frames=32, short="loop", **sampling)) == looped
    with pytest.raises(UnreadableSample, match=r"short.mp4: 10 frames in 0.33 s are too short for a clip"):
        clip(path, frames=32, short="skip", **sampling)
    assert numbers(clip(path, frames=2, stride=9, short="skip")) == [0, 9]


@pytest.mark.parametrize(
    "matrix",
    [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0), (-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0)],
)
def test_the_display_matrix_is_honoured(folder: Path, matrix: tuple[int, int, int, int]) -> None:
    stored = every_frame(film(folder / "turned.mp4", 4))
    a, b, c, d = matrix
    height, width = stored.shape[2:]
    y, x = np.mgrid[:height, :width]
    across, down = a * x + c * y, b * x + d * y
    across, down = across - across.min(), down - down.min()
    expected = np.empty((3, 4, down.max() + 1, across.max() + 1), np.uint8)
    expected[:, :, down, across] = stored
    assert np.array_equal(clip(turn(folder / "turned.mp4", *matrix), frames=4, stride=1), expected)


def test_large_frames_are_halved_on_demand(folder: Path) -> None:
    path = film(folder / "large.mp4", 3, size=(128, 256))
    whole = every_frame(path).astype(float)
    small = read_clip(path, "large.mp4", Sampling(3, stride=1), 0, min_side=32).numpy()
    assert small.shape == (3, 3, 32, 64)
    assert np.abs(small - whole.reshape(3, 3, 32, 4, 64, 4).mean((3, 5))).mean() < 4
    assert read_clip(path, "large.mp4", Sampling(3, stride=1), 0, min_side=65).shape == (3, 3, 128, 256)


def spoil(folder: Path, name: str) -> Path:
    """A file that cannot be used, by what is wrong with it."""
    path = folder / f"{name}.mp4"
    source = film(folder / "source.mp4", 60, size=(64, 128), sound=True)
    data = bytearray(source.read_bytes())
    if name == "empty":
        data = bytearray()
    elif name == "text":
        data = bytearray(b"hello, I am text. " * 100)
    elif name == "noise":
        data = bytearray(np.random.default_rng(0).bytes(20_000))
    elif name == "truncated":
        del data[len(data) * 2 // 3 :]
    elif name == "beheaded":
        del data[: len(data) // 3]
    elif name == "damaged":
        for start in range(len(data) // 4, len(data) - 64, 700):
            data[start : start + 32] = bytes(32)
    elif name == "picture":
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(path, "PNG")
        return path
    elif name == "matroska":
        return cut(film(folder / "matroska.mkv"))
    elif name == "avi":
        return cut(film(folder / "avi.avi", codec="mpeg4"))
    elif name == "codec":
        data = data.replace(b"avc1", b"zzz9")
    elif name == "sound":
        with av.open(path, "w") as container:
            stream = container.add_stream("aac", rate=16000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
            frame.sample_rate = 16000
            container.mux([*stream.encode(frame), *stream.encode()])
        return path
    elif name == "no frames":
        with av.open(path, "w") as container:
            stream = container.add_stream("libx264", rate=30)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            container.start_encoding()
        return path
    path.write_bytes(data)
    return path


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


BAD = {
    "empty": "empty file",
    "text": r"cut off, damaged or not a video of a known kind \(.*\), starts with b'hello, I am '",
    "noise": "cut off, damaged or not a video",
    "truncated": r"cut off: \d+ bytes of at least \d+",
    "beheaded": "cut off, damaged or not a video",
    "damaged": "damaged",
    "picture": r"a picture \(png\), not a video",
    "matroska": r"cut off: \d+ bytes of \d+",
    "avi": r"cut off: \d+ bytes of \d+",
    "sound": "no video in it, only audio",
    "codec": "its codec is not known to this libav$",
    "no frames": "no video in it, nor anything else",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_unreadable_and_say_why(tmp_path: Path, name: str) -> None:
    path = spoil(tmp_path, name)
    with pytest.raises(UnreadableSample, match=f"^{path.name}: {BAD[name]}"):
        clip(path, 0.9, frames=8, stride=4)


def test_what_is_not_a_file_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableSample, match=r"gone.mp4: No such file"):
        clip(tmp_path / "gone.mp4", frames=1, stride=1)
    with pytest.raises(UnreadableSample, match="Is a directory"):
        clip(tmp_path, frames=1, stride=1)


def test_a_playlist_reaches_no_network(tmp_path: Path) -> None:
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(UnreadableSample, match="not a video"):
        clip(tmp_path / "list.mp4", frames=1, stride=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of stride, fps and duration, the others null; got none"),
        ({"stride": 4, "fps": 4.0}, "got stride=4, fps=4.0"),
        ({"stride": 0}, "stride > 0"),
        ({"fps": -1.0}, "fps > 0"),
        ({"fps": float("nan")}, "fps > 0"),
        ({"stride": 1, "short": "stretch"}, "short one of pad, loop, skip"),
        ({"stride": 1, "clips": 0}, "clips >= 1"),
        ({"stride": 1, "min_side": 0}, "min_side >= 1"),
    ],
)
def test_impossible_arguments_are_refused(path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Videos(path.parent, 8, **arguments)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, path: Path) -> Path:
    """Two classes of two videos, a picture, and a list with a picture and several labels."""
    root = tmp_path_factory.mktemp("videos")
    for name in ("jump/1.mp4", "jump/räv 2:30.mp4", "walk/1.mp4", "walk/2.MP4"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(path, root / name)
    Image.fromarray(np.full((32, 64, 3), 7, np.uint8)).save(root / "walk" / "thumb.png")
    (root / "list.csv").write_text("path,speed,kind\nwalk/1.mp4,1.5,slow\nwalk/thumb.png,0.0,still\n")
    return root


def test_a_folder_tree_is_enough(tree: Path) -> None:
    videos = Videos(tree, 8, stride=4, random=False)
    assert [videos[i].name for i in range(len(videos))] == [
        "jump/1.mp4",
        "jump/räv 2:30.mp4",
        "walk/1.mp4",
        "walk/2.MP4",
    ]
    assert [videos[i].labels["label"] for i in range(4)] == [0, 0, 1, 1]
    assert videos.label_names == {"label": ["jump", "walk"]}
    assert videos[0].x.shape == (3, 8, 32, 64)
    assert videos[0].x.dtype == torch.uint8
    assert numbers(videos[0].x.numpy()) == list(range(16, 48, 4))  # 31 first frames are possible: the middle one


def test_pictures_of_a_list_are_clips_of_repeated_frames(tree: Path) -> None:
    videos = Videos(tree, 8, fps=4, list_file="list.csv")
    assert videos.label_names == {"speed": None, "kind": ["slow", "still"]}
    assert [videos[i].labels for i in (0, 1)] == [{"speed": 1.5, "kind": 0}, {"speed": 0.0, "kind": 1}]
    assert torch.equal(videos[1].x, torch.full((3, 8, 32, 64), 7, dtype=torch.uint8))


def test_published_lists_are_read(tree: Path, tmp_path: Path) -> None:
    """Of V-JEPA: absolute paths and labels with a space between, under a name that ends in .csv."""
    names = ["walk/1.mp4", "jump/räv 2:30.mp4"]
    (tmp_path / "train.csv").write_text("".join(f"{tree / name} {k}\n" for k, name in enumerate(names)))
    videos = Videos(tmp_path, 8, fps=4, list_file=tmp_path / "train.csv")
    assert [videos[i].name for i in (0, 1)] == [str(tree / name) for name in names]
    assert [videos[i].labels for i in (0, 1)] == [{"label": 0}, {"label": 1}]
    (tmp_path / "quoted.csv").write_text('"jump/räv 2:30.mp4"\n"walk/2.MP4"\n')
    assert Videos(tree, 8, fps=4, list_file=tmp_path / "quoted.csv")[0].name == "jump/räv 2:30.mp4"


def test_clips_of_a_video_follow_each_other(tree: Path) -> None:
    videos = Videos(tree, 4, stride=4, clips=3, random=False)
    assert len(videos) == 12
    assert [videos[i].name for i in (0, 1, 2, 3)] == [*[f"jump/1.mp4#{k}" for k in range(3)], "jump/räv 2:30.mp4#0"]
    firsts = [numbers(videos[i].x.numpy())[0] for i in range(3)]
    assert firsts == [8, 24, 40]  # of 48 possible ones
    with pytest.raises(IndexError):
        videos[12]


def test_random_clips_come_from_the_global_generators(tree: Path) -> None:
    videos = Videos(tree, 4, stride=4, clips=2)
    firsts: list[list[int]] = [[], []]
    for draw in range(20):
        for part in (0, 1):
            with seeding.isolated(draw, Stream.SAMPLE):
                first = numbers(videos[part].x.numpy())[0]
            with seeding.isolated(draw, Stream.SAMPLE):
                assert numbers(videos[part].x.numpy())[0] == first
            firsts[part].append(first)
    assert min(firsts[0]) < 5
    assert max(firsts[0]) < 24 <= min(firsts[1])
    assert max(firsts[1]) > 42
    assert len(set(firsts[0])) > 10


def test_the_fingerprint_knows_files_and_sampling(tree: Path, tmp_path: Path) -> None:
    videos = Videos(tree, 8, stride=4)
    assert Videos(shutil.copytree(tree, tmp_path / "moved"), 8, stride=4).fingerprint == videos.fingerprint
    others = [Videos(tree, 4, stride=4), Videos(tree, 8, fps=4), Videos(tree, 8, stride=4, clips=2),
              Videos(tree, 8, stride=4, random=False), Videos(tree / "walk", 8, stride=4)]  # fmt: skip
    assert len({other.fingerprint for other in [videos, *others]}) == 6


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_clips_resume_anywhere(tree: Path, workers: int) -> None:
    (tree / "walk" / "bad.mp4").write_bytes(b"no video")
    batches = Batches(
        dataset=Videos(tree, 4, fps=10), transform=None, masker=Coins(), grid=(2, 2), seed=3, batch_size=2
    )
    expected = [batches[k] for k in range(6)]
    assert expected[0].target.x.shape == (2, 3, 4, 32, 64)
    assert any("walk/bad.mp4: cut off, damaged or not" in reason for batch in expected for reason in batch.skipped)
    resumed = list(loader(batches, 2, 6, workers=workers))
    assert all(map(same, resumed, expected[2:]))


def test_a_list_of_bad_files_is_an_error_that_names_them(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"no video")
    batches = Batches(
        dataset=Videos(tmp_path, 4, fps=10), transform=None, masker=Coins(), grid=(2, 2), seed=3, batch_size=2
    )
    with pytest.raises(DataError, match=r"2 samples in a row are unreadable \(the whole dataset\): [ab].mp4: cut off"):
        batches[0]
