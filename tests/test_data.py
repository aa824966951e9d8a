"""Transforms, embedded datasets and the recipes of data groups."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms as reference
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torchvision.transforms.functional import resized_crop

from jepa.data import DataError, Digits, Images, Normalize, SampleDataset, Shapes, center_crop, random_resized_crop

RECIPES = Path(__file__).parent.parent / "recipes" / "data"


def scene(size: tuple[int, int] = (375, 500)) -> Tensor:
    """(3, H, W) uint8 with edges, texture and smooth parts, laid out as decoders do it."""
    x = Shapes(1, size=size)[0].x
    return x.permute(1, 2, 0).contiguous().permute(2, 0, 1)


@pytest.mark.parametrize("size", [224, 96, (64, 160), [300, 20]])
@pytest.mark.parametrize("layout", ["channels last", "contiguous"])
def test_crops_are_those_of_the_usual_pipeline(size: int | tuple[int, int], layout: str) -> None:
    x = scene() if layout == "channels last" else scene().contiguous()
    image = Image.fromarray(x.permute(1, 2, 0).numpy())
    crop = random_resized_crop(size)
    for seed in range(3):
        torch.manual_seed(seed)
        ours = crop(x)
        torch.manual_seed(seed)
        top, left, height, width = crop.box(375, 500)
        usual = resized_crop(image, top, left, height, width, list(crop.size))
        theirs = torch.from_numpy(np.array(usual)).permute(2, 0, 1)
        assert ours.shape == theirs.shape
        assert ours.dtype == torch.uint8
        assert ours.is_contiguous()
        difference = (ours.int() - theirs.int()).abs()
        assert difference.max() <= 2
        assert difference.float().mean() < 0.3


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (40, 300), (300, 30)])
def test_boxes_are_spread_like_those_of_the_usual_pipeline(height: int, width: int) -> None:
    crop = random_resized_crop(224)
    x = torch.empty(1, height, width)
    torch.manual_seed(0)
    ours = torch.tensor([crop.box(height, width) for _ in range(1000)]).float()
    theirs = torch.tensor(
        [reference.RandomResizedCrop.get_params(x, crop.scale, crop.ratio) for _ in range(1000)]
    ).float()
    scale = torch.tensor([height, width, height, width])
    assert ((ours.mean(0) - theirs.mean(0)).abs() / scale).max() < 0.03
    assert ((ours.std(0) - theirs.std(0)).abs() / scale).max() < 0.03
    assert (ours[:, :2].min(0).values >= 0).all()
    bottom, right = (ours[:, 0] + ours[:, 2]).max(), (ours[:, 1] + ours[:, 3]).max()
    assert (bottom <= height, right <= width) == (True, True)
    assert min(height, width) < 100 or (bottom, right) == (height, width)


def test_boxes_of_extreme_pictures_hold_a_pixel() -> None:
    crop = random_resized_crop(8, scale=(0.3, 0.3))
    for height, width in ((1, 1), (1, 1000), (1000, 1), (2, 3)):
        for _ in range(50):
            top, left, h, w = crop.box(height, width)
            assert 0 < h <= height - top
            assert 0 < w <= width - left
        assert crop(torch.zeros(3, height, width, dtype=torch.uint8)).shape == (3, 8, 8)


def test_crops_take_any_channels_and_follow_the_global_generator() -> None:
    crop = random_resized_crop((20, 30))
    x = torch.randint(0, 256, (12, 50, 60), dtype=torch.uint8)
    torch.manual_seed(0)
    first, second = crop(x), crop(x)
    torch.manual_seed(0)
    assert torch.equal(crop(x), first)
    assert not torch.equal(first, second)
    assert first.shape == (12, 20, 30)


def test_flips_happen_as_often_as_asked() -> None:
    x = torch.arange(256, dtype=torch.uint8).repeat(3, 256, 1)
    torch.manual_seed(0)
    flipped = [
        bool(random_resized_crop(32, horizontal_flip=0.25)(x).float().diff(dim=2).mean() < 0) for _ in range(200)
    ]
    assert 25 <= sum(flipped) <= 75
    assert not any(bool(random_resized_crop(32)(x).float().diff(dim=2).mean() < 0) for _ in range(50))


@pytest.mark.parametrize(
    "settings",
    [
        {"size": 0},
        {"size": [32]},
        {"size": 32, "scale": (0, 1)},
        {"size": 32, "scale": (0.3, 1.5)},
        {"size": 32, "ratio": (2, 1)},
        {"size": 32, "horizontal_flip": 2},
    ],
)
def test_impossible_crops_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"size must be|need 0 <"):
        random_resized_crop(**settings)


@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (100, 700)])
def test_centre_crops_are_those_of_the_usual_pipeline(shape: tuple[int, int]) -> None:
    x = scene(shape)
    usual = reference.Compose([reference.Resize(256), reference.CenterCrop(224)])
    theirs = torch.from_numpy(np.array(usual(Image.fromarray(x.permute(1, 2, 0).numpy())))).permute(2, 0, 1)
    ours = center_crop(224)(x)
    assert ours.is_contiguous()
    if 700 in shape:  # the usual pipeline rounds the longer side down, so a long picture may be a pixel off
        assert ours.shape == theirs.shape
    else:
        assert (ours.int() - theirs.int()).abs().max() <= 2


def test_centre_crops_of_other_sizes() -> None:
    x = torch.zeros(3, 100, 200, dtype=torch.uint8)
    x[:, :, 50:150] = 255
    assert center_crop((40, 80))(x).shape == (3, 40, 80)
    assert center_crop(100, resize_to=100)(x).min() == 255  # the middle square, whole
    with pytest.raises(ValueError, match=r"resize_to \[20, 20\] must be at least size \[32, 32\]"):
        center_crop(32, resize_to=20)


EMBEDDED = {
    "shapes": lambda split="train", seed=0: Shapes(60, size=(32, 48), seed=seed, split=split),
    "digits": lambda split="train", seed=0: Digits(split, size=32, placed=True, copies=2, seed=seed),
    "plain digits": lambda split="train", seed=0: Digits(split, seed=seed),
}


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_data_keeps_the_contract(name: str) -> None:
    data = EMBEDDED[name]()
    again = EMBEDDED[name]()
    for i in (0, len(data) // 2, len(data) - 1):
        np.random.seed(i)  # no global generator may matter
        torch.manual_seed(i)
        sample = data[i]
        assert sample.x.dtype == torch.uint8
        assert sample.x.shape[0] == 3
        assert sample.x.is_contiguous()
        assert torch.equal(again[i].x, sample.x)
        assert sample.labels.keys() == data.label_names.keys()
        for label, classes in data.label_names.items():
            assert classes is None or 0 <= sample.labels[label] < len(classes)
        assert sample.name.endswith(f"train/{i}")
    with pytest.raises(IndexError):
        data[len(data)]
    assert data.fingerprint == again.fingerprint
    assert data.fingerprint != EMBEDDED[name]("test").fingerprint
    assert len({EMBEDDED[name](split, seed).fingerprint for split in ("train", "test") for seed in (0, 1)}) == 4


@pytest.mark.parametrize("name", ["shapes", "digits"])
def test_seeds_splits_and_positions_give_other_pictures(name: str) -> None:
    variants = [EMBEDDED[name](split, seed) for split in ("train", "test") for seed in (0, 1)]
    pictures = [data[i].x for data in variants for i in range(20)]
    assert len({x.numpy().tobytes() for x in pictures}) == len(pictures)


def test_digits_are_split_by_scan() -> None:
    train, test = Digits(size=8), Digits("test", size=8)
    assert (len(train), len(test)) == (1300, 497)
    assert not {x.x.numpy().tobytes() for x in map(train.__getitem__, range(1300))} & {
        x.x.numpy().tobytes() for x in map(test.__getitem__, range(497))
    }
    assert min(Counter(test[i].labels["digit"] for i in range(497)).values()) > 35
    assert max(train[i].x.max() for i in range(10)) == 255  # ink of 16 / 16


def test_digits_keep_their_label_wherever_they_are_placed() -> None:
    plain, placed = Digits(size=32), Digits(size=32, placed=True, copies=3)
    assert len(placed) == 3 * len(plain)
    assert all(placed[i + 1300].labels == plain[i].labels for i in range(0, 1300, 100))
    corners = [placed[i].x[:, ::31, ::31].flatten(1) for i in range(100)]
    assert all((corner.max(1).values - corner.min(1).values).max() < 160 for corner in corners)  # canvas around it


def nearest_neighbour_score(train: SampleDataset, test: SampleDataset, label: str, count: int = 600) -> float:
    """Accuracy of the five nearest neighbours of raw pixels."""
    parts = []
    for data in (train, test):
        samples = [data[i] for i in range(min(count, len(data)))]
        pixels = torch.stack([sample.x for sample in samples]).flatten(1).float().numpy()
        parts += [pixels, [sample.labels[label] for sample in samples]]
    return KNeighborsClassifier(5).fit(*parts[:2]).score(*parts[2:])


def test_raw_pixels_say_little() -> None:
    assert nearest_neighbour_score(Digits(), Digits("test"), "digit") > 0.9
    assert nearest_neighbour_score(Digits(placed=True), Digits("test", placed=True), "digit") < 0.3
    shapes = Shapes(600, size=32), Shapes(300, size=32, split="test")
    assert nearest_neighbour_score(*shapes, "shape") < 0.35
    assert nearest_neighbour_score(*shapes, "colour") < 0.6


def test_scenes_show_what_their_labels_say() -> None:
    data = Shapes(300, size=(64, 96))
    labels = [data[i].labels for i in range(300)]
    assert {label["count"] for label in labels} == {1, 2, 3, 4}
    assert {label["shape"] for label in labels} == set(range(6))
    assert {label["colour"] for label in labels} == set(range(7))
    assert all(0.3 <= label["scale"] <= 0.6 for label in labels)
    hits = 0
    for i, label in enumerate(labels):
        if data.label_names["shape"][label["shape"]] == "ring":
            continue  # nothing in its centre
        column, row = (label["position"] * torch.tensor([96, 64])).int().tolist()
        red, green, blue = (data[i].x[:, row, column].float() / 255).tolist()
        hue = np.degrees(np.arctan2(3**0.5 * (green - blue), 2 * red - green - blue)) / 360 % 1
        expected = [0.0, 0.09, 0.16, 0.33, 0.5, 0.63, 0.8][label["colour"]]
        hits += abs((hue - expected + 0.5) % 1 - 0.5) < 0.04
    assert hits == sum(data.label_names["shape"][label["shape"]] != "ring" for label in labels)


class Placed(Shapes):
    """Scenes that remember where they put their objects."""

    def _places(self, rng: np.random.Generator) -> list[tuple[float, float, float]]:
        self.places = super()._places(rng)
        return self.places


def test_light_comes_from_above_and_changes_nothing_else() -> None:
    dark, lit = (Shapes(count=40, size=32, light=light) for light in (0.0, 1.0))
    fall = []
    for i in range(len(dark)):
        before, after = dark[i].x.float(), lit[i].x.float()
        fall.append((after - before).mean((0, 2)))
        assert str(dark[i].labels) == str(lit[i].labels)
    rows = torch.stack(fall)[:, [0, -1]]  # of the uppermost and the lowest row of pixels
    assert (rows[:, 0] >= rows[:, 1]).float().mean() > 0.9  # where no object hides it
    assert rows[:, 0].mean() > 20 > -20 > rows[:, 1].mean()
    assert dark[0].x.equal(Shapes(count=40, size=32)[0].x)
    assert dark.fingerprint != lit.fingerprint


def test_distance_is_that_of_the_object_nearest_to_the_middle() -> None:
    data, nearer = Placed(100, size=(64, 96)), 0
    for i in range(100):
        labels = data[i].labels
        distances = [float(np.hypot(x - 48, y - 32)) / 64 for x, y, _ in data.places]
        assert labels["distance"] == pytest.approx(min(distances))
        nearer += min(distances) < distances[0]
        if labels["count"] == 1:
            x, y = (labels["position"] - 0.5) * torch.tensor([96, 64]) / 64
            assert labels["distance"] == pytest.approx(float(torch.hypot(x, y)), abs=1e-5)
    assert 20 < nearer < 80  # often it is not the main one


def test_edges_are_smooth() -> None:
    x = Shapes(1, size=224, seed=3)[0].x.float()
    colours = x.flatten(1).T.unique(dim=0)
    assert len(colours) > 1000


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Shapes(0), "count 0"),
        (lambda: Shapes(size=8), "size 8"),
        (lambda: Shapes(split="val"), "split 'val'"),
        (lambda: Shapes(light=2), "light in 0..1"),
        (lambda: Digits("val"), "split 'val'"),
        (lambda: Digits(size=4), "size 4"),
        (lambda: Digits(copies=2), "use placed = true"),
    ],
)
def test_impossible_settings_are_refused(make: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()


@pytest.mark.parametrize("group", ["images", "digits", "shapes"])
def test_groups_can_be_built(group: str, tmp_path: Path) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    config = OmegaConf.create({"data": OmegaConf.load(RECIPES / f"{group}.yaml")})
    if OmegaConf.is_missing(config.data, "root"):
        config.data.root = config.data.test_root = str(tmp_path)
    parts = instantiate(config.data)
    assert isinstance(parts.batch_transform, Normalize)
    for dataset in (parts.dataset, parts.labelled.train, parts.labelled.test):
        assert isinstance(dataset, Images | Digits | Shapes)
        x = dataset[0].x
        for transform in (parts.transform, parts.eval_transform):
            assert (transform(x) if transform else x).shape == (3, config.data.size, config.data.size)


@pytest.mark.parametrize("group", ["digits", "shapes"])
def test_the_groups_statistics_are_those_of_the_data(group: str) -> None:
    config = OmegaConf.create({"data": OmegaConf.load(RECIPES / f"{group}.yaml")})
    parts = instantiate(config.data)
    x = parts.batch_transform.normalize(torch.stack([parts.dataset[i].x for i in range(400)]))
    assert x.mean((0, 2, 3)).abs().max() < 0.15
    assert (x.std((0, 2, 3)) - 1).abs().max() < 0.15
