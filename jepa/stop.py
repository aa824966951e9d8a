"""Why a run should end before its plan does."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)

ECHO_SECONDS = 3.0


class Stop:
    """What this process was told: nothing, the name of a signal, or what a probe says.

    Attributes:
        reason: to write a checkpoint and end at the next step; None: go on.
    """

    def __init__(self) -> None:
        self.reason: str | None = None

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Inside, SIGTERM and SIGINT ask for a checkpoint and an end at the next step; a second one ends at once.

        A launcher passes on what the terminal has sent to every process already: that is not a second one.
        """
        asked = 0.0

        def ask(number: int, frame: FrameType | None) -> None:
            nonlocal asked
            if self.reason:
                if time.monotonic() - asked > ECHO_SECONDS:
                    raise KeyboardInterrupt
                return
            self.reason, asked = signal.Signals(number).name, time.monotonic()
            log.warning("%s: writing a checkpoint, then stopping", self.reason)

        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
