"""Folders, lists and files of every kind, good and bad."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from jepa.data import DataError, Images
from jepa.data import decode as decoding
from jepa.data.decode import decode
from jepa.data.files import find_files
from jepa.types import UnreadableSample

RED, GREEN = (200, 30, 40), (10, 160, 60)


def picture(height: int = 12, width: int = 16) -> np.ndarray:
    """(H, W, 3) smooth, and different in each corner and channel."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.stack([255 * x, 255 * y, 128 * (1 - x * y)], -1).astype(np.uint8)


def read(path: Path) -> np.ndarray:
    """(H, W, 3) as decoded."""
    x = decode(path, path.name)
    assert x.dtype == torch.uint8
    assert x.shape[0] == 3
    return x.permute(1, 2, 0).numpy().astype(int)


def save(path: Path, image: Image.Image | np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def png16(pixels: np.ndarray) -> bytes:
    """A PNG file with 16 bits per channel of (H, W, 3) pixels, which PIL cannot write."""
    height, width, _ = pixels.shape

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("a.png", {}, 0),
        ("a.bmp", {}, 0),
        ("a.ppm", {}, 0),
        ("a.tif", {}, 0),
        ("a.webp", {"lossless": True}, 0),
        ("a.webp", {"quality": 95}, 20),
        ("a.jpg", {"quality": 98, "subsampling": 0}, 4),
        ("a.jpg", {"quality": 98, "subsampling": 0, "progressive": True}, 4),
    ],
)
def test_common_kinds_give_their_pixels(tmp_path: Path, name: str, options: dict[str, object], tolerance: int) -> None:
    assert np.abs(read(save(tmp_path / name, picture(), **options)) - picture()).max() <= tolerance


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *[("L", "png"), ("1", "png"), ("P", "png"), ("L", "jpg"), ("CMYK", "jpg")],
        *[("L", "tif"), ("1", "tif"), ("P", "tif"), ("CMYK", "tif")],
    ],
)
def test_other_colour_models_become_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    image = Image.fromarray(picture()).convert(mode)
    expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(read(save(tmp_path / f"a.{suffix}", image)) - expected).max() <= (8 if suffix == "jpg" else 0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(tmp_path: Path, mode: str) -> None:
    if mode == "P":
        image = Image.new("P", (3, 1))
        image.putpalette([0, 0, 0, *RED, *GREEN])
        image.putdata([0, 1, 2])
        save(tmp_path / "a.png", image, transparency=0)
        expected = [(255, 255, 255), RED, GREEN]
    else:
        colour = RED if mode == "RGBA" else RED[:1]
        image = Image.new(mode, (3, 1))
        image.putdata([(*colour, 0), (*colour, 255), (*colour, 51)])
        save(tmp_path / "a.png", image)
        full = RED if mode == "RGBA" else RED[:1] * 3
        expected = [(255, 255, 255), full, tuple(round(255 + (c - 255) * 51 / 255) for c in full)]
    assert np.abs(read(tmp_path / "a.png") - np.array([expected])).max() <= 1


def test_16_bits_become_8(tmp_path: Path) -> None:
    grey = np.arange(64, dtype=np.uint16).reshape(8, 8) * np.uint16(1040)
    for name in ("a.png", "a.tif", "a.pgm"):
        assert np.array_equal(read(save(tmp_path / name, grey)), np.stack([grey >> 8] * 3, -1))
    colour = np.random.default_rng(0).integers(0, 65536, (8, 8, 3))
    (tmp_path / "c.png").write_bytes(png16(colour))
    assert np.array_equal(read(tmp_path / "c.png"), colour >> 8)


def test_pixels_without_a_known_range_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.tif", np.full((4, 4), 0.5, np.float32))
    with pytest.raises(UnreadableSample, match="pixels of mode F have no known range"):
        read(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path: Path, suffix: str, orientation: int) -> None:
    upright = picture(16, 24)
    undo = {  # how a camera that writes this orientation has stored the upright picture
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.swapaxes(0, 1),
        6: np.rot90(upright), 7: np.rot90(upright, 2).swapaxes(0, 1), 8: np.rot90(upright, -1),
    }  # fmt: skip
    image = Image.fromarray(np.ascontiguousarray(undo[orientation]))
    exif = image.getexif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {"quality": 98, "subsampling": 0} if suffix == "jpg" else {}
    result = read(save(tmp_path / f"a.{suffix}", image, exif=exif, **options))
    assert result.shape == upright.shape
    assert np.abs(result - upright).max() <= 4


def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]
    for name in ("a.gif", "a.png", "a.webp"):
        options = {"lossless": True} if name.endswith("webp") else {}
        save(tmp_path / name, frames[0], save_all=True, append_images=frames[1:], **options)
        assert (read(tmp_path / name) == RED).all()


def test_jpeg_pixels_do_not_depend_on_the_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    path = save(tmp_path / "a.jpg", noise, quality=85)
    ours = read(path)
    monkeypatch.setattr(decoding, "_decode_jpeg", None)
    assert np.abs(read(path) - ours).max() <= 2


def contents_of(kind: str) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, "PNG" if "png" in kind else "JPEG")
    data = bytearray(stream.getvalue())
    if kind.startswith("truncated"):
        return bytes(data[: len(data) // 2])
    if kind.startswith("damaged"):
        data[len(data) // 2 : len(data) // 2 + 16] = bytes(16)
    return bytes(data)


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (b"", "empty file"),
        (b"hello, I am text", r"not a picture of a known kind, starts with b'hello, I'"),
        (b"\xff\xd8\xff\xe0 no more", "cannot be decoded"),
        (b"\x89PNG\r\n\x1a\n", "not a picture|cannot be decoded"),
        (contents_of("truncated png"), "cannot be decoded: .*truncated"),
        (contents_of("damaged png"), "cannot be decoded"),
        (contents_of("truncated jpg"), "cannot be decoded: .*truncated"),
    ],
)
def test_bad_files_are_unreadable_and_say_why(tmp_path: Path, name: str, contents: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(UnreadableSample, match=f"^{name}: (?:{reason})"):
        read(tmp_path / name)


def test_what_is_not_a_file_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(UnreadableSample, match=r"folder.jpg: Is a directory"):
        read(tmp_path / "folder.jpg")
    with pytest.raises(UnreadableSample, match=r"gone.jpg: No such file"):
        read(tmp_path / "gone.jpg")


def test_a_jpeg_of_100_megapixels_is_decoded_small(tmp_path: Path) -> None:
    path = save(tmp_path / "huge.jpg", Image.linear_gradient("L").resize((10_000, 10_000)), quality=50)
    x = decode(path, "huge.jpg")
    assert x.shape == (3, 2500, 2500)
    rows = x.float().mean((0, 2))
    assert (rows - torch.linspace(0, 255, 2500)).abs().max() < 3


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif"])
def test_pictures_above_a_limit_are_reduced_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = save(tmp_path / name, picture(64, 96))
    monkeypatch.setattr(decoding, "REDUCE_ABOVE", 32 * 48)
    assert decode(path, name).shape == (3, 32, 48)
    monkeypatch.setattr(decoding, "REDUCE_ABOVE", 32 * 48 - 1)
    small = decode(path, name)
    assert small.shape == (3, 16, 24)
    expected = picture(64, 96).reshape(16, 4, 24, 4, 3).mean((1, 3))
    assert np.abs(small.permute(1, 2, 0).numpy() - expected).mean() < 8
    with pytest.raises(UnreadableSample, match="96 x 64 pixels exceed max_pixels = 6000"):
        decode(path, name, max_pixels=6000)


def test_pil_s_own_limit_is_a_reason_not_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", picture())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(UnreadableSample, match="decompression bomb"):
        read(path)


def test_min_side_decodes_large_jpegs_smaller(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", picture(400, 640), quality=98)
    for min_side, side in ((None, 400), (201, 400), (200, 200), (64, 100), (1, 50)):
        x = decode(path, "a.jpg", min_side=min_side)
        assert tuple(x.shape) == (3, side, side * 640 // 400)
    expected = picture(400, 640).reshape(100, 4, 160, 4, 3).mean((1, 3))
    small = decode(path, "a.jpg", min_side=100).permute(1, 2, 0).numpy()
    assert np.abs(small - expected).max() < 6
    assert decode(save(tmp_path / "a.png", picture(400, 640)), "a.png", min_side=100).shape == (3, 400, 640)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two classes, deeper folders, hidden and foreign files."""
    for number, name in enumerate(["cat/2.png", "cat/10.PNG", "dog/deep/er/1.png", "dog/0.png", "dog/räv 1.png"]):
        save(tmp_path / "root" / name, np.full((4, 6, 3), number, np.uint8))
    for name in (".hidden.png", "cat/.thumbs/2.png"):
        save(tmp_path / "root" / name, np.zeros((4, 6, 3), np.uint8))
    (tmp_path / "root" / "dog" / "notes.txt").write_text("not a picture")
    return tmp_path / "root"


NAMES = ["cat/10.PNG", "cat/2.png", "dog/0.png", "dog/deep/er/1.png", "dog/räv 1.png"]


def values(images: Images) -> list[int]:
    return [int(images[i].x[0, 0, 0]) for i in range(len(images))]


def test_a_folder_tree_is_enough(tree: Path) -> None:
    images = Images(tree)
    assert [images[i].name for i in range(len(images))] == NAMES
    assert values(images) == [1, 0, 3, 2, 4]
    assert images[0].x.shape == (3, 4, 6)
    assert images.label_names == {"label": ["cat", "dog"]}
    assert [images[i].labels["label"] for i in range(len(images))] == [0, 0, 1, 1, 1]
    assert Images(str(tree), extensions=[".txt"]).files.name(0) == "dog/notes.txt"


def test_labels_need_two_folders_that_hold_everything(tree: Path) -> None:
    flat = Images(tree / "dog")
    assert (flat.label_names, flat[0].labels) == ({}, {})
    save(tree / "stray.png", picture())
    assert Images(tree).label_names == {}


def test_links_are_followed_once(tree: Path) -> None:
    (tree / "dog" / "loop").symlink_to(tree)
    (tree / "fox").symlink_to(tree.parent / "elsewhere")
    save(tree.parent / "elsewhere" / "7.png", picture())
    assert find_files(tree, (".png",), "pictures") == [*NAMES, "fox/7.png"]


def test_the_fingerprint_names_the_files_not_the_place(tree: Path, tmp_path: Path) -> None:
    before = Images(tree).fingerprint
    moved = tree.rename(tmp_path / "moved")
    assert Images(moved).fingerprint == before
    save(moved / "cat" / "3.png", picture())
    assert Images(moved).fingerprint != before


def test_unreadable_files_are_named_relative_to_the_root(tree: Path) -> None:
    (tree / "cat" / "1.jpg").write_bytes(b"")
    with pytest.raises(UnreadableSample, match=r"^cat/1.jpg: empty file$"):
        Images(tree)[0]


def test_folders_without_pictures_say_what_they_hold(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere is missing: set data.root"):
        Images(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"notes.txt is not a folder"):
        Images(tree / "dog" / "notes.txt")
    with pytest.raises(DataError, match=r"looked for .xyz; found 6 other files \(5 x .png, 1 x .txt\)"):
        Images(tree, extensions=(".xyz",))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"looked for .jpg, .* found 0 other files$"):
        Images(tmp_path / "empty")


@pytest.mark.parametrize(
    ("name", "text", "names", "labels", "classes"),
    [
        ("l.csv", "path,label\ndog/0.png,b\ncat/2.png,a\n", ["dog/0.png", "cat/2.png"], [1, 0], ["a", "b"]),
        ("l.csv", "dog/räv 1.png, 2\ncat/2.png, 0\n", ["dog/räv 1.png", "cat/2.png"], [2, 0], ["0", "1", "2"]),
        ("l.txt", "dog/räv 1.png 0.5\ncat/2.png\t-2\n\n", ["dog/räv 1.png", "cat/2.png"], [0.5, -2.0], None),
        ("l.txt", "\ufeffpath label\ncat/2.png old\n", ["cat/2.png"], [0], ["old"]),
        ("l.csv", "path\ncat/2.png\n", ["cat/2.png"], [], None),
        ("l.txt", "dog/räv 1.png\ncat/10.PNG\n", ["dog/räv 1.png", "cat/10.PNG"], [], None),
    ],
)
def test_a_list_sets_order_and_labels(
    tree: Path, name: str, text: str, names: list[str], labels: list[float], classes: list[str] | None
) -> None:
    (tree / name).write_text(text, "utf-8")
    for list_file in (name, tree / name):
        images = Images(tree, list_file=list_file)
        samples = [images[i] for i in range(len(images))]
        assert [sample.name for sample in samples] == names
        assert [sample.labels["label"] for sample in samples if sample.labels] == labels
        assert images.label_names == ({"label": classes} if labels else {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat/1.png,0\ncat/2.png,1\ncat/x.png,1\n", r"2 of 3 files of the list are missing .*: cat/1.png, cat/x.png$"),
        ("".join(f"no/{i}.png\n" for i in range(9)), r"9 of 9 .* no/4.png, \.\.\.$"),
        ("cat/2.png,0,7\n", "several labels: name them in a first line"),
        ("cat/2.png,0\n\ncat/2.png\n", "l.csv should hold `path,label` throughout; line 3 holds: cat/2.png$"),
        ("cat/2.png,0\ncat/2.png,\n", "line 2 holds: cat/2.png,$"),
        ("cat/2.png\ncat/2.png,1\n", "`path` throughout; line 2 holds: cat/2.png,1$"),
        ("path,a,b\ncat/2.png,0\n", "l.csv should hold `path,a,b` throughout; line 2 holds: cat/2.png,0$"),
        ("path,a,a\ncat/2.png,0,1\n", "another name for each label in its header, not: a,a"),
        ("path,a,\ncat/2.png,0,1\n", "another name for each label in its header, not: a,$"),
        ('cat/2.png,"0\n', "l.csv cannot be read: unexpected end of data"),
        ("path,label\n", "names no pictures"),
        ("", "names no pictures"),
        ("cat/2.png,1000000\n", "classes 0 to 99,999, got 1000000"),
        ("path,a,b\ncat/2.png,1.5,nan\n", "label 'b' of the list .*l.csv: nan is neither a finite number nor a name"),
    ],
)
def test_lists_that_do_not_fit_are_refused(tree: Path, text: str, message: str) -> None:
    (tree / "l.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        Images(tree, list_file="l.csv")
    with pytest.raises(DataError, match=r"no list_file at other.csv or .*root/other.csv"):
        Images(tree, list_file="other.csv")


@pytest.mark.parametrize(("name", "separator"), [("l.csv", ","), ("l.txt", "\t")])
def test_a_list_may_hold_several_labels(tree: Path, name: str, separator: str) -> None:
    rows = [("path", "kind", "side", "weight"), ("dog/räv 1.png", "fox", "1", "0.5"), ("cat/2.png", "cat", "0", "7")]
    (tree / name).write_text("\n".join(map(separator.join, rows)), "utf-8")
    images = Images(tree, list_file=name)
    assert images.label_names == {"kind": ["cat", "fox"], "side": ["0", "1"], "weight": None}
    assert images[0].labels == {"kind": 1, "side": 1, "weight": 0.5}
    assert images[1].labels == {"kind": 0, "side": 0, "weight": 7.0}


def test_the_fingerprint_knows_listed_labels(tree: Path) -> None:
    prints = set()
    for label in ("0.5", "0.7", "a", "b"):
        (tree / "l.csv").write_text(f"cat/2.png,{label}\n")
        prints.add(Images(tree, list_file="l.csv").fingerprint)
    assert len(prints) == 4


def test_a_list_in_another_encoding_and_folders_that_are_no_numbers_are_refused(tree: Path) -> None:
    (tree / "l.csv").write_bytes("dog/räv 1.png,0\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"l.csv cannot be read: 'utf-8' codec"):
        Images(tree, list_file="l.csv")
    (tree / "cat").rename(tree / "1")
    (tree / "dog").rename(tree / "inf")
    with pytest.raises(DataError, match=r"label 'label' of the folders below .*: inf is neither"):
        Images(tree)


def test_a_listed_folder_is_unreadable_not_missing(tree: Path) -> None:
    (tree / "trap.jpg").mkdir()
    (tree / "l.txt").write_text("trap.jpg\ncat/2.png\n")
    images = Images(tree, list_file="l.txt")
    with pytest.raises(UnreadableSample, match="Is a directory"):
        images[0]
    x: Tensor = images[1].x
    assert x.shape == (3, 4, 6)
