"""Checkpoints that are either complete or not there.

A checkpoint is a folder `step_XXXXXXXX` with three safetensors files (model, optimizer, probe) and `state.json`. It is
written under another name, flushed to the disk and renamed, so that a crash at any moment leaves the last complete one
usable. `state.json` holds the size and SHA-256 of the other files, and the SHA-256 of its own contents: a byte that
flipped is noticed before it is used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

log = logging.getLogger(__name__)

MODEL, OPTIMIZER, PROBE, STATE = "model.safetensors", "optimizer.safetensors", "probe.safetensors", "state.json"
PREFIX, UNFINISHED = "step_", ".unfinished_"
NUMBERS = {bool: torch.bool, int: torch.int64, float: torch.float64}


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or used. The message names the file and what to do."""


def save(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    probe: Mapping[str, Tensor],
) -> tuple[Path, int]:
    """Write the checkpoint of `step` into `folder`.

    Args:
        state: what JSON can hold, for `state.json`.
        probe: tensors that a probe needs to go on.

    Returns:
        its path and its size in bytes.

    Raises:
        CheckpointError: it could not be written (a full disk, say); earlier checkpoints are untouched.
    """
    final, draft = folder / f"{PREFIX}{step:08d}", folder / f"{UNFINISHED}{step:08d}"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        save_file(_contiguous(model.state_dict()), draft / MODEL)
        save_file(_contiguous(optimizer_tensors(optimizer)), draft / OPTIMIZER)
        save_file(_contiguous(probe), draft / PROBE)
        files = {name: _describe(draft / name) for name in (MODEL, OPTIMIZER, PROBE)}
        contents = {"step": step, **state, "files": files}
        (draft / STATE).write_text(json.dumps({**contents, "sha256": _digest(contents)}, indent=1))
        for path in (*draft.iterdir(), draft):
            _flush(path)
        shutil.rmtree(final, ignore_errors=True)
        draft.rename(final)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        free = shutil.disk_usage(folder if folder.exists() else Path.cwd()).free
        raise CheckpointError(
            f"could not write the checkpoint of step {step} to {folder}: {error} ({free / 1e9:.2f} GB free there). "
            f"Earlier checkpoints are untouched; make room and run the same command to go on"
        ) from error
    return final, sum(file["bytes"] for file in files.values())


def complete(folder: Path) -> list[Path]:
    """Checkpoints in `folder`, oldest first."""
    named = [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal()]
    return sorted((path for path in named if path.is_dir()), key=step_of)


def step_of(path: Path) -> int:
    return int(path.name.removeprefix(PREFIX))


def prune(folder: Path, step: int, keep_last: int, keep_every: int | None) -> None:
    """After the checkpoint of `step`, delete all but the last `keep_last` and those of steps that `keep_every` divides.

    What a crash left unfinished goes as well, and so do later steps: they were damaged, and the run went back.
    """
    found = complete(folder)
    past = [path for path in found if step_of(path) <= step]
    old = [path for path in past[:-keep_last] if not keep_every or step_of(path) % keep_every]
    for path in [*old, *(path for path in found if path not in past), *folder.glob(f"{UNFINISHED}*")]:
        shutil.rmtree(path)


def read_state(path: Path) -> dict[str, Any]:
    """`state.json` of a checkpoint whose files are as they were written.

    Raises:
        CheckpointError: a file is missing, has another size, or another checksum.
    """
    try:
        state = json.loads((path / STATE).read_text())
        if state.pop("sha256", None) != _digest(state):
            raise CheckpointError(f"{path / STATE} is damaged: its contents have another SHA-256 than was written")
        for name, described in state["files"].items():
            if not (path / name).is_file():
                raise CheckpointError(f"{path / name} is missing")
            verify(path / name, described)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / STATE} cannot be read: {error}") from error
    return state


def verify(path: Path, described: Mapping[str, Any]) -> None:
    """Whether a file is as it was written.

    Raises:
        CheckpointError: it is not, or not there.
    """
    try:
        found, written = _describe(path), (described["bytes"], described["sha256"])
    except (OSError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be checked: {error!r}") from error
    if (found["bytes"], found["sha256"]) != written:
        raise CheckpointError(
            f"{path} is damaged: {found['bytes']} bytes with SHA-256 {found['sha256'][:12]}..., "
            f"written were {written[0]} with {written[1][:12]}..."
        )


def newest_usable(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint whose files are whole, with its state; None where there is no checkpoint at all.

    Raises:
        CheckpointError: there are checkpoints and every one is damaged.
    """
    damage: list[str] = []
    for path in reversed(complete(folder)):
        try:
            return path, read_state(path)
        except CheckpointError as error:
            damage.append(str(error))
            log.warning("%s; trying the checkpoint before it", error)
    if damage:
        raise CheckpointError(
            f"no usable checkpoint in {folder}: {'; '.join(damage)}. Restore one, or start anew with another run_dir"
        )
    return None


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Load weights and optimiser state in place, every key accounted for.

    Returns:
        the probe's tensors.

    Raises:
        CheckpointError: keys or shapes differ from the model's.
    """
    load_weights(path / MODEL, model)
    load_optimizer(optimizer, load_file(path / OPTIMIZER))
    return {name: tensor.clone() for name, tensor in load_file(path / PROBE).items()}


def save_weights(weights: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Write a safetensors file; returns its size and SHA-256."""
    save_file(_contiguous(weights), path)
    return _describe(path)


def load_weights(path: Path, module: nn.Module, prefix: str = "") -> None:
    """Load the weights under `prefix` of a safetensors file into `module`, strictly.

    Raises:
        CheckpointError: the file cannot be read, or keys, shapes or types differ.
    """
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    weights = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    ours = module.state_dict()
    missing, unused = sorted(ours.keys() - weights.keys()), sorted(weights.keys() - ours.keys())
    shapes = [
        f"{key} {weights[key].dtype} {tuple(weights[key].shape)} for {ours[key].dtype} {tuple(ours[key].shape)}"
        for key in ours.keys() & weights.keys()
        if weights[key].shape != ours[key].shape or weights[key].dtype != ours[key].dtype
    ]
    if missing or unused or shapes:
        raise CheckpointError(
            f"{path} does not fit the model: {len(missing)} keys missing {missing[:3]}, {len(unused)} not used "
            f"{unused[:3]}, {len(shapes)} of another shape or type {shapes[:3]}"
        )
    module.load_state_dict(weights)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors: "<parameter>:<entry>", with ":number" added where it is a plain number.

    Raises:
        CheckpointError: an entry is something else.
    """
    tensors = {}
    for name, parameter in _named(optimizer):
        for entry, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{name}:{entry}"] = value
            elif type(value) in NUMBERS:
                tensors[f"{name}:{entry}:number"] = torch.tensor(value, dtype=NUMBERS[type(value)])
            else:
                raise CheckpointError(
                    f"{type(optimizer).__name__} cannot be kept in checkpoints: its state {entry!r} is a "
                    f"{type(value).__name__}, neither a tensor nor a number; name another optim.optimizer"
                )
    return tensors


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`.

    Raises:
        CheckpointError: the state belongs to other parameters.
    """
    entries: dict[str, dict[str, Any]] = {}
    for key, value in tensors.items():
        name, entry, *number = key.split(":")
        entries.setdefault(name, {})[entry] = value.item() if number else value
    named = dict(_named(optimizer))
    unknown = sorted(entries.keys() - named.keys())  # a parameter without an entry never had a gradient
    if unknown:
        raise CheckpointError(f"the optimiser's state names {len(unknown)} unknown parameters: {unknown[:3]}")
    for name, state in entries.items():
        parameter = named[name]
        optimizer.state[parameter] = {
            # copied: a view of the file would hold its room on the disk after the checkpoint was deleted
            entry: value.to(parameter.device, copy=True) if isinstance(value, Tensor) else value
            for entry, value in state.items()
        }


def _named(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, nn.Parameter]]:
    for group in optimizer.param_groups:
        yield from zip(group["names"], group["params"], strict=True)


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What safetensors can write: contiguous, and tied weights as copies."""
    written: set[int] = set()
    out = {}
    for name, tensor in tensors.items():
        out[name] = tensor.clone() if tensor.data_ptr() in written else tensor.contiguous()
        written.add(tensor.data_ptr())
    return out


def _digest(contents: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _flush(path: Path) -> None:
    """Wait until the disk has it: a rename that survives a power cut must not point to data that did not."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
