"""Pretrain: accelerate launch -m jepa.run recipe=NAME [key=value ...]

Examples:
    python -m jepa.run recipe=ijepa_tiny
    python -m jepa.run recipe=ijepa_vith14 dry_run=true
    accelerate launch -m jepa.run recipe=ijepa_vith14 data=images data.root=DIR run_dir=RUN
"""

from __future__ import annotations

import fcntl
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import GradientAccumulationPlugin

from jepa import checkpoint, init_from
from jepa import recipe as recipes
from jepa.assemble import assemble, input_size
from jepa.build import RecipeError, nearest
from jepa.command_line import available, flat
from jepa.data.base import DataError
from jepa.dry_run import describe
from jepa.metrics import MetricsError
from jepa.pictures import mask_sheet, sounds_of
from jepa.settings import TrainSettings
from jepa.trainer import NonFiniteLoss, Trainer

log = logging.getLogger("jepa")

ERRORS = (RecipeError, DataError, checkpoint.CheckpointError, MetricsError, NonFiniteLoss, OSError)


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if any(argument in ("-h", "--help") for argument in arguments):
        print(__doc__, "\nRecipes:", ", ".join(available()))
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        recipe = recipes.load_recipe(arguments)
        if recipe["dry_run"]:
            print(describe(recipe))
        else:
            pretrain(recipe)
    except ERRORS as error:
        rank = os.environ.get("RANK")
        print(f"error{f' (process {rank})' if rank else ''}: {said(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def said(error: BaseException) -> str:
    """The message of an error; of one that a data worker raised, without the worker's traceback."""
    message = str(error)
    return message.strip().splitlines()[-1].partition(": ")[2] if "Original Traceback" in message else message


def pretrain(recipe: Mapping[str, Any]) -> None:
    """Train a resolved recipe, from its newest checkpoint if its run directory holds one."""
    settings = recipes.train_settings(recipe)
    run_dir = Path(recipe["run_dir"])
    accelerator = make_accelerator(settings, run_dir)
    with ExitStack() as stack:
        stack.callback(accelerator.end_training)
        with accelerator.main_process_first():  # others read what the first has checked and written
            stack.enter_context(claimed(run_dir, recipe, write=accelerator.is_main_process))
        trainer = assemble(recipe, settings, accelerator)
        start = trainer.resume()
        if not start and recipe["init_from"] is not None:
            begin_from(trainer, recipe)
            start = trainer.step
        finished = start == trainer.plan.steps
        if accelerator.is_main_process:
            if finished:
                log.info("%s is finished: nothing to do", run_dir)
            else:
                introduce(recipe, settings, trainer, start)
        if not finished:
            finished = trainer.fit()
        if accelerator.is_main_process:
            conclude(recipe, trainer, finished)


def begin_from(trainer: Trainer, recipe: Mapping[str, Any]) -> None:
    """Weights of another run, and `init.txt` that says what became of them."""
    lines = init_from.start(trainer, recipe)
    if trainer.accelerator.is_main_process:
        (trainer.plan.run_dir / "init.txt").write_text("\n".join(lines) + "\n")
        for line in lines:
            log.info("start: %s", line)


def make_accelerator(settings: TrainSettings, run_dir: Path) -> Accelerator:
    """Device, processes, precision and trackers.

    Raises:
        RecipeError: a tracker that is unknown or not installed, or an engine that is not supported.
    """
    for name in settings.trackers:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise RecipeError(f"train.trackers: {name!r}: {nearest(name, map(str, LOGGER_TYPE_TO_CLASS))}")
        if name not in map(str, get_available_trackers()):
            raise RecipeError(f"train.trackers: {name!r} is not installed: pip install {name}, or jepa[trackers]")
    accelerator = Accelerator(
        mixed_precision="bf16" if settings.precision == "bf16" else "no",
        log_with=list(settings.trackers) or None,
        project_dir=str(run_dir),
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # the recipe decides, not the launcher
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        raise RecipeError(
            f"{accelerator.distributed_type} is not supported yet: launch with DDP (accelerate's multi-GPU)"
        )
    return accelerator


@contextmanager
def claimed(run_dir: Path, recipe: Mapping[str, Any], *, write: bool) -> Iterator[None]:
    """Inside, the run directory is this process's own and holds the recipe.

    Raises:
        RecipeError: it cannot be written, another process trains in it, or it holds a run of another recipe.
    """
    stored, metrics = run_dir / "recipe.yaml", run_dir / "metrics.jsonl"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = (run_dir / ".lock").open("a")
    except OSError as error:
        raise RecipeError(f"run_dir={run_dir} cannot be written: {error.strerror}: {error.filename}") from error
    with lock:
        try:
            if write:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, not held by orphaned data workers
        except BlockingIOError as error:
            raise RecipeError(f"another process trains in {run_dir}: wait for it, or give another run_dir") from error
        begun = checkpoint.complete(run_dir / "checkpoints") or (metrics.exists() and metrics.stat().st_size)
        differ = recipes.difference(recipes.read(stored), recipe) if begun and stored.exists() else []
        if differ:
            shown = "\n  ".join(differ[:12])
            raise RecipeError(
                f"{run_dir} holds a run of another recipe. Give another run_dir, or the same values. "
                f"They differ in (stored -> new):\n  {shown}"
            )
        if write and not (begun and stored.exists()):
            draft = stored.with_suffix(".draft")
            recipes.write(recipe, draft)
            draft.replace(stored)
        yield


def introduce(recipe: Mapping[str, Any], settings: TrainSettings, trainer: Trainer, start: int) -> None:
    """Say what is about to happen, and start the trackers."""
    plan, accelerator, size = trainer.plan, trainer.accelerator, len(trainer.batches.dataset)
    masks = plan.run_dir / "masks.png"
    batch = trainer.batch_transform(trainer.batches[0])
    x, grid = batch.target.x, trainer.batches.grid
    if isinstance(x, Mapping) or len(grid) == x.ndim - 2 <= 3:  # tokens have places, and there are pictures of them
        mask_sheet(batch, spectrograms=sounds_of(trainer.batch_transform)).save(masks)
        log.info("masks of the first batch: %s", masks)
    samples = plan.steps * settings.batch_size
    log.info(
        "%s: %s steps of %d samples = %s samples (%.1f epochs of %s), %s on %d x %s",
        recipe["recipe"],
        f"{plan.steps:,}",
        settings.batch_size,
        f"{samples:,}",
        samples / size,
        f"{size:,}",
        settings.precision,
        accelerator.num_processes,
        accelerator.device.type,
    )
    if settings.trackers:
        accelerator.init_trackers("jepa", config={k: str(v) for k, v in flat(recipe)})
    if start:
        log.info("resumed after step %s of %s", f"{start:,}", f"{plan.steps:,}")


def conclude(recipe: Mapping[str, Any], trainer: Trainer, finished: bool) -> None:
    """Where everything is."""
    run_dir = Path(recipe["run_dir"])
    found = checkpoint.complete(trainer.plan.checkpoints)
    stopped = f"stopped after step {trainer.step} ({trainer.stop.reason}); the same command goes on from there"
    rows: list[tuple[str, object]] = [("state", "finished" if finished else stopped)]
    if trainer.skipped_by_all:
        rows += [("skipped", f"{trainer.skipped_by_all} samples could not be read (named above)")]
    if trainer.probe is not None:
        rows += [("embeddings", ", ".join(f"{name} {value}" for name, value in trainer.probe.summary().items()))]
    rows += [
        ("recipe", run_dir / "recipe.yaml"),
        ("metrics", run_dir / "metrics.jsonl"),
        ("masks", run_dir / "masks.png"),
        ("checkpoint", found[-1] if found else "none"),
        ("probe it", f"python -m jepa.evaluate run={run_dir}"),
        ("look at it", f"python -m jepa.report run={run_dir}"),
        ("use it", f"jepa.load({str(run_dir)!r}).features({inputs_of(recipe, trainer)})"),
    ]
    print("\n".join(f"  {name:<11}{value}" for name, value in rows if not isinstance(value, Path) or value.exists()))


def inputs_of(recipe: Mapping[str, Any], trainer: Trainer) -> str:
    """What to hand to the model, in a word for each modality."""
    size = input_size(recipe["data"]["size"])
    if isinstance(size, Mapping):
        return f"{{{', '.join(f'{name!r}: {name}s' for name in size)}}}"
    return "waves" if sounds_of(trainer.batch_transform) else {2: "images", 3: "clips"}.get(len(size), "signals")


if __name__ == "__main__":
    sys.exit(main())
