"""One page about a run: python -m jepa.report run=RUN_DIR [key=value ...]

Keys:
    run=DIR           the run to look at
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

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from jepa.build import RecipeError, refuse_unknown
from jepa.checkpoint import CheckpointError
from jepa.data.base import DataError
from jepa.metrics import MetricsError
from jepa.report.page import write_report
from jepa.report.source import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if any(argument in ("-h", "--help") for argument in arguments):
        print(__doc__)
        return 0
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        path = write_report(parse(arguments))
    except (RecipeError, CheckpointError, DataError, MetricsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(path)
    return 0


def parse(arguments: Sequence[str]) -> Settings:
    """The settings of a command line.

    Raises:
        RecipeError: a key or value that does not exist, or no run.
    """
    wrong = next((a for a in arguments if "=" not in a), None)
    if wrong is not None:
        raise RecipeError(f"{wrong!r} is not of the form key=value")
    try:
        given = OmegaConf.to_container(OmegaConf.from_dotlist(list(arguments)))
    except OmegaConfBaseException as error:
        raise RecipeError(str(error).splitlines()[0]) from error
    assert isinstance(given, dict)
    refuse_unknown([str(name) for name in given], Settings.model_fields, "")
    if "run" not in given:
        raise RecipeError("name a run: python -m jepa.report run=RUN_DIR")
    try:
        return Settings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(f"{'.'.join(map(str, first['loc']))}={first.get('input')!r}: {first['msg']}") from error


if __name__ == "__main__":
    sys.exit(main())
