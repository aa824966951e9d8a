"""Starting a run from another's weights: each mode does what it says, and says what it did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import jepa
from jepa import checkpoint, run
from jepa.adapt import inflate, interpolate
from jepa.checkpoint import CheckpointError
from jepa.convert import write
from jepa.types import View
from tests.conftest import Ran, forget_accelerate
from tests.tiny import TINY, losses, weights

Run = Callable[..., Ran]
BASE = [*TINY, "train.steps=6", "train.checkpoint_every=3", "train.keep_last=5"]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("first")
    forget_accelerate()
    assert run.main([*BASE, f"run_dir={path}"]) == 0
    forget_accelerate()
    return path


def optimizer(run_dir: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load_file(checkpoint.complete(run_dir / "checkpoints")[-1] / checkpoint.OPTIMIZER)


def updates(run_dir: Path) -> set[float]:
    return {float(value) for key, value in optimizer(run_dir).items() if key.endswith(":step")}


def test_resume_goes_on_exactly(first: Path, tmp_path: Path, jepa_run: Run) -> None:
    half = tmp_path / "half"
    assert jepa_run(*BASE, f"run_dir={half}").status == 0
    later = next(p for p in checkpoint.complete(half / "checkpoints") if checkpoint.step_of(p) == 6)
    (later / checkpoint.MODEL).write_bytes(b"damaged")  # so that the checkpoint of step 3 is the newest usable
    ran = jepa_run(*BASE, f"init_from={half}", "init_mode=resume", f"run_dir={tmp_path / 'new'}")
    assert ran.status == 0, ran.err
    assert f"resumed {half}, step 3" in ran.log
    assert losses(tmp_path / "new") == {step: loss for step, loss in losses(first).items() if step > 3}
    ours, theirs = weights(tmp_path / "new"), weights(first)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    ran = jepa_run(*BASE, "train.steps=9", f"init_from={first}", "init_mode=resume", f"run_dir={tmp_path / 'other'}")
    assert ran.status == 1
    assert "init_mode=resume needs the recipe of" in ran.err
    assert "train.steps: 6 -> 9" in ran.err


@pytest.mark.parametrize(("mode", "counted"), [("continue", {1.0}), ("anneal", {7.0})])
def test_weights_with_and_without_their_optimiser(
    mode: str, counted: set[float], first: Path, tmp_path: Path, jepa_run: Run
) -> None:
    """At a learning rate of zero the weights stay: what the new run holds is what it began with."""
    still = ["optim.lr.start=0", "optim.lr.peak=0", "optim.lr.end=0", "train.steps=1", "target.start=1.0"]
    ran = jepa_run(*BASE, *still, f"init_from={first}", f"init_mode={mode}", f"run_dir={tmp_path}")
    assert ran.status == 0, ran.err
    ours, theirs = weights(tmp_path), weights(first)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert updates(tmp_path) == counted
    said = {"continue": f"weights of {first}, step 6", "anneal": f"weights and optimiser of {first}, step 6"}[mode]
    assert (tmp_path / "init.txt").read_text() == said + "\n"
    key = "encoder.patch_embed.proj.weight:exp_avg_sq"
    grown = optimizer(tmp_path)[key].sum() > 0.9 * optimizer(first)[key].sum()
    assert bool(grown) == (mode == "anneal")  # decays by 0.999 a step, and by all of it where it began anew


def test_the_same_command_resumes_what_was_begun_from_weights(first: Path, tmp_path: Path, jepa_run: Run) -> None:
    command = [*BASE, f"init_from={first}", "init_mode=continue", f"run_dir={tmp_path}"]
    assert jepa_run(*command).status == 0
    before = losses(tmp_path)
    for path in checkpoint.complete(tmp_path / "checkpoints"):
        if checkpoint.step_of(path) == 6:
            (path / checkpoint.MODEL).write_bytes(b"")
    ran = jepa_run(*command)
    assert "resumed after step 3 of 6" in ran.log
    assert "start:" not in ran.log
    assert losses(tmp_path) == before


def test_adapt_lists_what_it_changed(first: Path, tmp_path: Path, jepa_run: Run) -> None:
    ran = jepa_run(
        *BASE,
        "encoder.patch_size=4",
        "optim.lr.start=0",
        "optim.lr.peak=0",
        "optim.lr.end=0",
        "train.steps=1",
        f"init_from={first}",
        "init_mode=adapt",
        f"run_dir={tmp_path}",
    )
    assert ran.status == 0, ran.err
    lines = (tmp_path / "init.txt").read_text().splitlines()
    assert lines[:2] == [f"adapted {first}, step 6", "encoder.patch_size: 8 -> 4"]
    assert lines[2:] == [
        f"{part}.patch_embed.proj.weight: patches [3, 8, 8] made [3, 4, 4] (channels, then sizes)"
        for part in ("encoder", "target_encoder")
    ]
    ours, theirs = weights(tmp_path), weights(first)
    assert [key for key in theirs if ours[key].shape != theirs[key].shape] == [
        "encoder.patch_embed.proj.weight",
        "target_encoder.patch_embed.proj.weight",
    ]
    kept = [key for key in theirs if key.startswith("predictor.")]
    assert kept
    assert all(torch.equal(ours[key], theirs[key]) for key in kept)


def test_a_folder_without_predictor_starts_one_anew(first: Path, tmp_path: Path, jepa_run: Run) -> None:
    write(jepa.load(first), tmp_path / "hf", "hf", which="target")
    model, _ = jepa.convert.read(tmp_path / "hf", "hf")
    write(model, tmp_path / "folder")
    command = [*BASE, f"init_from={tmp_path / 'folder'}", f"run_dir={tmp_path / 'run'}", "train.steps=1"]
    ran = jepa_run(*command, "init_mode=continue")
    assert "predictor: jepa.predictors.NoPredictor -> jepa.predictors.ViTPredictor" in ran.err
    ran = jepa_run(*command, "init_mode=anneal")
    assert "init_mode=anneal needs a run directory" in ran.err
    ran = jepa_run(*command, "init_mode=adapt")
    assert ran.status == 0, ran.err
    assert "predictor: starts anew" in ran.log
    assert "target_encoder: a copy of the source's only encoder" in ran.log


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["init_from=PATH"], "go together; modes: resume, continue, anneal, adapt"),
        (["init_mode=continue"], "go together"),
        (["init_from=PATH", "init_mode=cooldown"], "init_mode='cooldown'"),
        (["init_from=PATH", "init_mode=continue", "encoder.heads=4"], "encoder.heads: 2 -> 4"),
        (["init_from=PATH", "init_mode=anneal", "encoder.patch_size=4"], "init_mode=adapt takes other inputs"),
        (["init_from=PATH", "init_mode=adapt", "encoder.dim=64"], "only patches, channels, learned positions"),
        (["init_from=PATH", "init_mode=adapt", "encoder.depth=2"], "width, depth and kind of encoder must be the same"),
        (["init_from=/nowhere", "init_mode=continue"], "/nowhere is not a run directory"),
    ],
)
def test_what_cannot_be_started_from_is_refused(
    arguments: list[str], said: str, first: Path, tmp_path: Path, jepa_run: Run
) -> None:
    given = [argument.replace("PATH", str(first)) for argument in arguments]
    ran = jepa_run(*BASE, *given, f"run_dir={tmp_path}")
    assert ran.status == 1
    assert said in ran.err
    assert not (tmp_path / "checkpoints").exists()


def respond(kernel: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return kernel.flatten(1) @ x.flatten()


def test_inflated_patches_answer_as_before() -> None:
    torch.manual_seed(0)
    kernel = torch.randn(5, 3, 8, 8)
    still = torch.randn(3, 8, 8)
    clip = still[:, None].expand(3, 2, 8, 8)
    made = inflate(kernel, (3, 2, 8, 8))
    torch.testing.assert_close(respond(made, clip), respond(kernel, still))
    torch.testing.assert_close(inflate(made, (3, 8, 8)), kernel)
    longer = inflate(made, (3, 4, 8, 8))
    torch.testing.assert_close(respond(longer, still[:, None].expand(3, 4, 8, 8)), respond(kernel, still))
    grey = still[:1]
    torch.testing.assert_close(
        respond(inflate(kernel, (7, 8, 8)), grey.expand(7, 8, 8)), respond(kernel, grey.expand(3, 8, 8))
    )
    torch.testing.assert_close(respond(inflate(kernel, (1, 8, 8)), grey), respond(kernel, grey.expand(3, 8, 8)))
    flat = torch.full((3, 8, 8), 0.7)
    large = inflate(kernel, (3, 16, 16))
    torch.testing.assert_close(
        respond(large, torch.full((3, 16, 16), 0.7)), respond(kernel, flat), rtol=1e-3, atol=1e-2
    )
    with pytest.raises(CheckpointError, match="cannot be made"):
        inflate(torch.randn(5, 3, 8), (3, 2, 8, 8))


def test_interpolated_positions() -> None:
    rows = torch.arange(4.0).repeat_interleave(4)[:, None].expand(16, 6)
    assert torch.equal(interpolate(rows, (4, 4), (4, 4)), rows)
    finer = interpolate(rows, (4, 4), (8, 4)).view(8, 4, 6)
    assert torch.equal(finer[:, 0, 0], torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]))
    clip = interpolate(rows, (4, 4), (3, 4, 4)).view(3, 16, 6)
    assert all(torch.equal(frame, rows) for frame in clip)
    with pytest.raises(CheckpointError, match="cannot serve"):
        interpolate(rows, (4, 4), (16,))


def test_learned_positions_and_size_are_adapted(tmp_path: Path, jepa_run: Run) -> None:
    learned = ["encoder.position=learned", "encoder.grid_size=[4,4]"]
    assert jepa_run(*BASE, *learned, f"run_dir={tmp_path / 'small'}").status == 0
    other = ["encoder.position=learned", "encoder.grid_size=[8,8]", "data.size=64", "train.steps=1"]
    ran = jepa_run(*BASE, *other, f"init_from={tmp_path / 'small'}", "init_mode=adapt", f"run_dir={tmp_path / 'large'}")
    assert ran.status == 0, ran.err
    assert "encoder.position.table: positions interpolated from [4, 4] to [8, 8]" in ran.log
    assert jepa.load(tmp_path / "large").encoder()(View(torch.zeros(1, 3, 64, 64))).x.shape == (64, 32)
