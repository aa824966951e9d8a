"""The page: every section in order, into the template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.resources import files
from math import ceil
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from tqdm import tqdm

from jepa.build import RecipeError
from jepa.report.answers import answers
from jepa.report.blocks import Section
from jepa.report.curves import panel, throughput, training, verdict
from jepa.report.gallery import attention, embedding_map, features, masks, neighbours
from jepa.report.source import ENCODED_AT_ONCE, Material, Run, Settings, gather, open_run
from jepa.report.summary import facts, head, probes

SECTIONS: tuple[Callable[[Run, Material], Section], ...] = (
    facts,
    training,
    panel,
    probes,
    masks,
    answers,
    features,
    attention,
    neighbours,
    embedding_map,
    throughput,
)
PICTURES = (masks, answers, features, attention, neighbours, embedding_map)  # of each modality


class ReportSettings(Settings):
    """Of the report: also where it goes; by default into the run directory."""

    output: str | None = None


def write_report(settings: ReportSettings, data: Sequence[str] = ()) -> Path:
    """Make the page and write it; returns where.

    Args:
        data: overrides, where the page is about other data than the run's.

    Raises:
        RecipeError, CheckpointError, DataError, MetricsError: see `open_run` and `gather`.
        OSError: it cannot be written.
    """
    run = open_run(settings, data)
    path = Path(settings.output).expanduser() if settings.output else run.path / "report.html"
    if not path.parent.is_dir():
        raise RecipeError(f"output={path}: there is no folder {path.parent}")
    samples = min(settings.samples, len(run.dataset))
    with tqdm(total=ceil(samples / ENCODED_AT_ONCE) + len(SECTIONS), unit="part", dynamic_ncols=True) as bar:
        bar.set_description("embeddings")
        materials = gather(run, settings, lambda _: bar.update())
        sections = []
        for make in SECTIONS:
            bar.set_description(make.__name__.replace("_", " "))
            if make in PICTURES:
                sections += [of_modality(make(run, material), material) for material in materials]
            else:
                sections.append(make(run, materials[0]))
            bar.update()
    path.write_text(render(run, materials[0], sections))
    return path


def of_modality(section: Section, material: Material) -> Section:
    """A section named after the modality that it shows, where there are several."""
    name = material.modality
    return replace(section, id=f"{section.id}_{name}", title=f"{section.title}: {name}") if name else section


def render(run: Run, material: Material, sections: list[Section]) -> str:
    """The page as HTML. Nothing in it is loaded from elsewhere."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("jepa.report") / "page.html").read_text())
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return template.render(head=head(run, material), verdict=verdict(run), sections=sections, made=made)
