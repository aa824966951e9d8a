"""One thread for each test process: the models are tiny, and pytest-xdist has a process for each core.

Runs train on the CPU, where they are compared bit for bit, also on machines with a GPU.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from jepa import run

torch.set_num_threads(1)
os.environ["ACCELERATE_USE_CPU"] = "true"  # for the commands that tests start too


@dataclass(frozen=True)
class Ran:
    """What a command left behind: its exit status, standard output, standard error and log."""

    status: int
    out: str
    err: str
    log: str


def forget_accelerate() -> None:
    """Accelerate has one state per process; a process that runs several commands must reset it between them."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    forget_accelerate()
    yield
    forget_accelerate()


@pytest.fixture
def jepa_run(
    fresh_accelerate: None, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Callable[..., Ran]:
    """`python -m jepa.run` with these arguments, in this process."""

    def command(*arguments: str) -> Ran:
        forget_accelerate()
        caplog.clear()
        capsys.readouterr()
        with caplog.at_level(logging.INFO):
            status = run.main(list(arguments))
        out, err = capsys.readouterr()
        return Ran(status, out, err, caplog.text)

    return command
