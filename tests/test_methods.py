"""Every recipe trains, stops, goes on exactly, loads and is probed; and what the families of methods are made of."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import jepa
from jepa import checkpoint, evaluate, run
from jepa.assemble import check_synchronised
from jepa.build import RecipeError
from jepa.command_line import available
from jepa.convert.export import trace
from jepa.data import Views, two_views
from jepa.data.batches import collate
from jepa.metrics import read_metrics
from jepa.probes.features import InOrder
from jepa.probing import Settings, Sources
from jepa.report import source
from jepa.report.page import ReportSettings, write_report
from jepa.types import Input, JepaBatch, Sample, Task, View, each
from tests.conftest import Ran, forget_accelerate
from tests.films import film
from tests.recordings import record, wave
from tests.test_distributed import STEPS, assert_same_training, torchrun
from tests.tiny import images, losses, weights

Run = Callable[..., Ran]

SMALL = ("data.workers=0", "train.steps=2", "train.batch_size=4", "train.log_every=1", "train.checkpoint_every=1")
PREDICTOR = ("predictor.dim=32", "predictor.depth=1", "predictor.heads=2")
JOINT = ("encoder.dim=32", "encoder.depth=1", "encoder.heads=2", *PREDICTOR)
VIT = ("encoder.patch_size=8", *JOINT)
PICTURES = ("data.root={pictures}", "data.size=32")
IJEPA = (*VIT, *PICTURES, "masker.min_context=1")
ENERGY = ("encoder.dim=32", "encoder.heads=2", "encoder.hidden=32", "encoder.steps=2", "encoder.patch_size=8")
RESNET = (*PICTURES, "encoder.name=test_resnet", "encoder.sync_batch_norm=false", "encoder.projector=[24,16]")
SHAPES = ("data.size=32", "encoder.options.channels=[8,8,8,16]", "encoder.projector=[24,16]")
CLIPS = (*JOINT, "encoder.patch_size=[2,8,8]", "data.root={films}", "data.size=[4,32,32]")
SOUNDS = (*VIT, "data.root={sounds}", "data.size=[32,32]")

# Every recipe, and all that makes it small beside SMALL. {names} are those of `places`.
SHRUNK: dict[str, tuple[str, ...]] = {
    "ajepa_tiny": (*VIT, "data.size=[32,32]", "data.dataset.seconds=0.512"),
    "ajepa_vitb16": (*SOUNDS, "data.dataset.seconds=0.32", "masker.first.min_context=1", "masker.then.targets=1"),
    "audio_jepa_vitb16": (*SOUNDS, "data.dataset.seconds=1.25"),
    "avjepa_tiny": (*JOINT, "data.size.clip=[8,24,24]", "data.size.sound=[64,16]"),
    "avjepa_vitb16": (
        *JOINT,
        "encoder.patches.clip.size=[2,8,8]",
        "encoder.patches.sound.size=[8,8]",
        "data.root={films}",
        "data.size.clip=[8,48,48]",
        "data.size.sound=[40,32]",
        "data.dataset.duration=0.4",
    ),
    "barlow_resnet50": RESNET,
    "barlow_tiny": SHAPES,
    "byol_resnet50": (*RESNET, "predictor.hidden=8"),
    "byol_tiny": (*SHAPES, "predictor.hidden=8"),
    "cjepa_vitb16": IJEPA,
    "energy_ijepa": (*ENERGY, *PREDICTOR, *PICTURES, "masker.min_context=1"),
    "energy_tiny": (*ENERGY, *PREDICTOR, "data.size=32"),
    "ijepa_small": (*VIT, "data.size=32", "train.compile=false"),
    "ijepa_tiny": (*VIT, "data.size=32"),
    "ijepa_vitb16": IJEPA,
    "ijepa_vitg16_in22k": IJEPA,
    "ijepa_vith14": IJEPA,
    "ijepa_vith14_in22k": IJEPA,
    "ijepa_vith16_448": IJEPA,
    "ijepa_vitl16": IJEPA,
    "lejepa_tiny": SHAPES,
    "lejepa_vits16": (*RESNET, "encoder.options={}"),
    "saccade_convnext_tiny": (*PICTURES, "data.transform.size=50", "encoder.name=test_convnext"),
    "saccade_tiny": (*VIT, "data.size=32", "data.dataset.size=64"),
    "saccade_vit": (*VIT, *PICTURES, "data.transform.size=50"),
    "salt_tiny": (*VIT, "data.size=32", "target.weights={teacher}"),
    "salt_vitb16": (*IJEPA, "target.weights={teacher}"),
    "simsiam_resnet50": (*RESNET, "predictor.hidden=8"),
    "simsiam_tiny": (*SHAPES, "predictor.hidden=8"),
    "vicreg_resnet50": RESNET,
    "vicreg_tiny": SHAPES,
    "vjepa2_vitg16": CLIPS,
    "vjepa2_vitg16_384_cooldown": CLIPS,
    "vjepa2_vitg16_cooldown": CLIPS,
    "vjepa2_vith16": CLIPS,
    "vjepa2_vith16_cooldown": CLIPS,
    "vjepa2_vitl16": CLIPS,
    "vjepa2_vitl16_cooldown": CLIPS,
    "vjepa_image": (*JOINT, "encoder.patch_size=[2,8,8]", "data.root={pictures}", "data.size=[2,32,32]"),
    "vjepa_tiny": (*JOINT[:3], *PREDICTOR[:2], "encoder.patch_size=[2,8,8]", "data.size=[4,32,32]"),
    "vjepa_vith16": CLIPS,
    "vjepa_vith16_384": CLIPS,
    "vjepa_vitl16": CLIPS,
}
# How each is probed where it is not by regression on the labels of its own data.
SACCADE = ("probes=[movement]", "limit=8")
LABELLED = ("data.labelled.train.count=24", "data.labelled.test.count=12")
PROBED: dict[str, tuple[str, ...]] = {
    "ajepa_vitb16": ("data=tones", *LABELLED, "data.dataset.seconds=0.32"),
    "audio_jepa_vitb16": ("data=tones", *LABELLED, "data.dataset.rate=32000", "data.dataset.seconds=1.25"),
    "avjepa_tiny": ("probes=[retrieval]", "limit=24"),
    "avjepa_vitb16": ("data=bouncing_sounds", *LABELLED, "data.dataset.fps=20", "probes=[retrieval]"),
    "saccade_convnext_tiny": SACCADE,
    "saccade_tiny": SACCADE,
    "saccade_vit": SACCADE,
    "vjepa_image": ("data=moving_shapes", *LABELLED),
    **dict.fromkeys((n for n, given in SHRUNK.items() if given == CLIPS), ("data=moving_shapes", *LABELLED)),
}
VICREG = frozenset({"prediction", "variance", "covariance"})
TERMS = {
    **dict.fromkeys(("barlow_resnet50", "barlow_tiny"), frozenset({"invariance", "redundancy"})),
    **dict.fromkeys(("lejepa_vits16", "lejepa_tiny"), frozenset({"prediction", "sigreg"})),
    **dict.fromkeys(("saccade_convnext_tiny", "saccade_vit", "saccade_tiny"), VICREG | {"cycle"}),
    **dict.fromkeys(("vicreg_resnet50", "vicreg_tiny", "energy_tiny"), VICREG),
    "cjepa_vitb16": VICREG | {"invariance"},
    **dict.fromkeys(("ijepa_tiny", "ijepa_small", "vjepa_tiny", "ajepa_tiny", "avjepa_tiny"), VICREG),
}


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A few small pictures, films with sound and recordings, and the weights of a teacher."""
    folder = tmp_path_factory.mktemp("places")
    for number in range(3):
        path = folder / "films" / f"{number}.mp4"
        film(path, 40 + 7 * number, rate=60, size=(48, 64), options={"preset": "ultrafast"}, sound=True)
        record(folder / "sounds" / f"{number}.wav", wave(16_000, 1.3 + number / 4), 16_000)
    forget_accelerate()
    ema = "target._target_=jepa.targets.EMA"
    assert run.main(["recipe=ijepa_tiny", *SHRUNK["ijepa_tiny"], *SMALL, ema, f"run_dir={folder / 'taught'}"]) == 0
    forget_accelerate()
    return {
        "pictures": str(images(folder / "pictures", 8)),
        "films": str(folder / "films"),
        "sounds": str(folder / "sounds"),
        "teacher": str(kept(folder / "taught")[-1] / checkpoint.MODEL),
    }


def small(name: str, places: Mapping[str, str]) -> list[str]:
    """A command line of a recipe made small."""
    settings = list(SHRUNK[name])
    for place, path in places.items():
        settings = [setting.replace(f"{{{place}}}", path) for setting in settings]
    return [f"recipe={name}", *SMALL, *settings]


def kept(run_dir: Path) -> list[Path]:
    return checkpoint.complete(run_dir / "checkpoints")


def seen(trained: jepa.Pretrained, count: int = 3) -> Input:
    """The first samples of a run's data, as probes are given them."""
    sources = Sources(trained, trained.recipe["data"], Settings(run=""))
    samples = InOrder(sources.train, sources.transform, range(count))
    return collate([Sample(each(samples[i].x, lambda part: part[0, 0])) for i in range(count)], [], []).target.x


def test_no_recipe_is_left_out() -> None:
    assert SHRUNK.keys() == set(available())


@pytest.mark.parametrize("name", SHRUNK)
def test_a_recipe_trains_goes_on_exactly_loads_and_is_probed(
    name: str, tmp_path: Path, places: dict[str, str], jepa_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its own optimiser, schedules, augmentation, masks, losses and target, and nothing but smaller numbers."""
    command = [*small(name, places), f"run_dir={tmp_path}"]
    ran = jepa_run(*command)
    assert ran.status == 0, ran.err
    first, second = (checkpoint.load_file(path / checkpoint.MODEL) for path in kept(tmp_path))
    assert any(not value.equal(second[key]) for key, value in first.items() if key.startswith("encoder."))
    expected = losses(tmp_path)
    shutil.rmtree(kept(tmp_path)[-1])
    ran = jepa_run(*command)
    assert ran.status == 0, ran.err
    assert "resumed after step 1" in ran.log
    assert losses(tmp_path) == expected
    assert all(value.equal(second[key]) for key, value in weights(tmp_path).items())
    logged = read_metrics(tmp_path / "metrics.jsonl")[0]
    terms = {key.removeprefix("loss_"): value for key, value in logged.items() if key.startswith("loss_")}
    assert (terms.keys() or {"prediction"}) == TERMS.get(name, {"prediction"})
    assert sum(terms.values()) == pytest.approx(logged["loss"]) or not terms

    trained = jepa.load(tmp_path)
    features = trained.features(seen(trained))
    assert len(features) == 3
    assert features.isfinite().all()
    assert not torch.allclose(features[0], features[1])
    pictures = ("data=shapes", *LABELLED) if PICTURES[0] in SHRUNK[name] else ("limit=24",)
    probe = ("probes=[regression]", "sources=[model]", *PROBED.get(name, pictures))
    assert evaluate.main([f"run={tmp_path}", *probe]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert ("translation" in printed) == name.startswith("saccade")


@pytest.mark.parametrize("name", ["saccade_tiny", "simsiam_tiny", "ajepa_tiny"])
def test_what_is_hidden_is_reported(name: str, tmp_path: Path, places: dict[str, str], jepa_run: Run) -> None:
    assert jepa_run(*small(name, places), f"run_dir={tmp_path}").status == 0
    page = write_report(ReportSettings(run=str(tmp_path), samples=16)).read_text()
    assert ("Nothing is hidden" in page) == (name != "ajepa_tiny")
    assert "the truth ranks" in page


@pytest.mark.parametrize(
    "optimizer",
    ["{_target_: timm.optim.Lars, momentum: 0.9}", "{_target_: timm.optim.Muon, nesterov: true}"],  # with plain numbers
)
def test_other_optimisers_go_on_exactly(optimizer: str, tmp_path: Path, jepa_run: Run) -> None:
    other = [f"+optim.optimizer={optimizer}", "optim.betas=null", "optim.eps=null", "optim.lr.peak=0.01"]
    command = ["recipe=barlow_tiny", *SHRUNK["barlow_tiny"], *SMALL, *other, f"run_dir={tmp_path}"]
    ran = jepa_run(*command)
    assert ran.status == 0, ran.err
    trained = weights(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000002")
    assert jepa_run(*command).status == 0
    assert all(value.equal(trained[key]) for key, value in weights(tmp_path).items())


@pytest.fixture(scope="module")
def student(places: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of salt_tiny, with a rate at which two steps change something."""
    folder = tmp_path_factory.mktemp("student")
    forget_accelerate()
    assert run.main([*small("salt_tiny", places), "optim.lr.warmup=0", f"run_dir={folder}"]) == 0
    forget_accelerate()
    return folder


def test_a_frozen_teacher_is_loaded_once(places: dict[str, str], student: Path, tmp_path: Path, jepa_run: Run) -> None:
    taught, learned = checkpoint.load_file(Path(places["teacher"])), weights(student)
    named = [key for key in taught if key.startswith("target_encoder.")]
    assert named
    assert all(learned[key].equal(taught[key]) for key in named)
    command = [argument for argument in small("salt_tiny", places) if not argument.startswith("target.weights")]
    teacher = tmp_path / "teacher.safetensors"
    shutil.copy(places["teacher"], teacher)
    command = [*command, f"target.weights={teacher}"]
    other = jepa_run(*command, "encoder.dim=64", f"run_dir={tmp_path / 'other'}")
    assert other.status == 1
    assert "is no teacher of this encoder's architecture" in other.err
    assert jepa_run(*command, f"run_dir={tmp_path / 'run'}").status == 0
    teacher.unlink()
    shutil.rmtree(kept(tmp_path / "run")[-1])
    assert jepa_run(*command, f"run_dir={tmp_path / 'run'}").status == 0  # the run has it now
    gone = jepa_run(*command, f"run_dir={tmp_path / 'gone'}")
    assert gone.status == 1
    assert str(teacher) in gone.err


def test_the_student_of_a_frozen_teacher_is_looked_at(student: Path) -> None:
    """By features, probes, exported programs and the report, which compares predictions with the teacher's tokens."""
    model = jepa.load(student)
    x = seen(model, 16)
    learned, taught = (model.features(x, which=which) for which in ("context", "target"))
    assert not torch.allclose(learned, taught, atol=1e-4)
    assert model.features(x).equal(learned)
    assert model.encoder() is model.model.encoder
    probed = Sources(model, model.recipe["data"], Settings(run=str(student), limit=3))
    assert probed.encoder("model", 0) is model.model.encoder
    inputs = model.normalize(x)
    torch.testing.assert_close(trace(model).module()(inputs).mean(1), learned)
    shown = source.Settings(run=str(student), samples=16)
    (material,) = source.gather(source.open_run(shown), shown, lambda count: None)
    torch.testing.assert_close(material.tokens, model.features(material.x, pool="none", which="context").flatten(1, 2))
    raw = model.features(material.x, pool="none", which="target").flatten(1, 2)
    torch.testing.assert_close(material.targets, torch.nn.functional.layer_norm(raw, raw.shape[-1:]))
    assert "mean embeddings of the context encoder" in write_report(ReportSettings(**shown.model_dump())).read_text()


def test_a_shared_encoder_learns_from_both_sides_and_a_pair_from_both_ways() -> None:
    """Without `both_ways` B pairs give B predictions; with it the two halves are the two directions."""
    x = torch.randint(256, (3, 2, 3, 8, 8), dtype=torch.uint8)
    batch = JepaBatch(View(x), [Task(View(x), torch.empty(3, 0))], {"y": torch.arange(3)}, torch.arange(3))
    one, both = (Views([0.5] * 3, [0.5] * 3, both_ways=b)(batch) for b in (False, True))
    first, second = one.target.x, one.tasks[0].context.x
    assert first.shape == (3, 3, 8, 8)
    torch.testing.assert_close(first, (x[:, 0] / 255 - 0.5) / 0.5)
    assert both.target.x.equal(torch.cat((first, second)))
    assert both.tasks[0].context.x.equal(torch.cat((second, first)))
    assert both.labels["y"].tolist() == both.index.tolist() == [0, 1, 2, 0, 1, 2]
    with pytest.raises(ValueError, match=r"two views \(2, C, \*size\)"):
        Views([0.5] * 3, [0.5] * 3)(JepaBatch(View(x[:, 0]), batch.tasks))


def test_two_views_are_of_one_picture_and_differ() -> None:
    picture = torch.randint(256, (3, 60, 80), dtype=torch.uint8)
    torch.manual_seed(0)
    augment = two_views(32)
    pair = augment(picture)
    assert (pair.shape, pair.dtype) == ((2, 3, 32, 32), torch.uint8)
    assert not pair[0].equal(pair[1])
    assert not augment(picture).equal(pair)
    torch.manual_seed(0)
    assert augment(picture).equal(pair)  # a function of the seed of its sample
    plain = two_views([60, 80], scale=(1, 1), flip=0, jitter_share=0, grey=0, blur=(0, 0), solarize=(0, 1))(picture)
    assert plain[0].equal(picture)
    assert plain[1].equal(torch.where(picture >= 128, 255 - picture, picture))
    with pytest.raises(ValueError, match="probabilities"):
        two_views(32, blur=(0.5, 2.0))


OWN = """
from torch import nn
from jepa import Encoder, Indices, Tokens

class Mine(Encoder):
    hides = False
    def __init__(self, *, dim: int = 32) -> None:
        super().__init__()
        self.embed_dim = dim
        self.net = nn.Sequential(nn.Conv2d(3, dim, 8, 8), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    def grid(self, input_size):
        return (1,)
    def forward(self, view):
        return Tokens(self.net(view.x), Indices.all(len(view.x), (1,), view.x.device))
"""


def test_an_encoder_of_ones_own_makes_saccades(tmp_path: Path, jepa_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_convnet.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    run_dir = tmp_path / "run"
    command = ["recipe=saccade_tiny", *SMALL, "encoder._target_=own_convnet.Mine", f"run_dir={run_dir}"]
    ran = jepa_run(*command)
    assert ran.status == 0, ran.err
    ran = jepa_run(*command, "encoder.dim=24", "predictor=motion_mlp", f"run_dir={tmp_path / 'mlp'}")
    assert ran.status == 0, ran.err
    assert losses(run_dir).keys() == losses(tmp_path / "mlp").keys() == {1, 2}
    assert jepa.load(run_dir, trust=("own_convnet",)).features(torch.zeros(2, 3, 48, 48)).shape == (2, 96)
    del sys.modules["own_convnet"]


def test_tokens_of_a_convnet_move(places: dict[str, str], tmp_path: Path, jepa_run: Run) -> None:
    """A transformer predicts each token of the moved view; its heads are its own."""
    tokens = ("predictor=motion_transformer", "encoder.pool=false", "data.size=64", "data.transform.size=100")
    ran = jepa_run(*small("saccade_convnext_tiny", places), *tokens, f"run_dir={tmp_path}")
    assert ran.status == 0, ran.err
    assert losses(tmp_path).keys() == {1, 2}
    assert jepa.load(tmp_path).features(torch.zeros(2, 3, 64, 64), pool="none").shape == (2, 2, 2, 64)


def test_views_change_their_scale_and_are_mirrored(
    places: dict[str, str], tmp_path: Path, jepa_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("masker.scale=1.3", "masker.mirror=0.5", "data.dataset.size=80")
    ran = jepa_run(*small("saccade_tiny", places), *more, f"run_dir={tmp_path}")
    assert ran.status == 0, ran.err
    assert evaluate.main([f"run={tmp_path}", "probes=[movement]", "limit=24"]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("random_init", "movement cells", "translation", "rotation", "zoom"))


TOKENS_OF_A_CONVNET = (
    "recipe=ijepa_tiny",
    "encoder._target_=jepa.encoders.Timm",
    "encoder.name=test_convnext",
    "encoder.pool=false",
    "data.size=128",
    "predictor.heads=3",
    "masker=random_patches",
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*TOKENS_OF_A_CONVNET], "RandomPatches hides tokens, but encoder Timm sees whole inputs only"),
        (["masker.translation=0.4"], "make them at least (104, 104), or lower masker.translation"),
        (["predictor=vit", "predictor.heads=3"], "ViTPredictor answers Indices, but masker Saccade asks with Tensor"),
        (["optim.optimizer._target_=torch.optim.SGD"], "AdamW needs betas and eps; with another optimizer"),
        (["encoder=convnext_tiny", "encoder.name=resnet999"], "timm cannot make 'resnet999'"),
    ],
)
def test_parts_that_do_not_fit_are_named(arguments: list[str], message: str, tmp_path: Path, jepa_run: Run) -> None:
    recipe = () if arguments[0].startswith("recipe=") else ("recipe=saccade_tiny",)
    ran = jepa_run(*recipe, *SMALL, *arguments, f"run_dir={tmp_path}")
    assert ran.status == 1
    assert message in ran.err
    assert "Traceback" not in ran.err


def test_two_processes_train_on_moved_views_as_one(tmp_path: Path, jepa_run: Run) -> None:
    """With variance, covariance and cycle terms: the first two look at the global batch."""
    small = ["encoder.dim=32", "encoder.depth=1", "encoder.heads=2", "predictor.dim=32", "predictor.depth=1"]
    parts = ["predictor.heads=2", "data.workers=0", "train.samples=null", "train.batch_size=8"]
    command = ["recipe=saccade_tiny", *small, *parts, "train.log_every=1", *STEPS, "train.accumulate=1"]
    ran = torchrun(*command, f"run_dir={tmp_path / 'two'}")
    assert ran.returncode == 0, ran.stderr
    assert jepa_run(*command, f"run_dir={tmp_path / 'one'}").status == 0
    assert_same_training(tmp_path / "two", tmp_path / "one")


def test_statistics_are_shared_by_processes_on_gpus_only() -> None:
    def accelerator(processes: int, device: str) -> Any:
        return SimpleNamespace(num_processes=processes, device=torch.device(device))

    model = nn.Sequential(nn.SyncBatchNorm(4))
    check_synchronised(nn.Sequential(nn.BatchNorm1d(4)), accelerator(2, "cpu"))
    check_synchronised(model, accelerator(1, "cpu"))
    check_synchronised(model, accelerator(2, "cuda"))
    with pytest.raises(RecipeError, match="sync_batch_norm=true: 2 processes on cpu cannot"):
        check_synchronised(model, accelerator(2, "cpu"))
