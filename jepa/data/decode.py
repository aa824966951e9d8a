"""Pictures in files of any common kind, as bytes (3, H, W)."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor
from torchvision.io import ImageReadMode

from jepa.types import UnreadableSample

MAX_PIXELS = 2**27  # 134 megapixels: at most about 1.3 GB while decoding, for kinds that cannot be decoded smaller
REDUCE_ABOVE = 2**24  # 17 megapixels: what leaves here is at most 50 MB

# torchvision's operator itself: its deprecated wrapper warns at every call. Where it is gone PIL gives the same pixels,
# a quarter slower
_decode_jpeg = getattr(torch.ops.image, "decode_jpeg", None)


def decode(path: Path, name: str, *, min_side: int | None = None, max_pixels: int = MAX_PIXELS) -> Tensor:
    """The first frame of a picture as uint8 (3, H, W), turned as its EXIF data says.

    Grey becomes three equal channels, transparency becomes white, 16 bits become 8 (by dropping the lower ones), CMYK
    and palettes become RGB; colour profiles are ignored. Pictures of more than 17 megapixels are reduced by 1/2, 1/4
    or 1/8, JPEG files while decoding.

    Args:
        path: the file.
        name: what to call it in an error.
        min_side: JPEG files are decoded at 1/2, 1/4 or 1/8 of their size, several times as fast, as long as their
            shorter side keeps this many pixels.
        max_pixels: refuse larger pictures.

    Raises:
        UnreadableSample: the file is missing, damaged, too large or of no known kind.
    """
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise UnreadableSample(name, error.strerror or str(error)) from error
    if not len(data):
        raise UnreadableSample(name, "empty file")
    try:
        return _decode(data, name, min_side, max_pixels)
    except UnreadableSample:
        raise
    except Image.UnidentifiedImageError as error:
        raise UnreadableSample(name, f"not a picture of a known kind, starts with {bytes(data[:8])!r}") from error
    except Exception as error:  # on damaged bytes the decoders raise nearly anything
        raise UnreadableSample(name, f"cannot be decoded: {error}") from error


def _decode(data: np.ndarray, name: str, min_side: int | None, max_pixels: int) -> Tensor:
    if _decode_jpeg is not None and (frame := _jpeg_frame(data.data)) is not None:
        width, height, components = frame
        small = width * height <= max_pixels and _reduction(width, height, min_side) == 1
        if small and components in (1, 3):
            try:
                return _decode_jpeg(torch.from_numpy(data), ImageReadMode.RGB.value, True)
            except RuntimeError:
                pass  # PIL reads a few files that torchvision does not, and else says more clearly what is wrong
    stream = io.BytesIO(data.data)
    is_jpeg = bytes(data[:3]) == b"\xff\xd8\xff"
    # not Image.open: it refuses by the full size, but large JPEG files are decoded at a reduced one
    image = JpegImageFile(stream) if is_jpeg else Image.open(stream)
    width, height = image.size
    if width * height > max_pixels:
        raise UnreadableSample(name, f"{width} x {height} pixels exceed max_pixels = {max_pixels}")
    factor = _reduction(width, height, min_side if is_jpeg else None)
    if is_jpeg:
        image.draft(image.mode, (width // factor, height // factor))
        factor = 1
    ImageOps.exif_transpose(image, in_place=True)
    return torch.from_numpy(np.array(_to_rgb(image, factor))).permute(2, 0, 1)


def _jpeg_frame(data: memoryview) -> tuple[int, int, int] | None:
    """(width, height, components) from the frame header of a JPEG file; None where there is none to be found.

    PIL reads the same and much more, which takes a tenth of the time of decoding.
    """
    if bytes(data[:2]) != b"\xff\xd8":
        return None
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame: ITU-T T.81, table B.1
            return data[at + 7] << 8 | data[at + 8], data[at + 5] << 8 | data[at + 6], data[at + 9]
        if marker == 0xDA:  # the scan: pixels begin
            return None
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None


def _reduction(width: int, height: int, min_side: int | None) -> int:
    """By how much to divide both sides: 1, 2, 4 or 8."""
    factor = 1
    while factor < 8 and (
        width * height > REDUCE_ABOVE * factor**2 or (min_side and min(width, height) >= 2 * factor * min_side)
    ):
        factor *= 2
    return factor


def _to_rgb(image: Image.Image, factor: int) -> Image.Image:
    """An RGB picture, `factor` times smaller."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no known range, save them with 8 or 16 bits")
    if not image.has_transparency_data:
        return image.convert("RGB").reduce(factor)
    pixels = np.asarray(image.convert("RGBA").convert("RGBa").reduce(factor))
    return Image.fromarray(pixels[..., :3] + (255 - pixels[..., 3:]))  # premultiplied: the sum lays it on white
