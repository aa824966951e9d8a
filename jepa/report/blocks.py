"""What a page is made of. Sections hold these; the template draws them and knows nothing else."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

from PIL import Image
from torch import Tensor

from jepa.pictures import to_image
from jepa.report.charts import Chart

SMALL, LARGE = 96, 256  # heights: below, pixels are kept and shown as such; above, pictures are made smaller


@dataclass(frozen=True)
class Picture:
    """A picture with a line below it.

    Attributes:
        source: a data URI.
        caption: the line.
        ratio: width over height.
        pixelated: whether it is so small that its pixels are shown as squares.
    """

    source: str
    caption: str
    ratio: float
    pixelated: bool


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


def picture(rgb: Tensor, caption: str = "") -> Picture:
    """A picture (3, H, W) in [0, 1], as PNG if small and as WebP if not."""
    image = to_image(rgb)
    pixelated = image.height <= SMALL
    if image.height > LARGE:
        image = image.resize((round(image.width * LARGE / image.height), LARGE), Image.Resampling.LANCZOS)
    file, kind = BytesIO(), "png" if pixelated else "webp"
    image.save(file, kind, **({"optimize": True} if pixelated else {"quality": 82}))
    source = f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
    return Picture(source, caption, image.width / image.height, pixelated)
