"""A wheel installed elsewhere works without a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_wheel_trains_outside_the_checkout(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, ROOT], check=True, timeout=120
    )
    (wheel,) = tmp_path.glob("jepa-*.whl")
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True, timeout=120)
    command = "recipe=ijepa_tiny data=shapes train.steps=5 data.workers=0 train.batch_size=4 encoder.depth=1"
    script = (
        f"import sys, jepa, jepa.run, jepa.report.__main__ as report; print(jepa.__file__); "
        f"sys.exit(jepa.run.main({command.split()}) or report.main(['run=runs/ijepa_tiny', 'samples=16']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site)), "the test ran the checkout, not the wheel"
    assert (elsewhere / "runs" / "ijepa_tiny" / "checkpoints" / "step_00000005").is_dir()
    assert (elsewhere / "runs" / "ijepa_tiny" / "report.html").is_file()
