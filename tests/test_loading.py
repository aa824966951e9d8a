"""A trained model as a library: features, and what is refused of a stranger's run."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml

import jepa
from jepa import run
from jepa.build import RecipeError, locate
from jepa.checkpoint import CheckpointError
from jepa.loading import Pretrained
from jepa.types import View
from tests.conftest import forget_accelerate
from tests.tiny import TINY, weights


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    forget_accelerate()
    assert run.main([*TINY, "encoder.depth=3", "encoder.drop_path=0.5", f"run_dir={path}"]) == 0
    forget_accelerate()
    return path


@pytest.fixture(scope="module")
def model(run_dir: Path) -> Pretrained:
    return jepa.load(run_dir)


def pictures(count: int = 3, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def test_what_is_loaded(run_dir: Path, model: Pretrained) -> None:
    stored = weights(run_dir)
    assert stored.keys() == model.model.state_dict().keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in model.model.state_dict().items())
    assert model.step == 4
    assert model.recipe["recipe"] == "ijepa_tiny"
    assert not any(module.training for module in model.model.modules())
    assert not any(parameter.requires_grad for parameter in model.model.parameters())


@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 48), (64, 40), (8, 8)])
@pytest.mark.parametrize("layers", [(-1,), (0, -1), (-1, -2, -3)])
def test_shapes(model: Pretrained, height: int, width: int, layers: tuple[int, ...]) -> None:
    x, depth = pictures(5, height, width), 32 * len(layers)
    pooled, dense = model.features(x, layers=layers), model.features(x, layers=layers, pool="none")
    assert pooled.shape == (5, depth)
    assert dense.shape == (5, height // 8, width // 8, depth)
    assert pooled.dtype == dense.dtype == torch.float32
    torch.testing.assert_close(dense.mean((1, 2)), pooled)


def test_layers_are_in_their_order(model: Pretrained) -> None:
    x = pictures()
    both = model.features(x, layers=(0, 2))
    torch.testing.assert_close(both[:, :32], model.features(x, layers=[0]))
    torch.testing.assert_close(both[:, 32:], model.features(x))
    assert not torch.allclose(both[:, :32], both[:, 32:])


def test_bytes_are_normalised_and_floats_are_not(model: Pretrained) -> None:
    x = pictures()
    statistics = model.recipe["data"]["batch_transform"]
    mean, std = (torch.tensor(statistics[name]).view(3, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close(model.features(x), model.features((x / 255 - mean) / std), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model.features(x), model.features(x / 255), atol=1e-3)


def test_features_are_the_encoders(model: Pretrained) -> None:
    x = torch.randn(2, 3, 32, 32)
    for which, encoder in (("target", model.model.target_encoder), ("context", model.model.encoder)):
        tokens = encoder(View(x)).x.unflatten(0, (2, -1))
        torch.testing.assert_close(model.features(x, which=which), tokens.mean(1))
    assert not torch.equal(model.features(x), model.features(x, which="context"))
    torch.testing.assert_close(
        model.features(x, pool="none"), F.layer_norm(model.features(x, pool="none"), (32,)), atol=1e-3, rtol=1e-3
    )


def test_each_input_is_on_its_own(model: Pretrained) -> None:
    x = pictures(7)
    torch.testing.assert_close(model.features(x, batch_size=2), model.features(x))
    torch.testing.assert_close(model.features(x[3:4]), model.features(x)[3:4])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"which": "teacher"}, "target, context"),
        ({"pool": "max"}, "mean, none"),
        ({"layers": ()}, "layers"),
        ({"layers": (3,)}, "there are 3 blocks"),
        ({"layers": (-4,)}, "there are 3 blocks"),
        ({"x": torch.zeros(0, 3, 32, 32)}, "need inputs"),
        ({"x": torch.zeros(2, 1, 32, 32)}, "takes 3 channels"),
        ({"x": torch.zeros(2, 1, 32, 32, dtype=torch.uint8)}, "3 channels"),
        ({"x": torch.zeros(2, 3, 7, 32)}, "cannot be cut into patches"),
    ],
)
def test_wrong_arguments_are_refused(model: Pretrained, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        model.features(arguments.pop("x", pictures()), **arguments)


@pytest.fixture
def copy(run_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_dir, tmp_path / "run"))


def tamper(run_dir: Path, part: str, node: dict[str, Any]) -> None:
    recipe = yaml.safe_load((run_dir / "recipe.yaml").read_text())
    where = recipe
    *groups, last = part.split(".")
    for group in groups:
        where = where[group]
    where[last] = node
    (run_dir / "recipe.yaml").write_text(yaml.safe_dump(recipe))


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """A module outside jepa; tells whether it was imported."""
    (tmp_path / "evil.py").write_text("from jepa.losses import SmoothL1\nclass Loss(SmoothL1): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    return lambda: "evil" in sys.modules


@pytest.mark.parametrize("part", ["encoder", "predictor", "target", "criterion", "model", "data.batch_transform"])
def test_code_outside_jepa_is_neither_imported_nor_run(part: str, copy: Path, evil: Callable[[], bool]) -> None:
    tamper(copy, part, {"_target_": "evil.Loss"})
    with pytest.raises(RecipeError, match=r"code outside jepa and was not run; to trust it: trust=\('evil',\)"):
        jepa.load(copy)
    assert not evil()


def test_nested_code_is_not_run_either(copy: Path, evil: Callable[[], bool]) -> None:
    tamper(copy, "criterion.beta", {"_target_": "evil.Loss"})
    with pytest.raises(RecipeError, match=r"criterion\.beta\._target_='evil\.Loss' is code outside jepa"):
        jepa.load(copy)
    assert not evil()


def test_a_package_can_be_trusted(copy: Path, evil: Callable[[], bool]) -> None:
    tamper(copy, "criterion", {"_target_": "evil.Loss", "beta": 0.5})
    assert jepa.load(copy, trust=("evil",)).features(pictures()).shape == (3, 32)
    assert evil()
    with pytest.raises(RecipeError, match="code outside jepa"):
        jepa.load(copy, trust=("another",))


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"name": "test_resnet", "options": {"checkpoint_path": "/tmp/evil.pth"}}, "an encoder reads no weights"),
        ({"name": "hf-hub:a/stranger"}, "timm cannot make 'hf-hub:a/stranger'"),
    ],
)
def test_no_file_or_address_of_a_stranger_is_read_by_timm(node: dict[str, Any], said: str, copy: Path) -> None:
    tamper(copy, "encoder", {"_target_": "jepa.encoders.Timm", **node})
    with pytest.raises(RecipeError, match=f"encoder: .*{said}"):
        jepa.load(copy)


@pytest.mark.parametrize(
    "path",
    [
        "jepa.run.os.system",
        "jepa.checkpoint.shutil.rmtree",
        "jepa.checkpoint.prune",
        "jepa.run.main",
        "jepa.recipe.write",
        "jepa.build.importlib.import_module",
        "jepa.encoders.vit.ViT.load_state_dict",
        "jepa.data.files.os.listdir",
        "jepa.model.torch.load",
    ],
)
def test_nothing_but_parts_is_run_for_a_stranger(path: str, copy: Path) -> None:
    assert callable(locate(path, "criterion"))  # it exists, and one's own recipe may name it
    tamper(copy, "criterion", {"_target_": path})
    with pytest.raises(RecipeError, match="is not a part of a model and was not run"):
        jepa.load(copy)


def test_no_run_no_checkpoint_no_whole_file(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is not a run directory"):
        jepa.load(tmp_path / "none")
    path = copy / "checkpoints" / "step_00000004" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        jepa.load(copy)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(CheckpointError, match="holds no checkpoint yet"):
        jepa.load(copy)
    (copy / "recipe.yaml").write_text("recipe: {")
    with pytest.raises(RecipeError, match="cannot be read"):
        jepa.load(copy)


def test_weights_of_another_recipe_are_refused(copy: Path) -> None:
    recipe = (copy / "recipe.yaml").read_text()
    (copy / "recipe.yaml").write_text(recipe.replace("depth: 3", "depth: 2"))
    with pytest.raises(CheckpointError, match="does not fit the model: 0 keys missing"):
        jepa.load(copy)
    (copy / "recipe.yaml").write_text(recipe.replace("criterion:", "critic:"))
    with pytest.raises(RecipeError, match="lacks 'criterion'"):
        jepa.load(copy)
