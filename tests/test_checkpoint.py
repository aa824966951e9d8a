"""A checkpoint is complete or not there, whatever happens while it is written, and damage is noticed."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from jepa import checkpoint
from jepa.checkpoint import MODEL, OPTIMIZER, PROBE, STATE, CheckpointError
from jepa.optim import adamw
from tests.conftest import Ran
from tests.tiny import TINY, losses, steps_kept

Run = Callable[..., Ran]


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the program runs after it."""


def trained(steps: int, width: int = 6) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
    optimizer = adamw(model)
    for _ in range(min(steps, 9)):
        model(torch.randn(3, width)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def save(folder: Path, step: int, width: int = 6) -> tuple[Path, int]:
    return checkpoint.save(
        folder, step, *trained(step, width), {"fingerprint": "data", "samples": step}, {"seen": torch.ones(9)}
    )


def assert_newest_is(folder: Path, step: int) -> None:
    found = checkpoint.newest_usable(folder)
    assert found is not None
    path, state = found
    assert (path.name, state["step"], state["samples"]) == (f"step_{step:08d}", step, step)
    expected, expected_optimizer = trained(step)
    model, optimizer = trained(0)
    assert checkpoint.load(path, model, optimizer)["seen"].tolist() == [1] * 9
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    ours, theirs = (checkpoint.optimizer_tensors(o) for o in (optimizer, expected_optimizer))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@contextmanager
def stopping_at(number: int, error: BaseException, after: bool) -> Iterator[list[str]]:
    """The error is raised at, or right after, the given call of those that touch the disk. Yields the calls made."""
    calls: list[str] = []

    def fused(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            result = original(*args, **kwargs) if after or len(calls) != number else None
            if len(calls) == number:
                raise error
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        for place, name in [
            (checkpoint, "save_file"),
            (Path, "mkdir"),
            (Path, "write_text"),
            (Path, "rename"),
            (os, "fsync"),
            (shutil, "rmtree"),
        ]:
            patch.setattr(place, name, fused(name, getattr(place, name)))
        yield calls


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("error", [Killed(), OSError(errno.ENOSPC, "No space left on device")], ids=["kill", "error"])
def test_a_crash_at_any_moment_leaves_the_last_complete_one(tmp_path: Path, error: BaseException, after: bool) -> None:
    number, finished = 0, False
    while not finished:
        number += 1
        folder = tmp_path / str(number)
        save(folder, 1)
        try:
            with stopping_at(number, error, after) as calls:
                save(folder, 2)
                checkpoint.prune(folder, 2, keep_last=1, keep_every=None)
            finished = True
        except CheckpointError as raised:
            wrong = [word for word in ("step 2", "GB free") if word not in str(raised)]
            assert not wrong
            assert not list(folder.glob(f"{checkpoint.UNFINISHED}*"))
        except (Killed, OSError):
            pass
        newest = [path.name for path in checkpoint.complete(folder)][-1]
        assert_newest_is(folder, 2 if newest == "step_00000002" else 1)
        save(folder, 3)  # and the run goes on from there
        checkpoint.prune(folder, 3, keep_last=1, keep_every=None)
        assert_newest_is(folder, 3)
        assert [path.name for path in folder.iterdir()] == ["step_00000003"]
    assert number > 10
    assert {"save_file", "mkdir", "write_text", "rename", "fsync", "rmtree"} == set(calls)


def test_nothing_is_renamed_before_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    flush, rename = checkpoint._flush, Path.rename
    monkeypatch.setattr(checkpoint, "_flush", lambda path: (events.append(path.name), flush(path)))
    monkeypatch.setattr(Path, "rename", lambda old, new: (events.append("rename"), rename(old, new))[1])
    save(tmp_path, 1)
    assert set(events[: events.index("rename")]) == {MODEL, OPTIMIZER, PROBE, STATE, ".unfinished_00000001"}
    assert events[-1] == tmp_path.name


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 300, 3000])
def test_a_file_that_cannot_grow_is_one_error(tmp_path: Path, room: int) -> None:
    save(tmp_path, 1)
    with files_limited_to(room), pytest.raises(CheckpointError, match="could not write the checkpoint of step 2"):
        save(tmp_path, 2, width=60)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    assert_newest_is(tmp_path, 1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount a small disk here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_run_on_a_disk_that_fills_up(small_disk: Path, jepa_run: Run) -> None:
    run_dir = small_disk / "run"
    command = [*TINY, f"run_dir={run_dir}", "train.checkpoint_every=1", "train.keep_last=9", "train.steps=6"]
    ran = jepa_run(*command)
    assert ran.status == 1
    assert ran.err.count("error: could not write the checkpoint of step") == 1
    assert "Traceback" not in ran.err
    kept = steps_kept(run_dir)
    assert 1 <= len(kept) < 6
    assert [path.name for path in (run_dir / "checkpoints").iterdir() if "step_" not in path.name] == []
    ran = jepa_run(*command, "train.keep_last=1")
    assert ran.status == 1  # there is still no room for another one
    assert steps_kept(run_dir) == kept
    for step in kept[:-1]:
        shutil.rmtree(run_dir / "checkpoints" / f"step_{step:08d}")
    assert jepa_run(*command, "train.keep_last=1").status == 0
    assert steps_kept(run_dir) == [6]
    assert list(losses(run_dir)) == [1, 2, 3, 4, 5, 6]


def flip(path: Path, position: float) -> None:
    data = bytearray(path.read_bytes())
    at = int(position * (len(data) - 1))
    data[at] ^= 0x01
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("position", [0.0, 0.3, 0.62, 1.0])
@pytest.mark.parametrize("name", [MODEL, OPTIMIZER, PROBE, STATE])
def test_a_flipped_bit_is_noticed(tmp_path: Path, name: str, position: float, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 1)
    path, _ = save(tmp_path, 2)
    flip(path / name, position)
    assert_newest_is(tmp_path, 1)
    assert str(path / name) in caplog.text
    flip(tmp_path / "step_00000001" / name, position)
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        checkpoint.newest_usable(tmp_path)


def test_no_flipped_bit_of_the_state_changes_what_is_read(tmp_path: Path) -> None:
    path, _ = save(tmp_path, 7)
    written, whole, noticed = checkpoint.read_state(path), (path / STATE).read_bytes(), 0
    for at in range(len(whole)):
        (path / STATE).write_bytes(whole[:at] + bytes([whole[at] ^ 0x01]) + whole[at + 1 :])
        try:
            assert checkpoint.read_state(path) == written
        except CheckpointError:
            noticed += 1
    assert noticed > len(whole) / 2  # others are white space


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"step": 2}'])
def test_a_state_of_another_kind_is_damage(tmp_path: Path, text: str) -> None:
    path, _ = save(tmp_path, 2)
    (path / STATE).write_text(text)
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        checkpoint.newest_usable(tmp_path)


def test_a_missing_file_is_damage(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path, _ = save(tmp_path, 2)
    (path / OPTIMIZER).unlink()
    assert_newest_is(tmp_path, 1)


def test_folders_of_other_names_are_left_alone(tmp_path: Path) -> None:
    path, _ = save(tmp_path, 3)
    for name in ("step_best", "step_00000009_copy"):
        shutil.copytree(path, tmp_path / name)
    save(tmp_path, 123456789)
    assert [checkpoint.step_of(path) for path in checkpoint.complete(tmp_path)] == [3, 123456789]
    checkpoint.prune(tmp_path, 123456789, keep_last=1, keep_every=None)
    assert {path.name for path in tmp_path.iterdir()} == {"step_123456789", "step_best", "step_00000009_copy"}


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "kept"),
    [(1, None, [8]), (3, None, [6, 7, 8]), (20, None, list(range(1, 9))), (2, 3, [3, 6, 7, 8]), (1, 4, [4, 8])],
)
def test_retention(tmp_path: Path, keep_last: int, keep_every: int | None, kept: list[int]) -> None:
    for step in range(1, 9):
        save(tmp_path, step)
        checkpoint.prune(tmp_path, step, keep_last, keep_every)
    assert [checkpoint.step_of(path) for path in checkpoint.complete(tmp_path)] == kept


def test_a_damaged_later_one_never_costs_the_new_one(tmp_path: Path) -> None:
    save(tmp_path, 1)
    damaged, _ = save(tmp_path, 9)
    flip(damaged / MODEL, 0.9)
    assert_newest_is(tmp_path, 1)
    save(tmp_path, 2)
    checkpoint.prune(tmp_path, 2, keep_last=1, keep_every=None)
    assert_newest_is(tmp_path, 2)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path, _ = save(tmp_path, 1)
    wide, optimizer = trained(1, width=7)
    with pytest.raises(CheckpointError, match=r"of another shape or type \['[01]\.(weight|bias) torch\.float32 \(6"):
        checkpoint.load(path, wide, optimizer)
    with pytest.raises(CheckpointError, match=r"1 keys missing \['2\.weight'\], 0 not used"):
        checkpoint.load_weights(path / MODEL, nn.Sequential(*trained(0)[0], nn.Linear(6, 6, bias=False)))
    with pytest.raises(CheckpointError, match="unknown parameters"):
        checkpoint.load_optimizer(adamw(nn.Linear(6, 6)), checkpoint.load_file(path / OPTIMIZER))


def test_tied_weights_are_written(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    path, _ = checkpoint.save(tmp_path, 1, model, adamw(model), {}, {})
    fresh = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    checkpoint.load_weights(path / MODEL, fresh)
    assert torch.equal(fresh[0].weight, fresh[1].weight)


def test_state_says_what_was_written(tmp_path: Path) -> None:
    path, size = save(tmp_path, 4)
    state = json.loads((path / STATE).read_text())
    assert state["files"][MODEL]["bytes"] == (path / MODEL).stat().st_size
    assert size == sum((path / name).stat().st_size for name in (MODEL, OPTIMIZER, PROBE))
