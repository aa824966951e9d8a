"""Every shipped recipe fits the code; recipes of one's own, overrides and lengths."""

from __future__ import annotations

import re
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from omegaconf import OmegaConf

from jepa import build, dry_run
from jepa import recipe as recipes
from jepa.assemble import build_schedule
from jepa.command_line import available, recipes_dir
from jepa.settings import TrainSettings
from tests.tiny import TINY

GROUP_FILES = [*sorted(recipes_dir().glob("*/*.yaml")), *sorted(recipes_dir().glob("base*.yaml"))]
PUBLISHED_PARAMETERS = {
    "ijepa_vith14": "630,434,560",
    "ijepa_vith16_448": "630,664,960",
    "ijepa_vitl16": "303,098,880",
    "ijepa_vitb16": "85,646,592",
    "vjepa_vitl16": "303,885,312",
    "vjepa_vith16": "631,648,000",
    "vjepa_image": "303,885,312",
    "vjepa2_vitl16": "303,885,312",
    "vjepa2_vitg16": "1,012,173,952",
}
# Like vjepa_vitl16 or audio_jepa_vitb16 but for numbers, masks and rotary positions: tracing their arithmetic again
# would take up to half a minute for each.
LARGER_SIBLINGS = ("ajepa_vitb16", "vjepa_image", "vjepa_vith16", "vjepa2_")


@cache
def described(name: str) -> dict[str, str]:
    untraced = name.startswith(LARGER_SIBLINGS) or name.endswith("_cooldown")
    cost = patch.object(dry_run, "step_cost", lambda *_: dry_run.Cost(1e9, 1e9)) if untraced else nullcontext()
    with cost:
        text = dry_run.describe(recipes.load_recipe([f"recipe={name}", "dry_run=true"]))
    return {line[:22].strip(): line[22:] for line in text.splitlines()}


TRAINED = [name for name in available() if name.endswith("_tiny") and name not in ("ijepa_tiny", "saccade_tiny")]


@pytest.mark.parametrize("name", [name for name in available() if name not in TRAINED])  # by tests of their own
def test_every_recipe_has_a_dry_run_without_data(name: str) -> None:
    table = described(name)
    assert table["recipe"] == name
    assert table["encoder"].startswith(PUBLISHED_PARAMETERS.get(name, ""))
    assert table["predictor"].endswith("parameters")  # 0 of methods without one
    for row in ("grid", "task 1", "steps", "samples", "FLOPs per sample", "memory, fixed"):
        shown = [value for name, value in table.items() if name.startswith(row)]  # "task 1", or "task 1 at first"
        assert shown, row
        assert all(any(digit in value for digit in "123456789") for value in shown), row


def test_every_recipe_stands_in_the_readme_with_its_source() -> None:
    """A row names recipes in full, or several at once: vjepa2_..._cooldown."""
    text = (Path(__file__).parent.parent / "README.md").read_text().split("## Recipes")[1].split("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| `")]
    assert all(len(row) == 4 for row in rows)
    unnamed = [row[0] for row in rows if not re.search(r"[A-Z]\w+ (et al\.|& [A-Z]\w+) 20\d\d|LumenPallidium", row[3])]
    assert not unnamed
    named = [name.replace("...", r"\w+") for row in rows for cell in row for name in re.findall(r"`(\w[\w.]*)`", cell)]
    missing = [name for name in available() if not any(re.fullmatch(each, name) for each in named)]
    assert not missing


def test_dry_run_of_blocks_that_are_recomputed() -> None:
    def flops(*arguments: str) -> float:
        text = dry_run.describe(recipes.load_recipe(["recipe=ijepa_tiny", "dry_run=true", *arguments]))
        return float(text.split("FLOPs per sample")[1].split()[0])

    once = flops()
    assert once < flops("encoder.grad_checkpointing=true") < 1.35 * once
    assert flops("encoder.position=rope", "predictor.position=rope") == pytest.approx(once, rel=1e-3)


def test_dry_run_of_the_flagship() -> None:
    table = described("ijepa_vith14")
    assert table["target encoder"] == "630,434,560 parameters"
    assert table["predictor"].startswith("22,2")
    assert table["steps"] == "187,500 of 2,048 samples"
    assert table["samples"] == "384,000,000"


# size of a clip, batch, heads of encoder and predictor, and which of the schedules below
PUBLISHED_CLIPS = {
    "vjepa_vitl16": ([16, 224, 224], 3072, 16, 16, "vjepa"),
    "vjepa_vith16": ([16, 224, 224], 3072, 16, 16, "vjepa"),
    "vjepa_vith16_384": ([16, 384, 384], 2400, 16, 16, "vjepa"),
    "vjepa_image": ([2, 224, 224], 2048, 16, 16, "vjepa"),  # of which only the schedules are published
    "vjepa2_vitl16": ([16, 256, 256], 3072, 16, 12, "vjepa2"),
    "vjepa2_vith16": ([16, 256, 256], 3072, 16, 12, "vjepa2"),
    "vjepa2_vitg16": ([16, 256, 256], 3072, 22, 12, "vjepa2"),
    "vjepa2_vitl16_cooldown": ([64, 256, 256], 3072, 16, 12, "cooldown"),
    "vjepa2_vith16_cooldown": ([64, 256, 256], 3072, 16, 12, "cooldown"),
    "vjepa2_vitg16_cooldown": ([64, 256, 256], 3072, 22, 12, "cooldown"),
    "vjepa2_vitg16_384_cooldown": ([64, 384, 384], 3072, 22, 12, "cooldown"),
}
# steps; learning rate, weight decay and momentum of the target at some of them; norm of clipped gradients and from when
PUBLISHED_SCHEDULES = {
    "vjepa": (
        90_000,
        {1: 2.00035417e-4, 12_000: 6.25e-4, 45_000: 4.73203948e-4, 90_000: 7.50422244e-5},
        {1: 0.04, 90_000: 0.365623059},
        {1: 0.998, 90_000: 0.999599982},
        (10.0, 41 * 300),
    ),
    "vjepa2": (
        240_000,
        {1: 1.00035417e-4, 12_000: 5.25e-4, 90_000: 5.25e-4, 240_000: 5.25e-4},
        {1: 0.04, 240_000: 0.04},
        {1: 0.99925, 240_000: 0.99925},
        (None, 0),
    ),
    "cooldown": (
        12_000,
        {1: 5.24965067e-4, 6_000: 3.154e-4, 12_000: 1.058e-4},  # stretched to 125 %
        {1: 0.04, 12_000: 0.04},
        {1: 0.99925, 12_000: 0.99925},
        (None, 0),
    ),
}


@pytest.mark.parametrize("name", [name for name in available() if re.match("vjepa2?_(?!tiny)", name)])
def test_video_recipes_have_the_published_values(name: str) -> None:
    size, batch, heads, predictor_heads, kind = PUBLISHED_CLIPS[name]
    steps, lr, weight_decay, momentum, clipping = PUBLISHED_SCHEDULES[kind]
    stretched = ["optim.lr.total=125 %"] if kind == "cooldown" else []
    recipe = recipes.load_recipe([f"recipe={name}", "dry_run=true", *stretched])
    train, optim = recipe["train"], recipe["optim"]
    assert (recipe["data"]["size"], train["batch_size"], train["steps"]) == (size, batch, steps)
    assert (recipe["encoder"]["heads"], recipe["predictor"]["heads"]) == (heads, predictor_heads)
    assert recipe["encoder"]["patch_size"] == [2, 16, 16]
    dense = tuple(recipe["data"]["dataset"].get(way) for way in ("stride", "fps"))
    assert dense == ((None, None) if name == "vjepa_image" else (4, None) if kind == "vjepa" else (None, 4))
    assert (train["clip_norm"], train["clip_after"]) == clipping

    def at(key: str, node: dict[str, Any], wanted: dict[int, float]) -> dict[int, float]:
        schedule = build_schedule(node, key, steps=steps, batch_size=batch, dataset_size=None)
        return {step: schedule(step) for step in wanted}

    assert at("optim.lr", optim["lr"], lr) == pytest.approx(lr, rel=1e-8)
    assert at("optim.weight_decay", optim["weight_decay"], weight_decay) == pytest.approx(weight_decay, rel=1e-7)
    target = build.build(recipe["target"], "target")
    assert {step: target.momentum(step, steps) for step in momentum} == pytest.approx(momentum, rel=1e-8)
    if kind == "cooldown":
        paper = recipes.load_recipe([f"recipe={name}", "dry_run=true"])["optim"]["lr"]
        assert at("optim.lr", paper, {12_000: 1e-6})[12_000] == pytest.approx(1e-6)


@pytest.mark.parametrize("path", GROUP_FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_group_fits_its_signatures(path: Path) -> None:
    raw = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    nodes = list(recipes._nodes(raw))
    assert nodes
    for where, node in nodes:
        target = build.locate(node[build.TARGET], where, trust=())
        build.refuse_unknown([key for key in node if key != build.TARGET], build.parameters(target), where)
        hints = build.argument_types(target)
        for key, value in node.items():
            written_out = not recipes._holds_node(value) and "${" not in str(value) and key not in recipes.LENGTHS
            if key in hints and written_out:
                build.convert(value, hints[key], f"{where}.{key}")


def settled(*arguments: str) -> dict[str, Any]:
    return recipes.load_recipe([*TINY, *arguments])


def test_every_recipe_has_the_promised_keys() -> None:
    for name in available():
        recipe = recipes.load_recipe([f"recipe={name}", "dry_run=true"])
        assert {"seed", "run_dir", "dry_run"} <= recipe.keys()
        assert {"root", "workers"} <= recipe["data"].keys()
        assert {"batch_size", "precision", "compile", "log_every", "checkpoint_every"} <= recipe["train"].keys()
        for part in ("encoder", "predictor", "masker", "target", "criterion"):
            assert recipe[part]["_target_"].startswith("jepa.")


@pytest.mark.parametrize(
    ("argument", "path", "value"),
    [
        ("seed=7", ("seed",), 7),
        ("data.root=/a b/(c),d=e's #1: [f]~", ("data", "root"), "/a b/(c),d=e's #1: [f]~"),
        ("run_dir=some where/else", ("run_dir",), "some where/else"),
        ("optim.lr.peak=3e-4", ("optim", "lr", "peak"), 3e-4),
        ("optim.betas=[0.9,0.95]", ("optim", "betas"), [0.9, 0.95]),
        ("target.start=0.99", ("target", "start"), 0.99),
        ("data.dataset.count=50", ("data", "dataset", "count"), 50),
        ("encoder.drop_path=0.1", ("encoder", "drop_path"), 0.1),
        ("encoder.grid_size=[4,4]", ("encoder", "grid_size"), [4, 4]),
        ("data.size=[32,48]", ("data", "dataset", "size"), [32, 48]),
        ("train.precision=bf16", ("train", "precision"), "bf16"),
        ("train.trackers=[tensorboard]", ("train", "trackers"), ["tensorboard"]),
        ("data=digits", ("data", "dataset", "_target_"), "jepa.data.Digits"),
    ],
)
def test_any_key_can_be_overridden(argument: str, path: tuple[str, ...], value: object) -> None:
    found: Any = settled(argument)
    for key in path:
        found = found[key]
    assert found == value


def test_a_target_replaces_another_with_all_its_keys() -> None:
    recipe = recipes.load_recipe(["recipe=ijepa_tiny", "target._target_=jepa.targets.StopGradient"])
    assert recipe["target"] == {"_target_": "jepa.targets.StopGradient"}


@pytest.mark.parametrize("key", ["half_life", "strat"])
def test_keys_that_a_part_does_not_take_are_refused_where_the_recipe_replaces_another(key: str) -> None:
    with pytest.raises(build.RecipeError, match=rf"unknown key 'target\.{key}'"):
        recipes.load_recipe(["recipe=lejepa_tiny", f"target.{key}=3"])


def test_a_group_replaces_a_part() -> None:
    masker = recipes.load_recipe(["recipe=ijepa_tiny", "masker=random_patches"])["masker"]
    assert masker == {"_target_": "jepa.maskers.RandomPatches", "target_ratio": [0.6, 0.6], "targets": 1}


def test_a_part_keeps_the_arguments_that_it_knows(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "defaults: [ijepa_tiny, _self_]\ndata: {dataset: {_target_: jepa.data.Digits, size: 40}}\ntrain: {epochs: 3}\n"
    )
    recipe = recipes.load_recipe([f"recipe={tmp_path / 'mine.yaml'}"])
    assert recipe["data"]["dataset"] == {"_target_": "jepa.data.Digits", "size": 40, "seed": 0, "split": "train"}
    assert (recipe["train"]["steps"], recipe["train"]["epochs"]) == (None, 3)
    longer = recipes.load_recipe([f"recipe={tmp_path / 'mine.yaml'}", "train.samples=99"])["train"]
    assert (longer["steps"], longer["epochs"], longer["samples"]) == (None, None, 99)


def test_home_is_found_in_run_dir() -> None:
    assert settled("run_dir=~/run")["run_dir"] == str(Path.home() / "run")


@pytest.mark.parametrize("given", ["steps", "epochs", "samples"])
def test_length_on_the_command_line_replaces_the_recipes(given: str) -> None:
    train = recipes.load_recipe(["recipe=ijepa_tiny", f"train.{given}=640"])["train"]
    assert {name: train[name] for name in ("steps", "epochs", "samples") if train[name] is not None} == {given: 640}


@pytest.mark.parametrize(
    ("settings", "steps"), [({"steps": 9}, 9), ({"samples": 39}, 4), ({"epochs": 2}, 20), ({"epochs": 0.01}, 1)]
)
def test_run_length_in_steps(settings: dict[str, float], steps: int) -> None:
    chosen = TrainSettings.model_validate({"batch_size": 8, **settings})
    assert recipes.total_steps(chosen, 80) == steps


@pytest.mark.parametrize(
    ("value", "steps"),
    [(25, 25), ("7 steps", 7), ("10 %", 30), ("2.5%", 7), ("40 epochs", 400), ("3e2 samples", 37), ("1e+2 steps", 100)],
)
def test_lengths_in_any_unit(value: int | str, steps: int) -> None:
    assert recipes.length(value, "optim.lr.warmup", steps=300, batch_size=8, dataset_size=80) == steps


@pytest.mark.parametrize("value", [-1, True, 1.5, None, "soon", "3 weeks", "e steps", "1e400e steps", "-10 %"])
def test_other_lengths_are_refused(value: Any) -> None:
    with pytest.raises(build.RecipeError, match=r"optim\.lr\.warmup"):
        recipes.length(value, "optim.lr.warmup", steps=300, batch_size=8, dataset_size=80)


@pytest.mark.parametrize(("batch_size", "steps"), [(64, 172), (16, 688), (100_000, 1)])
def test_a_half_life_in_samples_becomes_steps(batch_size: int, steps: int) -> None:
    given = ["target.start=null", "target.half_life=11008 samples", f"train.batch_size={batch_size}"]
    assert recipes.load_recipe(["recipe=vjepa_tiny", *given])["target"]["half_life"] == steps


@pytest.mark.parametrize("value", ["10 %", "2 epochs", "soon"])
def test_other_half_lives_are_refused(value: str) -> None:
    with pytest.raises(build.RecipeError, match=r"target\.half_life"):
        recipes.load_recipe(["recipe=vjepa_tiny", "target.start=null", f"target.half_life={value}"])


def test_recipe_of_ones_own_builds_on_the_shipped_ones(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("defaults: [ijepa_tiny, _self_]\nencoder: {depth: 2}\nseed: 5\n")
    recipe = recipes.load_recipe([f"recipe={tmp_path / 'mine.yaml'}", "encoder.heads=2"])
    assert recipe["recipe"] == "mine"
    assert recipe["run_dir"] == "runs/mine"
    assert (recipe["encoder"]["depth"], recipe["encoder"]["heads"], recipe["seed"]) == (2, 2, 5)
    assert recipe["train"] == recipes.load_recipe(["recipe=ijepa_tiny"])["train"]


def test_recipe_of_ones_own_brings_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "with space, comma=(and more)"
    (folder / "encoder").mkdir(parents=True)
    (folder / "encoder" / "wide.yaml").write_text("_target_: jepa.encoders.ViT\ndim: 64\ndepth: 1\nheads: 4\n")
    (folder / "encoder" / "deep.yaml").write_text("_target_: jepa.encoders.ViT\ndim: 32\ndepth: 3\nheads: 2\n")
    (folder / "mine.yaml").write_text(
        "defaults: [base, {data: shapes}, {encoder: wide}, {predictor: vit}, "
        "{masker: multiblock}, _self_]\ntrain: {steps: 2, batch_size: 4}\n"
    )
    monkeypatch.chdir(folder)
    assert recipes.load_recipe(["recipe=mine.yaml"])["encoder"]["dim"] == 64
    assert recipes.load_recipe(["recipe=./mine.yaml", "encoder=deep"])["encoder"]["depth"] == 3
    assert recipes.load_recipe(["recipe=mine.yaml", "encoder=vit_tiny"])["encoder"]["dim"] == 192


def test_a_stored_recipe_reads_back_equal(tmp_path: Path) -> None:
    recipe = settled("optim.eps=1e-8", "encoder.mlp_ratio=4.363636363636363", "run_dir=a: b # c")
    recipes.write(recipe, tmp_path / "recipe.yaml")
    assert recipes.read(tmp_path / "recipe.yaml") == recipe
    assert recipes.difference(recipes.read(tmp_path / "recipe.yaml"), recipe) == []


def test_micro_batches_are_free_unless_a_term_looks_at_them_together() -> None:
    assert recipes.difference(settled(), settled("train.accumulate=2")) == ["train.accumulate: 1 -> 2"]
    alone = "~regularizers.vicreg"
    assert recipes.difference(settled(alone), settled(alone, "train.accumulate=2")) == []


def test_difference_names_keys_that_matter() -> None:
    old, new = settled(), settled("data.workers=3", "train.log_every=7", "run_dir=x", "seed=1", "encoder.drop_path=0.1")
    assert recipes.difference(old, new) == ["seed: 0 -> 1", "encoder.drop_path: 0.0 -> 0.1"]


def test_what_is_left_out_has_its_default() -> None:
    """A run that was begun before a key existed is continued."""
    shorter = settled()
    del shorter["encoder"]["drop_path"], shorter["optim"]["predictor_lr"], shorter["train"]["clip_parts"]
    assert recipes.difference(shorter, settled()) == recipes.difference(settled(), shorter) == []
    changed = settled("optim.predictor_lr=0.1", "encoder.drop_path=0.1")
    assert sorted(recipes.difference(shorter, changed)) == [
        "encoder.drop_path: 0.0 -> 0.1",
        "optim.predictor_lr: None -> 0.1",
    ]


def test_a_stored_part_that_is_gone_is_a_difference() -> None:
    stored = {**settled(), "encoder": {"_target_": "gone.Part"}}
    assert "encoder._target_: gone.Part -> jepa.encoders.ViT" in recipes.difference(stored, settled())
