"""The documentation's code blocks run as printed, from a folder outside the package."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from jepa import run

DOCS = Path(__file__).parent.parent / "docs"
SMALL = ["train.batch_size=4", "encoder.depth=1", "predictor.depth=1", "data.workers=0"]


def blocks(page: str) -> list[tuple[str, str]]:
    return re.findall(r"```(\w+)\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_accelerate: None) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in ("stripes", "mixer", "scans"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return tmp_path


def test_extending_page_runs_as_printed(workshop: Path) -> None:
    commands = []
    for language, text in blocks("extending.md"):
        if language in ("python", "yaml"):
            name = re.match(r"# (\S+)", text)
            assert name, f"a {language} block must begin with its file name"
            (workshop / name[1]).write_text(text)
        elif language == "bash":
            commands += [line for line in text.splitlines() if line]
    assert len(commands) == 4
    for command in commands:
        python, flag, module, *arguments = shlex.split(command)
        assert (python, flag, module) == ("python", "-m", "jepa.run")
        small = [key for key in SMALL if not (key.startswith("encoder") and "encoder._target_" in command)]
        assert run.main([*arguments, *small]) == 0, command
        run_dir = next(a.removeprefix("run_dir=") for a in arguments if a.startswith("run_dir="))
        assert (workshop / run_dir / "metrics.jsonl").read_text().count("\n") == 2
