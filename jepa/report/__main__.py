"""One page about a run: python -m jepa.report run=RUN_DIR [key=value ...]

Keys:
    run=DIR           the run to look at
    data=NAME         data of another group (data.root=DIR, ... as in recipes); by default the run's own
    samples=512       of its data, for neighbours and the map
    seed=0            which samples and masks
    output=FILE       where the page goes; by default RUN_DIR/report.html
    device=cpu        or cuda
    trust=[package]   packages of your own parts that the run's recipe names

The page is one file that needs no network: what was run, curves and the verdict on them, masks, what the predictor
thinks is there, features, attention, neighbours, a map of embeddings, the probe table and throughput.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from jepa.build import RecipeError
from jepa.checkpoint import CheckpointError
from jepa.command_line import parse
from jepa.data.base import DataError
from jepa.metrics import MetricsError
from jepa.other_data import split
from jepa.report.page import ReportSettings, write_report


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if any(argument in ("-h", "--help") for argument in arguments):
        print(__doc__)
        return 0
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        arguments, data = split(arguments)
        path = write_report(parse(ReportSettings, arguments, "jepa.report"), data)
    except (RecipeError, CheckpointError, DataError, MetricsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
