"""What a page is made of. Sections hold these; the template draws them and knows nothing else."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from PIL import Image
from torch import Tensor

from jepa.data.tones.files import OPUS_RATES, encode
from jepa.pictures import WIDE, few, to_image
from jepa.report.charts import Chart

SMALL, LARGE = 96, 256  # heights: below, pixels are shown as such; above, or wider than WIDE, pictures are made smaller
MOVING, FRAMES, SECONDS = 128, 16, 1.6  # of moving pictures: least or largest height, most frames, once through

HEARD, BITS = 12, 32_000  # of sounds: most seconds, and bits per second: 48 kB at most


@dataclass(frozen=True)
class Picture:
    """A picture with a line below it.

    Attributes:
        source: a data URI.
        caption: the line.
        ratio: width over height.
        pixelated: whether it is so small that its pixels are shown as squares.
        still: of a moving picture its middle frame, a data URI; "" for others.
        sound: to be played, a data URI; "" where there is nothing to hear.
    """

    source: str
    caption: str
    ratio: float
    pixelated: bool
    still: str = ""
    sound: str = ""


@dataclass(frozen=True)
class Row:
    """Pictures that belong together."""

    title: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Table:
    """Cells of text; the first of each line is its title."""

    columns: Sequence[str]
    lines: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        id: of its anchor.
        title: of the part.
        text: paragraphs that say what is seen and how to read it.
        charts, rows, table: what is seen.
        command: a command that would bring more.
        details: (title, text) that is folded away.
    """

    id: str
    title: str
    text: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    rows: Sequence[Row] = ()
    table: Table | None = None
    command: str | None = None
    details: tuple[str, str] | None = None


def picture(rgb: Tensor, caption: str = "", sound: str = "") -> Picture:
    """A picture (3, H, W) in [0, 1], as PNG if small and as WebP if not; one that moves (3, T, H, W) as a WebP that
    goes round and round."""
    if rgb.ndim == 4:
        return moving(rgb, caption, sound) if rgb.shape[1] > 1 else picture(rgb[:, 0], caption, sound)
    image = to_image(rgb)
    zoom = min(LARGE / image.height, WIDE / image.width)
    pixelated = image.height <= SMALL and zoom >= 1
    if zoom < 1:
        size = (max(1, round(image.width * zoom)), max(1, round(image.height * zoom)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    kind, options = ("png", {"optimize": True}) if pixelated else ("webp", {"quality": 82})
    return Picture(uri(image, kind, **options), caption, image.width / image.height, pixelated, sound=sound)


def moving(rgb: Tensor, caption: str, sound: str = "") -> Picture:
    """Frames (3, T, H, W), with the middle one for who wants nothing to move. Small ones are enlarged by a whole
    factor: WebP halves the resolution of colours, and thin outlines would suffer."""
    height, width = rgb.shape[2:]
    if height <= MOVING:
        size, way = (width * (MOVING // height), height * (MOVING // height)), Image.Resampling.NEAREST
    else:
        size, way = (max(1, round(width * MOVING / height)), MOVING), Image.Resampling.LANCZOS
    images = [to_image(frame).resize(size, way) for frame in few(rgb, FRAMES).unbind(1)]
    pace = round(1000 * SECONDS / len(images))
    whole = uri(images[0], "webp", quality=65, save_all=True, append_images=images[1:], duration=pace, loop=0)
    still = uri(images[len(images) // 2], "webp", quality=65)
    return Picture(whole, caption, width / height, pixelated=False, still=still, sound=sound)


def uri(image: Image.Image, kind: str, **options: Any) -> str:
    """The file as a data URI."""
    file = BytesIO()
    image.save(file, kind, **options)
    return data_uri(f"image/{kind}", file)


def player(x: Tensor, rate: int) -> str:
    """A waveform (C, samples) for a browser: its first seconds, mixed, as Opus in WebM, as a data URI."""
    file = BytesIO()
    mixed = x[:, : HEARD * rate].mean(0, keepdim=True)
    encode(file, mixed, rate, "libopus", kind="webm", coded_rate=OPUS_RATES[-1], bit_rate=BITS)
    return data_uri("audio/webm", file)


def data_uri(kind: str, file: BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
