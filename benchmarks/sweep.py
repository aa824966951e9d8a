"""Train and probe several settings with several seeds, side by side.

    python -m benchmarks.sweep FILE [seeds=0,1,2] [arms=NAME,NAME] [out=DIR] [key=value ...]

FILE is YAML:

    recipe: ijepa_tiny                what every arm starts from
    overrides: [train.steps=500]      of every arm
    evaluate: [limit=2000]            of `python -m jepa.evaluate`
    evaluate_arms: {other: [limit=9]} of that of single arms, besides
    trust: [benchmarks]               packages of parts that the arms name
    arms: {shipped: [], other: ["~regularizers.vicreg"]}

Further key=value go to every arm. Runs lie in DIR/ARM/seed_N (runs/sweeps/FILE by default). The same command goes on
where it was interrupted: what is trained and probed already is not done again. At the end, and after every run, the
table DIR/table.md holds means and spreads over the seeds of each arm, and of the baselines that need no training.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

BASELINES = ("random_init", "pixels", "chance")
Scores = dict[tuple[str, str, str], float]  # by task, probe and metric


@dataclass(frozen=True)
class Sweep:
    """A file of arms, and what the command line adds to it."""

    recipe: str
    arms: Mapping[str, Sequence[str]]
    overrides: Sequence[str] = ()
    evaluate: Sequence[str] = ()
    evaluate_arms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    trust: Sequence[str] = ()
    seeds: Sequence[int] = (0, 1, 2)
    out: Path = field(default=Path("runs/sweeps"))

    def run_dir(self, arm: str, seed: int) -> Path:
        return self.out / arm.replace(" ", "_") / f"seed_{seed}"

    def train_and_probe(self, arm: str, seed: int) -> None:
        """One run, unless it is there already."""
        run_dir = self.run_dir(arm, seed)
        probed = run_dir / "probed"  # an evaluation that was interrupted leaves what it has
        if probed.exists():
            return
        common = [*self.overrides, *self.arms[arm]]
        command("jepa.run", f"recipe={self.recipe}", f"run_dir={run_dir}", f"seed={seed}", *common)
        trust = [f"trust=[{','.join(self.trust)}]"] if self.trust else []
        command("jepa.evaluate", f"run={run_dir}", f"seeds=[{seed}]", *trust, *self.probing(arm))
        probed.touch()

    def probing(self, arm: str) -> list[str]:
        """Arguments of an arm's evaluation; of a key that is given twice the last counts."""
        return [*self.evaluate, *self.evaluate_arms.get(arm, ())]


def command(module: str, *arguments: str) -> None:
    """Run a command of the package in a process of its own; its output is shown."""
    print(f"== python -m {module} {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


def read(arguments: Sequence[str]) -> Sweep:
    """The sweep of a command line."""
    if not arguments or "=" in arguments[0]:
        sys.exit(__doc__)
    path = Path(arguments[0])
    given: dict[str, Any] = yaml.safe_load(path.read_text())
    own = dict(argument.partition("=")[::2] for argument in arguments[1:])
    chosen = own.pop("arms", None)
    unknown = set(chosen.split(",")) - set(given["arms"]) if chosen else set()
    if unknown:
        sys.exit(f"{path} has no arms {sorted(unknown)}; it has {list(given['arms'])}")
    stray = sorted(set(given.get("evaluate_arms", ())) - set(given["arms"]))
    if stray:
        sys.exit(f"{path}: evaluate_arms names {stray}; the arms are {list(given['arms'])}")
    arms = {name: v for name, v in given["arms"].items() if chosen is None or name in chosen.split(",")}
    seeds = [int(seed) for seed in own.pop("seeds", "0,1,2").split(",")]
    out = Path(own.pop("out", f"runs/sweeps/{path.stem}"))
    more = [*given.pop("overrides", []), *(f"{key}={value}" for key, value in own.items())]
    return Sweep(**{**given, "arms": arms, "overrides": more, "seeds": seeds, "out": out})


def scores(run_dir: Path, features: str) -> Scores:
    """Scores of one run's evaluation."""
    rows = json.loads((run_dir / "evaluation.json").read_text())
    return {(row["task"], row["probe"], row["metric"]): row["score"] for row in rows if row["features"] == features}


def last_look(run_dir: Path) -> dict[str, Any]:
    """The last row of a run's metrics that the collapse panel contributed to; empty where it did not look."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return next((row for row in reversed(rows) if "target_rank" in row), {})


def cell(values: Sequence[float], digits: int = 3) -> str:
    """Mean and standard deviation."""
    if not values:
        return ""
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def table(sweep: Sweep) -> str:
    """Markdown: an arm or baseline in each row, a task in each column."""
    done = {arm: [d for s in sweep.seeds if ((d := sweep.run_dir(arm, s)) / "evaluation.json").exists()]
            for arm in sweep.arms}  # fmt: skip
    done = {arm: found for arm, found in done.items() if found}
    if not done:
        return "nothing is done yet"
    rows = {arm: [scores(run_dir, "model") for run_dir in found] for arm, found in done.items()}
    first = next(iter(done.values()))  # baselines depend on the architecture: those of the first arm
    rows |= {f"({name})": [scores(run_dir, name) for run_dir in first] for name in BASELINES}
    tasks = list(dict.fromkeys(task for found in rows.values() for each in found for task in each))
    metrics = Counter((task, probe) for task, probe, _ in tasks)
    named = (f"{t}, {p}{f', {m}' if metrics[t, p] > 1 else ''}" for t, p, m in tasks)
    head = ["", "seeds", *named, "rank of targets", "loss"]
    lines = [head, ["---"] * len(head)]
    for name, found in rows.items():
        looks = [last_look(run_dir) for run_dir in done.get(name, [])]
        lines.append(
            [
                name,
                str(len(found)),
                *(cell([each[task] for each in found if task in each]) for task in tasks),
                cell([look["target_rank"] for look in looks if look], 1),
                cell([look["loss"] for look in looks if look]),
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    sweep = read(sys.argv[1:])
    sweep.out.mkdir(parents=True, exist_ok=True)
    for seed in sweep.seeds:  # seed by seed: a table of all arms is there early
        for arm in sweep.arms:
            sweep.train_and_probe(arm, seed)
            (sweep.out / "table.md").write_text(table(sweep) + "\n")
    print(table(sweep))


if __name__ == "__main__":
    main()
