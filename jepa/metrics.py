"""`metrics.jsonl`: one JSON object a line, floats in full precision; and the clock of a run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class MetricsError(ValueError):
    """A metrics file holds something else."""


class MetricsFile:
    """Appends rows; after a crash, forgets those that the resumed run will write again.

    Args:
        path: the file.
        write: False on processes that only look on.
    """

    def __init__(self, path: Path, *, write: bool = True) -> None:
        self.path, self.write = path, write

    def append(self, row: Mapping[str, Any]) -> None:
        if self.write:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")

    def truncate(self, step: int) -> None:
        """Keep the rows up to `step`: what came after it, or was cut off by a crash, is written again."""
        if self.write and self.path.exists():
            draft = self.path.with_suffix(".draft")
            draft.write_text("".join(json.dumps(row) + "\n" for row in read_metrics(self.path) if row["step"] <= step))
            os.replace(draft, self.path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics file; a last line that a crash cut off is left out.

    Raises:
        MetricsError: another line cannot be read.
    """
    rows: list[dict[str, Any]] = []
    lines = path.read_text(errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise MetricsError(f"{path}, line {number} cannot be read: {error}") from error
    return rows


class Clock:
    """Samples per second, and the share of time spent waiting for data, since the last lap."""

    def __init__(self, step: int) -> None:
        self._step, self._start, self._waited = step, time.perf_counter(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def lap(self, step: int, batch_size: int) -> tuple[float, float]:
        now = time.perf_counter()
        seconds = now - self._start
        rate, share = (step - self._step) * batch_size / seconds, self._waited / seconds
        self._step, self._start, self._waited = step, now, 0.0
        return rate, share
