"""Clips and sound in one model: grids, tokens, tasks, files, retrieval, and whole runs."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import jepa
from benchmarks.sweep import read
from jepa import dry_run, evaluate
from jepa.build import RecipeError, build_model
from jepa.convert import ConversionError
from jepa.convert.export import export
from jepa.data import JointInputs, LogMel
from jepa.encoders import JointViT, Patches, ViT
from jepa.explore import ExploreSettings, explorer
from jepa.interfaces import Masker
from jepa.losses import SmoothL1
from jepa.maskers import Curriculum, Joint, JointTask, MultiBlock3D, RandomPatches
from jepa.metrics import read_metrics
from jepa.model import JEPA
from jepa.nn.position import sincos_table
from jepa.nn.rotary import RotaryPosition, rotary_table
from jepa.predictors import ViTPredictor
from jepa.probes.retrieval import explained, joint_embeddings, mapped, recalls
from jepa.recipe import load_recipe
from jepa.report.page import ReportSettings, write_report
from jepa.targets import EMA
from jepa.types import Indices, JepaBatch, JointGrid, Masks, View
from tests.conftest import Ran
from tests.test_distributed import STEPS, assert_same_training, torchrun
from tests.test_report import section
from tests.tiny import losses, weights

Run = Callable[..., Ran]
ROOT = Path(__file__).parent.parent

GRID = JointGrid({"clip": (2, 2, 3), "sound": (4, 2)})
BOTH = JointTask(see=("clip", "sound"), predict=("clip", "sound"))
SOUND_FROM_CLIP = JointTask(see=("clip",), predict=("sound",))

TINY = (
    "recipe=avjepa_tiny",
    "data.size.clip=[8,24,24]",
    "data.size.sound=[64,16]",
    "data.dataset.count=40",
    "data.labelled.train.count=80",
    "data.labelled.test.count=60",
    "data.workers=0",
    "encoder.dim=32",
    "encoder.depth=1",
    "encoder.heads=2",
    "predictor.dim=32",
    "predictor.depth=1",
    "train.samples=null",
    "train.steps=4",
    "train.batch_size=8",
    "train.log_every=1",
)


OWN_INPUTS = """
from torch import nn
from jepa.data import JointInputs


class Own(nn.Module):
    def __init__(self, parts):
        super().__init__()
        self.made_of = JointInputs(parts)

    def forward(self, batch):
        return self.made_of(batch)

    def raw_shape(self, shape):
        return self.made_of.raw_shape(shape)

    def normalize(self, x):
        return self.made_of.normalize(x)
"""


def encoder(**sizes: int) -> JointViT:
    torch.manual_seed(0)
    patches = {"clip": Patches((2, 4, 4), 3), "sound": Patches((4, 4), 1)}
    return JointViT(patches=patches, **{"dim": 24, "depth": 2, "heads": 2, **sizes}).eval()


def inputs(batch: int = 2) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"clip": torch.randn(batch, 3, 4, 8, 12), "sound": torch.randn(batch, 1, 16, 8)}


def masker(tasks: dict[str, JointTask], **maskers: Masker) -> Joint:
    return Joint(maskers={"clip": RandomPatches(), "sound": RandomPatches(), **maskers}, tasks=tasks)


def test_a_joint_grid_is_one_axis_that_knows_its_parts() -> None:
    assert JointGrid({"clip": (2, 2, 3), "sound": (4, 2)}) == GRID
    assert tuple(GRID) == (20,)
    assert JointGrid({"sound": (4, 2), "clip": (2, 2, 3)}) != GRID
    assert JointGrid({"clip": (3, 2, 2), "sound": (4, 2)}) != GRID
    assert (GRID.cells("clip"), GRID.cells("sound")) == (slice(0, 12), slice(12, 20))
    copy = pickle.loads(pickle.dumps(GRID))  # as data workers send it
    assert copy == GRID
    assert hash(copy) == hash(GRID)
    maps = torch.rand(3, 20) > 0.5
    index = Indices.from_maps(maps, GRID)
    assert index.grid is GRID
    assert index.maps().equal(maps)


def test_tokens_do_not_depend_on_what_else_is_kept_out() -> None:
    """A masked view gives the same tokens as attention among its own tokens only, and a modality alone as if the other
    were not kept."""
    model, x = encoder(), inputs()
    grid = model.grid({name: part.shape[2:] for name, part in x.items()})
    assert grid == GRID
    assert model(View(x)).index.complete
    maps = torch.zeros(2, 20, dtype=torch.bool)
    maps[:, GRID.cells("sound")] = True
    kept = model(View(x, Indices.from_maps(maps, GRID)))
    alone = model(View({"sound": x["sound"]}))
    torch.testing.assert_close(kept.x, alone.x)
    assert alone.index.grid == JointGrid({"sound": (4, 2)})
    other = {**x, "clip": torch.randn_like(x["clip"])}
    assert not torch.allclose(model(View(other)).dense()[:, 12:], model(View(x)).dense()[:, 12:])


def test_one_modality_is_a_vit_with_a_vector_added_to_its_positions() -> None:
    model, x = encoder(), inputs()
    plain = ViT(dim=24, depth=2, heads=2, patch_size=(4, 4), in_chans=1, axis_order="first_first").eval()
    state = {name.replace("patch_embed.sound", "patch_embed"): value for name, value in model.state_dict().items()}
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    tokens = plain.patch_embed(x["sound"], Indices.all(2, (4, 2)))
    tokens = tokens + sincos_table(24, (4, 2)).repeat(2, 1) + model.state_dict()["modality.vectors.sound"]
    expected = plain.transformer.intermediates(tokens, plain._embed(View(x["sound"]))[1], [-1])[0]
    torch.testing.assert_close(model(View({"sound": x["sound"]})).x, expected)


def test_inputs_that_do_not_fit_are_refused() -> None:
    model, x = encoder(), inputs()
    with pytest.raises(ValueError, match="joins clip, sound; the input holds depth"):
        model(View({"depth": x["sound"]}))
    with pytest.raises(ValueError, match="modalities by name"):
        model(View(x["sound"]))
    with pytest.raises(ValueError, match="their mask has 2 sets"):
        model(View(x, Indices.all(2, (20,))))
    with pytest.raises(TypeError, match=r"the data has clip, sound; jepa\.encoders\.JointViT"):
        ViT(dim=24, depth=1, heads=2)(View(x))
    predictor = ViTPredictor(embed_dim=24, dim=24, depth=1, heads=2, modalities=("clip", "sound"))
    pictures = ViT(dim=24, depth=1, heads=2, patch_size=4)(View(torch.randn(1, 3, 8, 8)))
    with pytest.raises(TypeError, match="not one of the modalities"):
        predictor(pictures, Indices.all(1, (2, 2)))
    transform = JointInputs({"sound": LogMel(rate=4000, size=(4, 8))})
    with pytest.raises(ValueError, match=r"parts for sound, none for 'clip'"):
        transform(JepaBatch(View(x), []))
    with pytest.raises(ValueError, match="names of their modalities"):
        transform(JepaBatch(View(x["clip"]), []))


def test_a_predictor_tells_modalities_apart() -> None:
    """Two modalities with the same grid and input have the same positions: only the learned vector differs."""
    torch.manual_seed(0)
    patches = {"a": Patches((4, 4), 1), "b": Patches((4, 4), 1)}
    model = JointViT(patches=patches, dim=24, depth=1, heads=2)
    predictor = ViTPredictor(embed_dim=24, dim=24, depth=1, heads=2, modalities=("a", "b"))
    grid = JointGrid({"a": (2, 2), "b": (2, 2)})
    x = torch.randn(1, 1, 8, 8)
    first = Indices.from_maps(torch.tensor([[True] * 4 + [False] * 4]), grid)
    second = Indices.from_maps(torch.tensor([[False] * 4 + [True] * 4]), grid)
    context = model(View({"a": x, "b": x}, first))
    assert not torch.allclose(predictor(context, first).x, predictor(context, second).x)


@pytest.mark.parametrize("names", [("clip",), ("sound",), ("clip", "sound")])
def test_every_parameter_gets_a_gradient_whichever_modalities_there_are(names: tuple[str, ...]) -> None:
    """Processes that train together wait for all of them; and of a hidden one nothing is computed."""
    model, x = encoder(), {name: part for name, part in inputs().items() if name in names}
    predictor = ViTPredictor(embed_dim=24, dim=24, depth=1, heads=2, modalities=("clip", "sound"))
    grid = model.grid({name: part.shape[2:] for name, part in x.items()})
    maps = torch.zeros(2, *grid, dtype=torch.bool)
    maps[:, grid.cells(names[0])] = torch.rand(2, GRID.cells(names[0]).stop - GRID.cells(names[0]).start) < 0.5
    maps[:, grid.cells(names[0]).start] = True
    index, projected = Indices.from_maps(maps, grid), []
    for name in names:
        model._patches(name).proj.register_forward_pre_hook(lambda _, args: projected.append(len(args[0])))
    predictor(model(View(x, index)), index).x.square().sum().backward()
    assert projected == [index.total, 0][: len(names)]
    for part in (model, predictor):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None, name
            if any(other in name for other in {"clip", "sound"} - {names[0]}):
                assert parameter.grad.eq(0).all()


def test_a_masked_view_is_embedded_as_the_whole_is() -> None:
    model, x, maps = encoder(), inputs(), torch.rand(2, 20, generator=torch.Generator().manual_seed(0)) < 0.5
    index = Indices.from_maps(maps, GRID)
    assert index.parts == (int(maps[:, :12].sum()), int(maps[:, 12:].sum()))
    expected = model._embed(View(x))[0].view(2, 20, -1)[maps]
    assert model._embed(View(x, index))[0].equal(expected)
    uncounted = replace(index, parts=())
    assert model._embed(View(x, uncounted))[0].equal(expected)


def test_rotary_positions_are_those_of_each_grid() -> None:
    rotary = RotaryPosition(12)
    found, alone = rotary(Indices.all(2, GRID)), [rotary_table(12, grid) for grid in GRID.parts.values()]
    for factors, tables in zip(found, zip(*alone, strict=True), strict=True):
        assert factors.equal(torch.cat(tables).repeat(2, 1))
    predictor = ViTPredictor(embed_dim=24, dim=24, depth=1, heads=2, modalities=("clip", "sound"), position="rope")
    assert predictor(encoder()(View(inputs())), Indices.all(2, GRID)).x.isfinite().all()


def test_a_predictor_is_told_the_modalities() -> None:
    """By a recipe; one that is made by hand says so where it was not."""
    recipe = load_recipe([*TINY, "predictor.modalities=[]"])
    assert [*build_model(recipe).predictor.modality.vectors] == ["clip", "sound"]
    tokens, query = encoder()(View(inputs())), Indices.all(2, GRID)
    with pytest.raises(ValueError, match=r"needs modalities=\['clip', 'sound'\]"):
        ViTPredictor(embed_dim=24, dim=24, depth=1, heads=2)(tokens, query)
    with pytest.raises(ValueError, match="the grid joins clip, sound; the modalities here are clip, smell"):
        ViTPredictor(embed_dim=24, dim=24, depth=1, heads=2, modalities=("clip", "smell"))(tokens, query)


def test_tasks_within_and_across_modalities() -> None:
    tasks = {"both": BOTH, "across": SOUND_FROM_CLIP, "clip": JointTask(see=("clip",), predict=("clip",))}
    clip = GRID.cells("clip")
    both, across, within = masker(tasks).sample(64, GRID, torch.Generator().manual_seed(0))
    for task in (both, across, within):
        assert isinstance(task, Masks)
        assert not (task.context[:, None] & task.targets).any()
    assert both.targets.shape == (64, 2, 20)
    assert (both.context | both.targets.any(1)).all()
    assert across.context[:, clip].all()
    assert not across.context[:, 12:].any()
    assert across.targets.equal(both.targets[:, 1:])  # a modality is masked once for all tasks
    assert within.context[:, clip].equal(both.context[:, clip])
    assert not within.context[:, 12:].any()
    again = masker(tasks).sample(64, GRID, torch.Generator().manual_seed(0))
    assert all(a.context.equal(b.context) for a, b in zip((both, across, within), again, strict=True))


def test_a_curriculum_of_one_modality_goes_on() -> None:
    still = masker({"both": BOTH})
    assert still.at(0.5) is still
    change = Curriculum(first=RandomPatches(target_ratio=(0.25, 0.25)), then=RandomPatches(target_ratio=(0.75, 0.75)))
    drawn = [
        masker({"both": BOTH}, sound=change).at(progress).sample(8, GRID, torch.Generator().manual_seed(0))[0]
        for progress in (0.0, 1.0)
    ]
    found = [masks.targets[:, 1].sum(1).float().mean() for masks in drawn]
    assert found[1] == 6
    assert found[0] < 6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: masker({}), "needs at least one"),
        (lambda: masker({"x": JointTask(see=(), predict=("clip",))}), r"tasks\.x sees \[\]"),
        (lambda: masker({"x": JointTask(see=("clip",), predict=("smell",))}), "one or more of clip, sound"),
        (lambda: masker({"both": BOTH}).check((20,)), "the encoder's grid is"),
        (lambda: masker({"both": BOTH}).check(JointGrid({"clip": (2, 2, 3)})), "given for clip, sound"),
        (lambda: masker({"x": BOTH}, clip=MultiBlock3D()).check(JointGrid({"clip": (4, 2), "sound": (4, 2)})), "clip:"),
        (
            lambda: masker({"x": BOTH}, clip=MultiBlock3D()).sample(
                2, JointGrid({"clip": (2, 8, 8), "sound": (4, 2)}), torch.Generator()
            ),
            "does not pose one task",
        ),
    ],
)
def test_maskers_refuse_what_they_cannot_do(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_explained() -> None:
    torch.manual_seed(0)
    target = torch.randn(200, 3) * torch.tensor([2.0, 1.0, 1.0]) + 5
    guess = torch.stack((target[:, 0], *target.mean(0)[1:].expand(200, 2).T), dim=1)
    variance = target.var(0)
    assert explained(guess, target) == pytest.approx(float(variance[0] / variance.sum()), abs=1e-5)
    assert explained(target.mean(0).expand_as(target), target) == pytest.approx(0, abs=1e-6)
    assert explained(target.roll(1, 0), target) < -0.5
    assert explained(target, torch.full_like(target, 0.3)) == 0.0


def test_recalls() -> None:
    torch.manual_seed(0)
    a = torch.randn(200, 16)
    assert recalls(a, 3 * a + 5) == {1: 1.0, 5: 1.0, 10: 1.0}
    found = recalls(a, torch.randn(200, 16))
    assert found[1] < 0.05
    assert found[10] == pytest.approx(0.05, abs=0.05)
    turn = torch.linalg.qr(torch.randn(16, 16))[0]
    forth, back = mapped((a[:150], a[:150] @ turn), (a[150:], a[150:] @ turn), 0)
    assert min(forth[1], back[1]) > 0.95
    assert recalls(a[150:], a[150:] @ turn)[1] < 0.3  # without the map
    with pytest.raises(ValueError, match="10 rows or more"):
        recalls(a[:4], a[:4])


def test_the_better_of_two_maps_is_chosen() -> None:
    """Most of the other modality is nothing that the one knows of, but it determines the one."""
    torch.manual_seed(0)
    one = torch.randn(600, 4)
    other = torch.cat((one, 3 * torch.randn(600, 60)), dim=1) @ torch.linalg.qr(torch.randn(64, 64))[0]
    train, test = (one[:400], other[:400]), (one[400:], other[400:])
    forth, back = mapped(train, test, 0)
    assert min(forth[10], back[10]) > 0.9
    assert mapped(train[::-1], test[::-1], 0) == (back, forth)
    nothing = torch.ones(600, 4)
    forth, back = mapped((nothing[:400], train[1]), (nothing[400:], test[1]), 0)
    assert forth == pytest.approx({1: 0.005, 5: 0.025, 10: 0.05}) == back
    train[0][5, 1] = torch.nan
    with pytest.raises(ValueError, match="1 of 400 feature rows hold NaN or infinity"):
        mapped(train, test, 0)


def test_embeddings_that_are_all_one_find_no_more_than_chance() -> None:
    a, chance = torch.randn(200, 16), {1: 0.005, 5: 0.025, 10: 0.05}
    one = a[:1].expand(200, 16)
    for query, bank in ((one, one), (a, one), (one, a), (0.1 * one.double(), one.double())):
        assert recalls(query, bank) == pytest.approx(chance)
    pairs = a[:100].repeat(2, 1)  # each is there twice
    assert recalls(pairs, pairs) == pytest.approx({1: 0.5, 5: 1, 10: 1})
    broken = a.clone()
    broken[3, 2] = torch.nan
    for query, bank in ((broken, a), (a, broken)):
        with pytest.raises(ValueError, match="1 of 200 feature rows hold NaN or infinity"):
            recalls(query, bank)


def test_a_dry_run_of_clips_and_sound() -> None:
    text = dry_run.describe(load_recipe(["recipe=avjepa_tiny", "dry_run=true"]))
    assert "clip 4 x 4 x 4 + sound 8 x 4 = 96 tokens" in text
    assert re.search(r"task 1 +context 26.0 tokens .*, 2 target sets of 28.5 \(19 to 38\)", text)


def test_a_joint_run_trains_goes_on_exactly_and_is_probed(
    tmp_path: Path, jepa_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """From MP4 files, read by a worker."""
    files = [*(a for a in TINY if not a.startswith("data.workers")), f"data.root={tmp_path}/films", "data.workers=1"]
    command = [*files, f"run_dir={tmp_path / 'run'}", "train.checkpoint_every=2", "train.watch_every=2"]
    ran = jepa_run(*command)
    assert ran.status == 0, ran.err
    assert len(list((tmp_path / "films").glob("train_*/*.mp4"))) == 40
    run_dir = tmp_path / "run"
    assert (run_dir / "masks.png").exists()
    expected, trained = losses(run_dir), weights(run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "step_00000004")
    assert jepa_run(*command).status == 0
    assert losses(run_dir) == expected
    assert all(value.equal(trained[key]) for key, value in weights(run_dir).items())
    assert {"target_rank", "agreement_gain", "position_share"} <= read_metrics(run_dir / "metrics.jsonl")[-1].keys()

    pretrained = jepa.load(run_dir)
    x = {"clip": torch.randint(256, (3, 3, 8, 24, 24), dtype=torch.uint8), "sound": torch.randn(3, 1, 16_000) / 8}
    assert pretrained.features(x).shape == (3, 32)
    assert pretrained.features({"sound": x["sound"]}, pool="none").shape == (3, 4, 32)
    with pytest.raises(ConversionError, match=r"as=export writes encoders of one input, this one joins clip, sound"):
        export(pretrained, tmp_path / "encoder.pt2", "export")
    with pytest.raises(RecipeError, match="explorer shows models of one modality"):
        explorer(ExploreSettings(run=str(run_dir)))

    assert evaluate.main([f"run={run_dir}", "probes=[regression,retrieval]", "sources=[model,random_init]"]) == 0
    table = capsys.readouterr().out
    ways = ("retrieval, linear map", "retrieval, predictor")
    for words in ("sound of clip", "clip of sound", *ways, "recall@10", "regression sound"):
        assert words in table
    assert "pixels" not in (run_dir / "evaluation.json").read_text()
    rows = json.loads((run_dir / "evaluation.json").read_text())
    assert {
        (r["task"], r["features"]) for r in rows if r["probe"] == "retrieval, predictor" and r["metric"] == "r2"
    } == {(task, source) for task in ("sound of clip", "clip of sound") for source in ("model", "chance")}
    page = write_report(ReportSettings(run=str(run_dir), samples=16)).read_text()
    for words in ("What is hidden and asked: sound", "Nearest neighbours: clip", "Task from_clip, in numbers"):
        assert words.lower() in page.lower()
    for k in (1, 5, 10):
        assert f"sound of clip, retrieval, predictor (recall@{k})" in section(page, "probes")
    for name in ("clip", "sound"):  # what is heard with a clip is played beside it
        assert section(page, f"neighbours_{name}").count("<audio ") == 8 * 7
    assert page.count("<audio ") == 2 * 8 * 7


def test_a_batch_transform_of_ones_own_is_reported_on(
    tmp_path: Path, jepa_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not say which modality is a sound: nothing is played, and spectrograms are shown as they lie."""
    (tmp_path / "strangers_inputs.py").write_text(OWN_INPUTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = "data.batch_transform._target_=strangers_inputs.Own"
    ran = jepa_run(*TINY, own, "train.steps=1", f"run_dir={tmp_path / 'run'}")
    assert ran.status == 0, ran.err
    assert "features({'clip': clips, 'sound': sounds})" in ran.out
    page = write_report(ReportSettings(run=str(tmp_path / "run"), samples=16, trust=("strangers_inputs",))).read_text()
    assert "<audio" not in page
    assert "Nearest neighbours: sound" in page


FILMS = ROOT / "benchmarks" / "small_data" / "films.yaml"
OTHER = {"clip": "sound", "sound": "clip"}


@pytest.mark.parametrize(("arm", "name"), [("clips alone", "clip"), ("sounds alone", "sound")])
def test_one_modality_of_films_trains_and_is_probed_alone(
    arm: str, name: str, tmp_path: Path, jepa_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """The baselines of benchmarks/small_data/films.yaml: the other modality is never seen."""
    sweep = read([str(FILMS)])
    smaller = ["data.dataset.size=[24,24]", "data.dataset.frames=8"]
    command = [a for a in TINY if f"data.size.{OTHER[name]}" not in a]
    sizes = ["data.batch_transform.parts.sound.size=[64,16]"] if name == "clip" else []
    ran = jepa_run(*command, *sweep.arms[arm], *smaller, *sizes, "train.steps=2", f"run_dir={tmp_path}")
    assert ran.status == 0, ran.err
    pretrained = jepa.load(tmp_path)
    fresh = pretrained.encoder("context").state_dict()
    x = {"clip": torch.randint(256, (3, 3, 8, 24, 24), dtype=torch.uint8), "sound": torch.randn(3, 1, 16_000) / 8}
    assert pretrained.features({name: x[name]}).isfinite().all()
    assert set(pretrained.recipe["data"]["size"]) == {name}
    assert fresh[f"patch_embed.{OTHER[name]}.proj.bias"].eq(0).all()  # as it was: nothing went through it
    assert not fresh[f"patch_embed.{name}.proj.bias"].eq(0).all()

    assert evaluate.main([f"run={tmp_path}", *sweep.probing(arm), "probes=[regression]", "limit=60"]) == 0
    written = (tmp_path / "evaluation.json").read_text()
    probes = {row["probe"] for row in json.loads(written)}
    assert {"regression", f"regression {name}"} <= probes
    assert not any(OTHER[name] in probe for probe in probes)
    assert "retrieval" in sweep.probing("shipped")[0] + sweep.probing(arm)[0]
    assert "retrieval" not in sweep.probing(arm)[-1]
    capsys.readouterr()
    assert evaluate.main([f"run={tmp_path}", "probes=[retrieval]", "limit=60"]) == 1
    assert (
        f"one modality is to be found by another, but data.eval_transform leaves {name} only" in capsys.readouterr().err
    )
    assert (tmp_path / "evaluation.json").read_text() == written


def test_every_arm_of_films_resolves() -> None:
    sweep = read([str(FILMS)])
    for overrides in sweep.arms.values():
        assert load_recipe([f"recipe={sweep.recipe}", *overrides])["recipe"] == "avjepa_tiny"


def test_one_modality_is_asked_from_another_as_its_own_task() -> None:
    across = {"from_clip": SOUND_FROM_CLIP, "both": BOTH, "from_sound": JointTask(see=("sound",), predict=("clip",))}
    posing = masker(across)
    assert (posing.asks("clip", "sound"), posing.asks("sound", "clip")) == (0, 2)
    assert masker({"both": BOTH, "from_clip": SOUND_FROM_CLIP}).asks("sound", "clip") == 0
    torch.manual_seed(0)
    predictor = ViTPredictor(embed_dim=24, dim=24, depth=1, heads=2, modalities=("clip", "sound"), mask_tokens=3)
    model = JEPA(encoder=encoder(), predictor=predictor, target=EMA(start=0.9, end=0.9), criterion=SmoothL1()).eval()
    x, found = inputs(), {}
    for number in range(3):
        encode = joint_embeddings(model.encoder, lambda x: x, model, lambda seen, asked, number=number: number)
        found[number] = encode(x)["clip from sound"]
    told = joint_embeddings(model.encoder, lambda x: x, model, posing.asks)(x)
    assert told["clip from sound"].equal(found[2])
    steps, rows, columns = model.encoder.grid({name: part.shape[2:] for name, part in x.items()}).parts["clip"]
    alone = model.encoder(View({"clip": x["clip"]})).dense().view(len(x["clip"]), steps, rows * columns, -1)
    torch.testing.assert_close(told["clip in time"], alone.mean(2).flatten(1))
    assert told["clip from sound"].shape == told["clip in time"].shape
    target = model.targets(View(x)).dense()[:, : steps * rows * columns].view(len(x["clip"]), steps, rows * columns, -1)
    torch.testing.assert_close(told["clip as target"], target.mean(2).flatten(1))
    assert not torch.allclose(found[2], found[0])
    with pytest.raises(ValueError, match="leaves clip only"):
        joint_embeddings(model.encoder, lambda x: x)({"clip": x["clip"]})


def test_two_processes_train_on_clips_and_sound_as_one(tmp_path: Path, jepa_run: Run) -> None:
    command = [*TINY, *STEPS, "train.accumulate=1"]
    ran = torchrun(*command, f"run_dir={tmp_path / 'two'}")
    assert ran.returncode == 0, ran.stderr
    assert jepa_run(*command, f"run_dir={tmp_path / 'one'}").status == 0
    assert_same_training(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("encoder=vit_micro", "the data has several modalities (clip, sound), ViT takes one"),
        ("encoder.patches.sound.in_chans=2", "the data has 1 channels: set encoder.patches.sound.in_chans=1"),
        ("data.size.sound=[60,16]", "60 frames need waveforms"),
        (
            "predictor.modalities=[clip,smell]",
            "predictor.modalities=['clip', 'smell'], but the encoder joins clip, sound",
        ),
        ("masker.tasks.from_clip.see=[clip,smell]", "tasks.from_clip sees ['clip', 'smell']"),
        ("data.size.clip=[2,24,24]", "need count >= 1"),
        (
            "data.transform={_target_: jepa.data.keep_modalities, names: [clp, sound]}",
            "data.transform or data.eval_transform names 'clp', the samples have clip, sound",
        ),
    ],
)
def test_clear_errors(change: str, message: str, tmp_path: Path, jepa_run: Run) -> None:
    ran = jepa_run(*[a for a in TINY if a.partition("=")[0] != change.partition("=")[0]], change, f"run_dir={tmp_path}")
    assert ran.status == 1
    assert message in ran.err
