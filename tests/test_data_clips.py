"""Embedded clips, the command that writes them, mixtures, transforms of clips and their recipes."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import interpolate

from jepa import seeding
from jepa.build import RecipeError, build
from jepa.data import (
    Batches,
    DataError,
    Mixture,
    MovingShapes,
    Normalize,
    RandomErasing,
    Videos,
    center_crop,
    clip_random_resized_crop,
    loader,
    side_crops,
)
from jepa.data.moving_shapes import DIRECTIONS, _Scene
from jepa.data.moving_shapes.__main__ import main
from jepa.data.moving_shapes.files import write_files
from jepa.probes.features import InOrder
from jepa.recipe import difference, load_recipe
from jepa.seeding import Stream
from jepa.types import UnreadableSample
from tests.films import film
from tests.test_data_batches import Coins, Numbers, same

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def test_clips_depend_on_seed_split_and_position_alone() -> None:
    data = MovingShapes(20, 32, 6)
    assert data[3].x.shape == (3, 6, 32, 32)
    assert data[3].x.dtype == torch.uint8
    assert torch.equal(data[3].x, MovingShapes(50, 32, 6)[3].x)
    others = [MovingShapes(20, 32, 6, seed=1)[3], MovingShapes(20, 32, 6, split="test")[3], data[4]]
    assert not any(torch.equal(other.x, data[3].x) for other in others)
    assert MovingShapes(4, (32, 48), 5)[0].x.shape == (3, 5, 32, 48)
    assert len({d.fingerprint for d in (data, MovingShapes(20, 32, 7), MovingShapes(20, 32, 6, 1))}) == 3


def moved(clip: Tensor) -> Tensor:
    """(T - 1, 2): by how many pixels (x, y) the moving object went on, from the phase of what is not background."""
    frames = clip.float()
    still = frames.median(1, keepdim=True).values
    shown = ((frames - still).abs().sum(0) > 60).float()
    transform = torch.fft.fft2(shown)
    cross = torch.fft.ifft2(transform[1:] * transform[:-1].conj()).real
    peak = cross.flatten(1).argmax(1)
    height, width = clip.shape[2:]
    y, x = peak // width, peak % width
    return torch.stack([(x + width // 2) % width - width // 2, (y + height // 2) % height - height // 2], 1).float()


def test_what_is_seen_to_move_is_what_the_labels_say() -> None:
    data, right = MovingShapes(120, 64, 16), 0
    fast = [i for i in range(120) if data[i].labels["speed"] > 0.04]
    for i in fast:
        sample = data[i]
        path = moved(sample.x)
        begin, end = path[:7].mean(0), path[-2:].mean(0)
        angle = 2 * np.pi * sample.labels["direction"] / 8
        way = torch.tensor([np.cos(angle), np.sin(angle)], dtype=torch.float32)
        straight = begin @ way / 64
        right += abs(straight - sample.labels["speed"]) < 0.01 and (end @ way < 0) == bool(sample.labels["bounce"])
    assert len(fast) > 30
    assert right / len(fast) > 0.8  # where an object that stands still is covered the phase is misled


def test_labels_are_balanced_and_named() -> None:
    data = MovingShapes(600, 16, 2)
    scenes = [_Scene.drawn(data, i).labels for i in range(600)]
    for name, known in data.label_names.items():
        values = [scene[name] for scene in scenes]
        if known is not None:
            shares = np.bincount(np.array(values), minlength=len(known)) / 600
            assert np.abs(shares * len(known) - 1).max() < 0.45, name
    assert {scene["count"] for scene in scenes} == {1.0, 2.0, 3.0, 4.0}
    assert 0.015 <= min(scene["speed"] for scene in scenes) < 0.02
    assert len(DIRECTIONS) == 8


@pytest.mark.parametrize("frame", [0, 5, 9])
def test_no_single_frame_tells_the_direction(frame: int) -> None:
    data = MovingShapes(3000, 16, 10)
    scenes = [_Scene.drawn(data, i) for i in range(3000)]
    places = []
    for scene in scenes:
        travelled = frame if frame < scene.turns else 2 * scene.turns - frame
        x, y = (scene.start + travelled * scene.velocity) % 16 / 16
        waves = [f(2 * np.pi * k * v) for k in (1, 2) for v in (x, y) for f in (np.sin, np.cos)]
        places.append([x, y, *waves, *scene.others[0][:2]] if scene.others else [x, y, *waves, 0, 0])
    labels = [scene.labels["direction"] for scene in scenes]
    fit = LogisticRegression(max_iter=1000).fit(places[:2000], labels[:2000])
    assert fit.score(places[2000:], labels[2000:]) < 1 / 8 + 0.04


def test_the_command_writes_files_that_are_read_as_videos(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "jepa.data.moving_shapes", str(tmp_path / "out")]
    done = subprocess.run([*command, "count=6", "size=32", "frames=8", "split=test", "seed=4"], capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().strip() == f"6 clips: {tmp_path / 'out' / 'labels.csv'}"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [*[f"{i:06}.mp4" for i in range(6)], "labels.csv"]
    drawn = MovingShapes(6, 32, 8, seed=4, split="test")
    videos = Videos(tmp_path / "out", 8, stride=1, list_file="labels.csv", short="skip")
    assert list(videos.label_names) == list(drawn.label_names)
    for i in range(6):
        assert (videos[i].x.float() - drawn[i].x.float()).abs().mean() < 8
        for name, known in drawn.label_names.items():
            ours, theirs = drawn[i].labels[name], videos[i].labels[name]
            classes = videos.label_names[name]
            assert (known[ours] if known else ours) == (classes[theirs] if classes else theirs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["count=3"], "give a folder first"),
        (["out", "cont=3"], "cont=3: .*; the keys are count, size, frames, fps, split, seed"),
        (["out", "count=many"], "count=many"),
        (["out", "size=33"], "even height and width"),
        (["out", "fps=0"], "fps >= 1"),
        (["out", "split=val"], "split 'val'"),
    ],
)
def test_the_command_refuses_what_it_does_not_know(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.rglob("*.mp4"))


def test_files_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = MovingShapes(3, 32, 4, files=tmp_path / "clips")
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "clips").rglob("*.mp4")}
    assert len(written) == 3
    again = MovingShapes(3, 32, 4, files=tmp_path / "clips")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "clips").rglob("*.mp4")} == written
    assert torch.equal(first[1].x, again[1].x)
    assert first[1].labels == MovingShapes(3, 32, 4)[1].labels
    MovingShapes(3, 32, 4, split="test", files=tmp_path / "clips")
    assert len(list((tmp_path / "clips").iterdir())) == 2


def test_a_file_that_could_not_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    class Breaks(MovingShapes):
        def __getitem__(self, i: int) -> object:
            if i == 2:
                raise OSError("the disk is full")
            return super().__getitem__(i)

    with pytest.raises(OSError, match="the disk is full"):
        Breaks(3, 32, 4, files=tmp_path / "clips")
    assert list((tmp_path / "clips").iterdir()) == []


def names(batches: Batches, count: int) -> list[str]:
    """Of the samples at the first positions of the stream."""
    with seeding.isolated(0, Stream.SAMPLE):
        return [batches._sample(position, [])[1].name for position in range(count)]


def mixed(broken: tuple[int, ...] = (), **changes: object) -> Batches:
    mixture = Mixture({"few": Numbers(5), "many": Numbers(40, broken)}, {"few": 3.0, "many": 1.0})
    parts = {"dataset": mixture, "transform": None, "masker": Coins(), "grid": (3, 4), "seed": 7, "batch_size": 4}
    return Batches(**{**parts, **changes})


def test_a_mixture_follows_its_weights() -> None:
    drawn = names(mixed(), 800)
    shares = Counter(name.partition("/")[0] for name in drawn)
    assert shares["few"] / 800 == pytest.approx(0.75, abs=0.04)
    counts = Counter(name for name in drawn if name.startswith("few"))
    assert len(counts) == 5
    assert max(counts.values()) / min(counts.values()) < 1.5
    assert len({name for name in drawn if name.startswith("many")}) > 35  # new draws in every epoch of 45
    even = Mixture({"few": Numbers(5), "many": Numbers(40)})
    assert even.shares.tolist() == pytest.approx([1 / 9, 8 / 9])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mixture_resumes_anywhere(workers: int) -> None:
    expected = [mixed()[k] for k in range(8)]
    assert all(map(same, loader(mixed(), 3, 8, workers=workers), expected[3:]))
    assert not same(mixed(seed=8)[0], expected[0])
    parts = [mixed(rank=rank, world_size=2)[3].target.x for rank in (0, 1)]
    assert torch.equal(torch.cat(parts), expected[3].target.x)


def test_a_mixture_draws_anew_for_what_cannot_be_read() -> None:
    batch = mixed(broken=tuple(range(39)), batch_size=32)[0]
    assert len(batch.skipped) > 3
    assert all(re.fullmatch(r"many/number \d+: broken on purpose", reason) for reason in batch.skipped)
    assert batch.target.x.shape[0] == 32
    drawn = [name.partition("/")[0] for name in names(mixed(), 200)]
    assert [name.partition("/")[0] for name in names(mixed(broken=tuple(range(39))), 200)] == drawn


@pytest.mark.parametrize("count", [9, 90])
def test_a_dataset_of_a_mixture_that_cannot_be_read_is_an_error_that_names_it(count: int) -> None:
    mixture = Mixture({"good": Numbers(30), "bad": Numbers(count, tuple(range(count)))}, {"good": 0.9, "bad": 0.1})
    expected = rf"{min(30 + count, 64)} samples in a row .*: bad/number \d+: broken on purpose; bad/number"
    with pytest.raises(DataError, match=expected):
        [mixed(dataset=mixture)[k] for k in range(20)]


def test_a_mixture_has_the_labels_that_all_have() -> None:
    class Others(Numbers):
        @property
        def label_names(self) -> dict[str, list[str] | None]:
            return {"parity": ["odd", "even"], "half": None, "more": None}

    mixture = Mixture({"a": Numbers(3), "b": Others(3)})
    assert mixture.label_names == {"half": None}
    assert set(mixture[0].labels) == {"half"}
    assert Mixture({"a": Numbers(3)}).label_names == Numbers(3).label_names
    assert mixture.fingerprint != Mixture({"a": Numbers(3), "b": Others(3)}, {"a": 1, "b": 2}).fingerprint


@pytest.mark.parametrize(
    ("weights", "message"),
    [({"a": 1.0}, "named a, b, but weights a"), ({"a": 1.0, "b": 0.0}, "above 0"), ({"a": 1.0, "b": np.nan}, "above")],
)
def test_impossible_mixtures_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Mixture({"a": Numbers(3), "b": Numbers(4)}, weights)
    with pytest.raises(DataError, match="need datasets with samples"):
        Mixture({})


def test_a_mixture_can_be_written_in_a_recipe(tmp_path: Path) -> None:
    """As the documentation shows it."""
    page = (Path(__file__).parent.parent / "docs" / "training.md").read_text()
    (written,) = (text for text in re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL) if "Mixture" in text)
    for name in ("short", "long"):
        write_files(MovingShapes(2, 32, 4), tmp_path / name)
    (tmp_path / "mine.yaml").write_text(written.replace("/data/", f"{tmp_path}/"))
    data = load_recipe([f"recipe={tmp_path / 'mine.yaml'}"])["data"]
    mixture = build(data["dataset"], "data.dataset")
    assert (len(mixture), mixture.shares.tolist()) == (4, [0.3, 0.7])
    assert mixture[0].x.shape == (3, 16, 32, 32)
    assert data["labelled"] is None


def test_the_released_mixture(tmp_path: Path) -> None:
    """The published weights; roots are given, and may be others when a run is resumed."""
    command = ["recipe=vjepa2_vitl16_cooldown", "data=videomix22m"]
    with pytest.raises(RecipeError, match=r"data\.dataset\.datasets\.k710\.root must be given"):
        load_recipe(command)

    def placed(folder: str) -> dict:
        roots = [f"data.dataset.datasets.{name}.root={folder}/{name}" for name in ("k710", "ssv2", "howto")]
        return load_recipe([*command, *roots, f"data.dataset.datasets.howto.list_file={folder}/howto.csv"])

    dataset = placed("/one")["data"]["dataset"]
    assert dataset["weights"] == {"k710": 0.335, "ssv2": 0.1, "howto": 0.565}
    for name, node in dataset["datasets"].items():
        assert (node["root"], node["frames"], node["fps"], node["stride"]) == (f"/one/{name}", 64, 4, None)
    assert difference(placed("/one"), placed("/two")) == []
    other = load_recipe([*command, *(f"data.dataset.datasets.{n}.root=/" for n in dataset["datasets"])])
    assert difference(placed("/one"), other) == []
    other["data"]["dataset"]["datasets"]["ssv2"]["fps"] = 8
    assert difference(placed("/one"), other) == ["data.dataset.datasets.ssv2.fps: 4 -> 8"]


def texture(frames: int = 5, height: int = 60, width: int = 90) -> Tensor:
    """(3, T, H, W) laid out as decoders do it."""
    return torch.randint(0, 256, (frames, height, width, 3), dtype=torch.uint8).permute(3, 0, 1, 2)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("layout", ["decoded", "contiguous"])
def test_all_frames_are_cropped_alike(antialias: bool, layout: str) -> None:
    x = texture() if layout == "decoded" else texture().contiguous()
    crop = clip_random_resized_crop((24, 32), antialias=antialias)
    torch.manual_seed(1)
    ours = crop(x)
    torch.manual_seed(1)
    top, left, height, width = crop.crop.box(60, 90)
    part = x[:, :, top : top + height, left : left + width].float()
    theirs = torch.stack(
        [interpolate(part[:, t][None], (24, 32), mode="bilinear", antialias=antialias)[0] for t in range(5)], 1
    )
    assert ours.shape == (3, 5, 24, 32)
    assert ours.dtype == torch.uint8
    assert ours.is_contiguous()
    assert (ours.float() - theirs).abs().max() <= 1.5


def test_motion_shift_moves_the_box_evenly() -> None:
    y, x = torch.meshgrid(torch.arange(120), torch.arange(200), indexing="ij")
    clip = torch.stack([x, y, x]).to(torch.uint8)[:, None].expand(-1, 9, -1, -1)
    crop = clip_random_resized_crop(32, scale=(0.2, 0.4), motion_shift=True)
    torch.manual_seed(5)
    ours = crop(clip).float()
    torch.manual_seed(5)
    first, last = crop.crop.box(120, 200), crop.crop.box(120, 200)
    for t in range(9):
        top, left, height, width = (int(a + (b - a) * t / 8) for a, b in zip(first, last, strict=True))
        assert ours[0, t].mean() == pytest.approx(left + (width - 1) / 2, abs=1.5)
        assert ours[1, t].mean() == pytest.approx(top + (height - 1) / 2, abs=1.5)
    assert (ours[:, 0] - ours[:, -1]).abs().mean() > 3


def test_clips_are_mirrored_whole() -> None:
    x = texture(4, 16, 16)
    whole = {"size": 16, "scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    assert torch.equal(clip_random_resized_crop(**whole)(x), x)
    assert torch.equal(clip_random_resized_crop(**whole, horizontal_flip=1.0)(x), x.flip(-1))
    mirrored = sum(torch.equal(clip_random_resized_crop(**whole, horizontal_flip=0.5)(x), x) for _ in range(100))
    assert 30 < mirrored < 70


def test_evaluation_takes_the_middle_and_the_sides() -> None:
    ramp = torch.arange(120).expand(3, 4, 60, 120).to(torch.uint8)
    middle = center_crop((56, 56), resize_to=64)(ramp)
    assert middle.shape == (3, 4, 56, 56)
    assert middle.float().mean() == pytest.approx(59.5, abs=1)
    views = side_crops(60)(ramp)
    assert views.shape == (3, 3, 4, 60, 60)
    assert views.float().mean((1, 2, 3, 4)).tolist() == pytest.approx([29.5, 59.5, 89.5], abs=0.5)
    assert torch.equal(views[1], side_crops(60, views=1)(ramp)[0])
    tall = side_crops((30, 40), views=2)(ramp.transpose(2, 3))
    assert tall.shape == (2, 3, 4, 30, 40)
    assert tall[0].float().mean() < tall[1].float().mean()
    with pytest.raises(ValueError, match="views must be at least 1"):
        side_crops(60, views=0)


def test_normalisation_takes_clips() -> None:
    x = torch.stack([texture(), texture()])
    theirs = (x.float() / 255 - torch.tensor(MEAN).view(3, 1, 1, 1)) / torch.tensor(STD).view(3, 1, 1, 1)
    assert torch.allclose(Normalize(MEAN, STD).normalize(x), theirs, atol=1e-5)


def test_erasing_is_a_box_of_noise_through_all_frames() -> None:
    x = torch.full((200, 3, 4, 40, 50), 128, dtype=torch.uint8)
    erasing = RandomErasing(MEAN, STD, probability=0.5)
    plain = Normalize(MEAN, STD).normalize(x)
    torch.manual_seed(0)
    out = erasing.erase(erasing.normalize(x))
    changed = out != plain
    some = changed.flatten(1).any(1)
    assert 70 < int(some.sum()) < 130
    noise = []
    for clip, mask in zip(out[some], changed[some], strict=True):
        cells = mask.all(0).all(0)
        rows, columns = cells.any(1).nonzero().flatten(), cells.any(0).nonzero().flatten()
        height, width = int(rows[-1] - rows[0] + 1), int(columns[-1] - columns[0] + 1)
        assert bool(cells[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all())
        assert int(mask.sum()) == 3 * 4 * height * width
        assert 0.01 < height * width / 2000 < 0.36
        assert 0.25 < height / width < 4
        inside = clip[..., cells]
        assert not torch.equal(inside[:, 0], inside[:, 1])
        noise.append(inside.flatten())
    together = torch.cat(noise)
    assert abs(together.mean()) < 0.02
    assert together.std() == pytest.approx(1, abs=0.02)
    assert torch.equal(erasing.normalize(x), plain)
    with pytest.raises(ValueError, match="need a probability"):
        RandomErasing(MEAN, STD, probability=2)


@pytest.mark.parametrize("group", ["videos", "moving_shapes"])
def test_groups_of_clips_fit_together(group: str, tmp_path: Path) -> None:
    overrides = [f"data={group}", "data.size=[4,32,48]"]
    if group == "videos":
        write_files(MovingShapes(3, 64, 8), tmp_path / "train")
        write_files(MovingShapes(3, 64, 8, split="test"), tmp_path / "test")
        overrides += [f"data.root={tmp_path / 'train'}", f"data.test_root={tmp_path / 'test'}"]
        overrides += ["data.dataset.list_file=labels.csv"]
    else:
        overrides += ["data.dataset.count=3", "data.labelled.train.count=3", "data.labelled.test.count=3"]
        overrides += [f"data.root={tmp_path}"]
    data = load_recipe(["recipe=ijepa_tiny", *overrides])["data"]
    for where, node in (("dataset", data["dataset"]), *data["labelled"].items()):
        dataset = build(node, where)
        for name in ("transform", "eval_transform"):
            transform = build(data[name], name) if data[name] else None
            sample = InOrder(dataset, transform, range(3))[1]
            assert sample.x.shape == (1, 1, 3, 4, 32, 48)  # views, clips
            assert set(sample.labels) == {"direction", "speed", "bounce", "shape", "colour", "count"}
    assert list(tmp_path.rglob("*.mp4"))


def test_the_statistics_are_those_of_moving_shapes() -> None:
    data = load_recipe(["recipe=ijepa_tiny", "data=moving_shapes", "data.size=[16,64,64]"])["data"]
    dataset, normalize = build(data["dataset"], "dataset"), build(data["batch_transform"], "batch_transform")
    x = normalize.normalize(torch.stack([dataset[i].x for i in range(200)]))
    assert x.mean((0, 2, 3, 4)).abs().max() < 0.15
    assert (x.std((0, 2, 3, 4)) - 1).abs().max() < 0.15


def test_unreadable_videos_of_a_mixture_are_named(tmp_path: Path) -> None:
    film(tmp_path / "good" / "a.mp4", 8)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "b.mp4").write_bytes(b"no video")
    mixture = Mixture({name: Videos(tmp_path / name, 2, stride=1) for name in ("good", "bad")})
    reasons = set()
    for seed in range(20):
        torch.manual_seed(seed)
        try:
            assert mixture[0].name == "good/a.mp4"
        except UnreadableSample as error:
            reasons.add(str(error)[:19])
    assert reasons == {"bad/b.mp4: cut off,"}
