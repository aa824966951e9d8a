"""Imports point only downward, the parts never import each other, and only the top floor knows Hydra."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "jepa"

FLOORS: list[set[str]] = [
    {"types", "interfaces", "schedules", "settings", "seeding"},
    {"nn"},
    {"maskers", "encoders", "predictors", "targets", "losses", "data"},
    {"model", "optim", "checkpoint", "build", "adapt", "plan", "stop"},
    {"trainer", "probes", "metrics", "pictures"},
    {
        "run",
        "evaluate",
        "report",
        "explore",
        "card",
        "convert",
        "bench",
        "recipe",
        "command_line",
        "init_from",
        "loading",
        "other_data",
        "assemble",
        "dry_run",
        "probing",
        "__init__",
    },
]
PARTS, TOP = 2, len(FLOORS) - 1
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
TOP_ONLY = {"hydra", "omegaconf"}


def imported(source: str, module: str) -> list[tuple[int, str]]:
    """(line, absolute dotted name) of everything that `module` imports, inside functions too."""
    found = []
    package = module if module.endswith("__init__") else module.rpartition(".")[0]
    package = package.removesuffix(".__init__")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base += node.module.split(".") if node.module else []
            found += [(node.lineno, ".".join([*base, alias.name])) for alias in node.names]
    return found


def complaints(source: str, module: str) -> list[str]:
    """What is wrong with the imports of `module`, e.g. "jepa.nn.blocks"."""
    room = module.split(".")[1]
    if room not in FLOOR_OF:
        return [f"jepa/{room} is new: add it to the right floor of FLOORS in tests/test_imports.py"]
    floor, wrong = FLOOR_OF[room], []
    for line, name in imported(source, module):
        top, _, rest = name.partition(".")
        if top in TOP_ONLY and floor < TOP:
            wrong.append(f"{module}:{line} imports {top}: only floor {TOP} may")
        if top != "jepa":
            continue
        other = rest.split(".")[0] or "__init__"
        if other not in FLOOR_OF and not (PACKAGE / other).exists() and not (PACKAGE / f"{other}.py").exists():
            other = "__init__"  # a name that jepa itself offers
        if other not in FLOOR_OF:
            wrong.append(f"{module}:{line} imports jepa.{other}, which no floor of tests/test_imports.py lists")
        elif FLOOR_OF[other] > floor:
            wrong.append(f"{module}:{line} (floor {floor}) imports jepa.{other} (floor {FLOOR_OF[other]}) above it")
        elif FLOOR_OF[other] == floor == PARTS and other != room:
            wrong.append(f"{module}:{line} imports jepa.{other}: the parts of floor {PARTS} know nothing of each other")
    return wrong


def module_name(path: Path) -> str:
    return ".".join(["jepa", *path.relative_to(PACKAGE).with_suffix("").parts])


def test_imports_point_downward() -> None:
    paths = sorted(PACKAGE.rglob("*.py"))
    assert len(paths) > 10
    assert [wrong for path in paths for wrong in complaints(path.read_text(), module_name(path))] == []


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        ("jepa.types", "from jepa.nn.blocks import Block", "floor 0) imports jepa.nn"),
        ("jepa.nn.blocks", "def f():\n    import jepa.model", "jepa.nn.blocks:2 (floor 1) imports jepa.model"),
        ("jepa.nn.blocks", "from .. import trainer", "imports jepa.trainer (floor 4)"),
        ("jepa.nn.__init__", "from ..optim import adamw", "imports jepa.optim (floor 3)"),
        ("jepa.encoders.vit", "from jepa import maskers", "imports jepa.maskers: the parts"),
        ("jepa.encoders.vit", "from ..predictors.vit import ViTPredictor", "imports jepa.predictors: the parts"),
        ("jepa.model", "import jepa", "imports jepa.__init__ (floor 5)"),
        ("jepa.model", "from jepa import load", "imports jepa.__init__ (floor 5)"),
        ("jepa.trainer", "from omegaconf import OmegaConf", "imports omegaconf: only floor 5"),
        ("jepa.probes.knn", "import hydra.utils", "imports hydra: only floor 5"),
        ("jepa.gadgets.new", "", "jepa/gadgets is new: add it to the right floor of FLOORS in tests/test_imports.py"),
    ],
)
def test_the_check_finds(module: str, source: str, message: str) -> None:
    wrong = complaints(source, module)
    assert len(wrong) == 1
    assert message in wrong[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("jepa.run", "import hydra\nfrom jepa.trainer import train"),
        ("jepa.model", "from jepa.interfaces import Encoder\nfrom jepa.optim import adamw\nimport torch"),
        ("jepa.encoders.__init__", "from jepa.encoders.vit import ViT"),
        ("jepa.encoders.vit", "from .convnet import ConvNet\nfrom jepa.nn.blocks import Transformer"),
    ],
)
def test_the_check_allows(module: str, source: str) -> None:
    assert complaints(source, module) == []
