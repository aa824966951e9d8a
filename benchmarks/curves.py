"""Curves of several runs in one picture, for docs/results.md.

    python -m benchmarks.curves OUT.svg NAME=RUN_DIR [NAME=RUN_DIR ...] [show=loss,target_rank,position_share]

Each number of `show` (a key of metrics.jsonl) gets a chart, with a line for each run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from jepa.metrics import read_metrics
from jepa.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, line_chart

SHOWN = "loss,target_rank,position_share"
TITLE, LEGEND = 20, 24  # heights of the lines above and below the charts
COLOURS = ("#0969da", "#cf222e", "#1a7f37", "#9a6700", "#8250df")
STYLE = """
text { font: 10px sans-serif; fill: #57606a } .title { font-size: 12px; fill: #24292f }
path { fill: none; stroke-width: 1.5 } .axis { stroke: #d0d7de; stroke-width: .5 }
@media (prefers-color-scheme: dark) { text { fill: #8b949e } .title { fill: #c9d1d9 } .axis { stroke: #30363d } }
"""


def svg(charts: Sequence[Chart], names: Sequence[str]) -> str:
    """Charts of the same series side by side, and one legend."""
    body = "".join(
        f'<g transform="translate({number * WIDTH} {TITLE})">{"".join(drawn(chart))}</g>'
        for number, chart in enumerate(charts)
    )
    width, height = len(charts) * WIDTH, TITLE + HEIGHT + LEGEND
    wide = (width - LEFT) / len(names)
    for number, name in enumerate(names):
        x, y = LEFT + number * wide, height - 8
        body += f'<path d="M{x:.0f} {y - 3}h16" stroke="{COLOURS[number]}"/>'
        body += f'<text x="{x + 22:.0f}" y="{y}">{escape(name)}</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
        f"<style>{STYLE}</style>{body}</svg>\n"
    )


def drawn(chart: Chart) -> Iterator[str]:
    """The elements of one chart."""
    yield f'<text class="title" x="{LEFT}" y="-6">{escape(chart.title)}</text>'
    for tick in chart.y_ticks:
        yield f'<path class="axis" d="M{LEFT} {tick.y:.1f}H{WIDTH - RIGHT}"/>'
        yield f'<text x="{tick.x:.1f}" y="{tick.y + 3:.1f}" text-anchor="end">{tick.text}</text>'
    for tick in chart.x_ticks:
        yield f'<text x="{tick.x:.1f}" y="{tick.y:.1f}" text-anchor="middle">{tick.text}</text>'
    for line, colour in zip(chart.lines, COLOURS, strict=False):
        yield f'<path d="{line.path}" stroke="{colour}"/>'
    yield f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}"/>'


def main(arguments: Sequence[str]) -> None:
    given = dict(argument.partition("=")[::2] for argument in arguments[1:])
    shown = given.pop("show", SHOWN).split(",")
    if not given or "=" in arguments[0] or len(given) > len(COLOURS):
        sys.exit(__doc__)
    rows = {name: read_metrics(Path(run_dir) / "metrics.jsonl") for name, run_dir in given.items()}
    charts = []
    for key in shown:
        series = {
            name: [(row["samples"], row[key]) for row in found if row.get(key) is not None]
            for name, found in rows.items()
        }
        charts.append(line_chart(f"{key.replace('_', ' ')}, over samples", series))
    Path(arguments[0]).write_text(svg(charts, list(given)))


if __name__ == "__main__":
    main(sys.argv[1:])
