"""Look into a run: python -m jepa.explore run=RUN_DIR [key=value ...]     (pip install jepa[explore])

A page on this machine only (127.0.0.1): click a patch of a sample to see what it attends to, for each layer and head of
the encoder, and which patches of other samples are nearest to it.

Keys:
    run=DIR           the run to look at
    samples=256       of its data
    seed=0            which samples
    port=N            of the page; by default the first that is free from 7860 on
    device=cpu        or cuda
    trust=[package]   packages of your own parts that the run's recipe names
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from functools import lru_cache
from math import isqrt, prod
from typing import Any

import torch
from jinja2 import Environment
from PIL import Image
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from jepa.build import RecipeError, build
from jepa.checkpoint import CheckpointError
from jepa.command_line import parse
from jepa.data.base import DataError
from jepa.data.batches import collate
from jepa.loading import Pretrained
from jepa.metrics import MetricsError
from jepa.pictures import enlarge, frame_width, heat, outline, sounds_of, strip, to_image, to_rgb, upright
from jepa.probes.attention_maps import attention_layers, attention_weights
from jepa.probes.neighbours import centred, nearest
from jepa.report.blocks import Picture, picture
from jepa.report.source import MOST_TOKENS, Settings, draw, encode, open_run, shown
from jepa.types import View

HOST = "127.0.0.1"
TALL, WIDE = 384, 1024  # pixels of the picture to click on
NEIGHBOURS = 12
INTRODUCTION = """## What does a patch attend to?
Click a patch. Bright is much attention *from* that patch; each map runs from its own least to its own largest value.
The number below says over how many patches the attention is spread: all of them if it is even."""
FIGURES = """<h4>{{ title }}</h4><div style="display: flex; flex-wrap: wrap; gap: 8px">
{% for p in pictures %}<figure style="margin: 0; width: min(100%, {{ 116 * p.ratio }}px)">
<img src="{{ p.source }}" alt="{{ p.caption }}" style="width: 100%{{ "; image-rendering: pixelated" if p.pixelated }}">
<figcaption style="font-size: .75rem">{{ p.caption }}</figcaption></figure>{% endfor %}</div>"""


class ExploreSettings(Settings):
    """Of the explorer: also its port."""

    samples: int = Field(256, ge=16)
    port: int | None = Field(None, ge=1, le=65535)


class Explorer:
    """What the page shows, without the page. A cell is a position of the grid, row-major; layers count from 0.

    Args:
        pretrained: a trained model.
        x: (n, C, *size) samples as pictures show them.
        names: n of them.
        spectrograms: whether they are (time, frequency).

    Attributes:
        encoder: the one that learned, which is the target encoder unless that is a teacher.
        grid: of its tokens.
        layers: its self-attention layers.
    """

    def __init__(self, pretrained: Pretrained, x: Tensor, names: Sequence[str], *, spectrograms: bool = False) -> None:
        self.pretrained, self.encoder = pretrained, pretrained.encoder()
        self.grid = self.encoder.grid(x.shape[2:])
        keep = max(2, MOST_TOKENS // prod(self.grid))
        self.x, self.names = x[:keep], list(names[:keep])
        self.layers = len(attention_layers(self.encoder))
        with tqdm(total=len(self.x), desc="embeddings", unit="sample", dynamic_ncols=True) as bar:
            tokens, _ = encode(pretrained, self.x, keep, bar.update, [slice(None)])
        self.content, _ = centred(tokens)
        self.laid = upright if spectrograms else lambda picture: picture
        self.rgb = self.laid(to_rgb(self.x))
        self.cells = self._large(torch.arange(prod(self.grid)).view(self.grid))  # ([T,] H, W)
        count = self.rgb.shape[2] if self.rgb.ndim == 5 else 1
        self.rows = next(rows for rows in range(isqrt(count), 0, -1) if count % rows == 0)  # of frames, to click on
        self.places = strip(self.cells[None], self.rows)[0]
        height, width = self.places.shape
        self.zoom = max(1, round(min(TALL / height, WIDE / width)))
        self._weights = lru_cache(maxsize=4)(self._attention)  # of few samples: all layers of a large one are heavy

    def picture(self, sample: int, cell: int) -> Image.Image:
        """The sample with a frame around the cell, enlarged by `zoom`; of a clip all frames, in rows."""
        image = to_image(strip(self._framed(sample, cell), self.rows))
        return image.resize((image.width * self.zoom, image.height * self.zoom), Image.Resampling.NEAREST)

    def cell_at(self, x: int, y: int) -> int:
        """The cell at a pixel of `picture`."""
        return int(self.places[y // self.zoom, x // self.zoom])

    def place(self, sample: int, cell: int) -> str:
        """A cell in words."""
        at = torch.unravel_index(torch.tensor(cell), self.grid)
        position = ", ".join(str(int(i) + 1) for i in at)
        return f"Patch ({position}) of {' × '.join(map(str, self.grid))} in {self.names[sample]}"

    def attended(self, sample: int, cell: int, layer: int) -> Tensor:
        """(H, *grid) what the cell attends to in a layer, for each head; each map sums to 1."""
        return self._weights(sample)[layer][:, cell].unflatten(-1, self.grid)

    def heads(self, sample: int, cell: int, layer: int) -> list[Picture]:
        """Maps of each head, with the number of patches that it is spread over."""
        maps = self.attended(sample, cell, layer)
        return [self._map(sample, m, f"head {i}") for i, m in enumerate(maps, start=1)]

    def depth(self, sample: int, cell: int) -> list[Picture]:
        """Maps of each layer, the mean of its heads."""
        maps = [self.attended(sample, cell, layer).mean(0) for layer in range(self.layers)]
        return [self._map(sample, m, f"layer {i}") for i, m in enumerate(maps, start=1)]

    def neighbours(self, sample: int, cell: int) -> list[Picture]:
        """The patches of other samples whose embeddings are nearest, less the mean of each position."""
        bank_sample = torch.arange(len(self.content)).repeat_interleave(self.content.shape[1])
        wanted, own = self.content[sample, cell][None], torch.tensor([sample])
        k = min(NEIGHBOURS, len(bank_sample) - self.content.shape[1])
        cosine, rows = nearest(self.content.flatten(0, 1), wanted, k, bank_sample=bank_sample, sample=own)
        found = []
        for c, row in zip(cosine[0].tolist(), rows[0].tolist(), strict=True):
            other, there = divmod(row, self.content.shape[1])
            found.append(picture(self._framed(other, there), f"{c:.2f}"))
        return found

    def _attention(self, sample: int) -> list[Tensor]:
        """(H, L, L) for each layer."""
        device = next(self.encoder.parameters()).device
        x = self.pretrained.normalize(self.x[sample : sample + 1].to(device))
        return [w[0].cpu() for w in attention_weights(self.encoder, View(x), range(self.layers))]

    def _framed(self, sample: int, cell: int) -> Tensor:
        return outline(self.rgb[sample], self.cells == cell, frame_width(self.rgb.shape[-2:]))

    def _large(self, values: Tensor) -> Tensor:
        """Values on the grid over the pixels of a picture."""
        return self.laid(enlarge(values, self.x.shape[2:]))

    def _map(self, sample: int, values: Tensor, title: str) -> Picture:
        spread = float(torch.exp(-(values * values.clamp_min(1e-12).log()).sum()))  # perplexity of one row
        shown = heat(self.rgb[sample], self._large(values))
        return picture(shown, f"{title}: {spread:.1f} patches")


def figures(title: str, pictures: Sequence[Picture]) -> str:
    """HTML of pictures side by side."""
    return Environment(autoescape=True).from_string(FIGURES).render(title=title, pictures=pictures)


def explorer(settings: ExploreSettings) -> Explorer:
    """The explorer of a run.

    Raises:
        RecipeError, CheckpointError, DataError, MetricsError: as for the report; or the encoder has no attention, or
            joins modalities.
    """
    run = open_run(settings)
    encoder = run.pretrained.encoder()
    if not attention_layers(encoder):
        raise RecipeError(f"{settings.run}: {type(encoder).__name__} has no self-attention")
    samples, _ = draw(run, settings)
    x = collate(samples, [], []).target.x
    if not isinstance(x, Tensor):
        raise RecipeError(f"{settings.run} joins {', '.join(x)}: the explorer shows models of one modality")
    node = run.recipe["data"]["batch_transform"]
    x = shown(run, x)
    assert isinstance(x, Tensor)
    spectrograms = x.ndim == 4 and bool(sounds_of(build(node, "data.batch_transform", trust=settings.trust)))
    return Explorer(run.pretrained, x, [sample.name for sample in samples], spectrograms=spectrograms)


def build_page(found: Explorer) -> Any:
    """The page, as Gradio blocks that are not launched yet.

    Raises:
        RecipeError: Gradio is not installed.
    """
    gr = _gradio()

    def heads(sample: int, layer: float, cell: int) -> str:
        return figures(f"Heads of layer {layer:.0f}", found.heads(sample, cell, int(layer) - 1))

    def show(sample: int, layer: float, cell: int) -> list[Any]:
        return [
            found.picture(sample, cell),
            found.place(sample, cell),
            heads(sample, layer, cell),
            figures("All layers, mean over heads", found.depth(sample, cell)),
            figures("Nearest patches of other samples", found.neighbours(sample, cell)),
        ]

    def click(sample: int, layer: float, event: Any) -> list[Any]:
        cell = found.cell_at(*event.index)
        return [cell, *show(sample, layer, cell)]

    click.__annotations__["event"] = gr.SelectData  # by this Gradio knows to hand it over

    with gr.Blocks(title="jepa explorer", analytics_enabled=False) as page:
        cell = gr.State(prod(found.grid) // 2)
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                sample = gr.Dropdown([(name, i) for i, name in enumerate(found.names)], value=0, label="sample")
                layer = gr.Slider(1, found.layers, value=found.layers, step=1, label="layer")
                shown = [gr.Image(interactive=False, show_label=False, buttons=[], elem_id="picture")]
                shown += [gr.Markdown(elem_id="where")]
            with gr.Column(scale=2, min_width=300):
                shown += [gr.HTML(elem_id=name) for name in ("heads", "depth", "near")]
        chosen = [sample, layer, cell]
        shown[0].select(click, [sample, layer], [cell, *shown])
        sample.change(show, chosen, shown)
        layer.change(heads, chosen, shown[2])
        page.load(show, chosen, shown)
    return page


def launch(page: Any, port: int | None, *, block: bool = True) -> str:
    """Serve the page on the loopback interface; returns its address at once unless `block`.

    Raises:
        RecipeError: the port is taken.
    """
    gr = _gradio()
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])  # no downloads
    try:
        _, address, _ = page.launch(
            server_name=HOST, server_port=port, share=False, quiet=True, prevent_thread_lock=True, theme=theme
        )
    except OSError as error:
        raise RecipeError(f"port={port}: {error}") from error
    if block:
        print(f"{address}   (Ctrl-C ends it)")
        page.block_thread()
    return address


def _gradio() -> Any:
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise RecipeError("the explorer needs Gradio: pip install jepa[explore]") from error
    return gradio


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if any(argument in ("-h", "--help") for argument in arguments):
        print(__doc__)
        return 0
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        settings = parse(ExploreSettings, arguments, "jepa.explore")
        _gradio()
        launch(build_page(explorer(settings)), settings.port)
    except (RecipeError, CheckpointError, DataError, MetricsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
