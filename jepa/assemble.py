"""From a resolved recipe to a trainer: every part built, checked against the others, and joined."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import partial
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from jepa import checkpoint
from jepa import recipe as recipes
from jepa.build import TARGET, RecipeError, build, build_model, locate, parameters
from jepa.data.base import SampleDataset
from jepa.data.batches import Batches, pose
from jepa.interfaces import Encoder, Masker
from jepa.model import JEPA
from jepa.optim import adamw, parameter_groups
from jepa.plan import Plan
from jepa.probes.watch import Watch
from jepa.seeding import Stream, key
from jepa.settings import TrainSettings
from jepa.trainer import Schedule, Trainer
from jepa.types import Input, JepaBatch, Masks, each

log = logging.getLogger("jepa")


def assemble(recipe: Mapping[str, Any], settings: TrainSettings, accelerator: Accelerator) -> Trainer:
    """The trainer of a recipe, at step 0.

    Raises:
        RecipeError, DataError: a part cannot be built, or parts do not fit together.
    """
    data = recipe["data"]
    dataset: SampleDataset = build(data["dataset"], "data.dataset")
    torch.manual_seed(key(recipe["seed"], Stream.INIT))
    model = build_model(recipe)
    check_synchronised(model, accelerator)
    if not checkpoint.complete(Path(recipe["run_dir"]) / "checkpoints"):
        begin(model, recipe)
    size = input_size(data["size"])
    grid = fitting_grid(model.encoder, size)
    steps = recipes.total_steps(settings, len(dataset))
    batches = Batches(
        dataset=dataset,
        transform=build(data["transform"], "data.transform") if data["transform"] else None,
        masker=fitting_masker(recipe, model, grid),
        grid=grid,
        seed=recipe["seed"],
        batch_size=settings.batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        accumulate=settings.accumulate,
        steps=steps,
    )
    first = batches[0]  # trouble with the data shows here, not in a worker
    batch_transform = build(data["batch_transform"], "data.batch_transform")
    try:
        first = batch_transform(first)
    except (TypeError, ValueError) as error:
        raise RecipeError(str(error)) from error
    check_inputs(first, size, model.encoder, recipe)
    schedule = partial(build_schedule, steps=steps, batch_size=settings.batch_size, dataset_size=len(dataset))
    optim = recipe["optim"]
    return Trainer(
        model=model,
        make_optimizer=partial(make_optimizer, optim, settings.batch_size),
        batches=batches,
        batch_transform=batch_transform,
        lr=scaled(schedule(optim["lr"], "optim.lr"), rate_factor(optim, settings.batch_size)),
        weight_decay=schedule(optim["weight_decay"], "optim.weight_decay"),
        accelerator=accelerator,
        plan=Plan(
            steps=steps,
            run_dir=Path(recipe["run_dir"]),
            fingerprint=dataset.fingerprint,
            log_every=settings.log_every,
            checkpoint_every=settings.checkpoint_every,
            keep_last=settings.keep_last,
            keep_every=settings.keep_every,
            clip_norm=settings.clip_norm,
            clip_parts=settings.clip_parts,
            clip_after=recipes.length(
                settings.clip_after,
                "train.clip_after",
                steps=steps,
                batch_size=settings.batch_size,
                dataset_size=len(dataset),
            ),
            workers=data["workers"],
        ),
        compile=settings.compile,
        probe=Watch(every=settings.watch_every, stop_on_collapse=settings.stop_on_collapse)
        if settings.watch_every
        else None,
    )


def check_synchronised(model: JEPA, accelerator: Accelerator) -> None:
    """Batch statistics of several processes are brought together on GPUs only.

    Raises:
        RecipeError: the model asks for it elsewhere.
    """
    asked = any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    if asked and accelerator.num_processes > 1 and accelerator.device.type != "cuda":
        raise RecipeError(
            f"encoder.sync_batch_norm=true: {accelerator.num_processes} processes on {accelerator.device.type} cannot "
            f"share statistics, only GPUs can: set it to false, or train in one process"
        )


def begin(model: JEPA, recipe: Mapping[str, Any]) -> None:
    """Weights that the parts of a new run start from.

    Raises:
        RecipeError: they cannot be had or used.
    """
    for encoder in (model.encoder, model.target_encoder) if recipe["init_from"] is None else ():
        try:
            if encoder is not None:
                encoder.begin()
        except (ValueError, OSError) as error:
            raise RecipeError(f"encoder: {error}") from error
    try:
        model.updater.begin(model.target_encoder)
    except (ValueError, OSError) as error:
        raise RecipeError(f"target: {error}") from error


def input_size(size: Any) -> Any:
    """`data.size` along each axis, or so for each modality: one number means a square picture."""
    return each(size, lambda part: (part, part) if isinstance(part, int) else tuple(part))


def fitting_grid(encoder: Encoder, size: Any) -> tuple[int, ...]:
    """The encoder's grid for inputs of that size.

    Raises:
        RecipeError: it cannot take them.
    """
    if isinstance(size, Mapping) != bool(encoder.modalities):
        has = f"several modalities ({', '.join(size)})" if isinstance(size, Mapping) else "one modality"
        takes = f"joins {', '.join(encoder.modalities)}" if encoder.modalities else "takes one"
        raise RecipeError(f"encoder and data: the data has {has}, {type(encoder).__name__} {takes}")
    try:
        return encoder.grid(size)
    except ValueError as error:
        raise RecipeError(f"encoder and data.size: {error}") from error


def check_inputs(batch: JepaBatch, size: Any, encoder: Encoder, recipe: Mapping[str, Any]) -> None:
    """What the encoder is given must be what the recipe says.

    Raises:
        RecipeError: views of another size, or with channels or statistics that are not the encoder's.
    """
    for view in (batch.target, *(task.context for task in batch.tasks)):
        found = each(view.x, lambda x: tuple(x.shape[2:]))
        if found != size:
            raise RecipeError(f"data.size is {size}, but the data's transforms make views of {found}")
    node = recipe["encoder"]
    for x, patches, where in modalities(batch.target.x, node):
        channels = x.shape[1]
        if patches.get("in_chans", channels) != channels:
            raise RecipeError(f"the data has {channels} channels: set {where}={channels}")
    check_statistics(encoder, recipe["data"]["batch_transform"])


def modalities(x: Input, node: Mapping[str, Any]) -> Iterator[tuple[Tensor, Mapping[str, Any], str]]:
    """Each modality of an input, what the recipe's encoder says of it, and the key for its channels."""
    if isinstance(x, Tensor):
        yield x, node, "encoder.in_chans"
        return
    for name, part in x.items():
        yield part, node.get("patches", {}).get(name, {}), f"encoder.patches.{name}.in_chans"


def check_statistics(encoder: Encoder, node: Mapping[str, Any]) -> None:
    """Inputs must be normalised as the encoder's weights were trained.

    Raises:
        RecipeError: with the right numbers.
    """
    for name, wanted in zip(("mean", "std"), encoder.statistics or (), strict=False):
        if list(node.get(name, ())) != list(wanted):
            raise RecipeError(
                f"the encoder's pretrained weights need data.batch_transform.{name}={list(wanted)}, "
                f"not {node.get(name)}"
            )


def fitting_masker(recipe: Mapping[str, Any], model: JEPA, grid: tuple[int, ...]) -> Masker:
    """The recipe's masker.

    Raises:
        RecipeError: its settings cannot serve that grid, or encoder or predictor cannot serve its tasks.
    """
    masker: Masker = build(recipe["masker"], "masker")
    try:
        masker.check(grid)
        kinds = [kind for progress in (0.0, 1.0) for _, kind in masker.at(progress).kinds()]
        posed = [drawn for kind in kinds for drawn in kind.sample(1, grid, torch.Generator())]
    except ValueError as error:
        raise RecipeError(f"masker: {error}") from error
    encoder, predictor, name = model.encoder, model.predictor, type(masker).__name__
    if recipe["predictor"].get("modalities") and not encoder.modalities:
        raise RecipeError(
            f"predictor.modalities={recipe['predictor']['modalities']}: the encoder takes one, leave it out"
        )
    for drawn in posed:
        if isinstance(drawn, Masks) and not encoder.hides:
            raise RecipeError(
                f"masker: {name} hides tokens, but encoder {type(encoder).__name__} sees whole inputs only: use "
                f"jepa.maskers.Saccade or Pair, or an encoder that takes masks, as jepa.encoders.ViT"
            )
        query = type(pose(torch.empty(1, 1), drawn, grid).query)
        if not issubclass(query, predictor.answers):
            raise RecipeError(
                f"predictor: {type(predictor).__name__} answers {predictor.answers.__name__}, "
                f"but masker {name} asks with {query.__name__}"
            )
    return masker


def make_optimizer(optim: Mapping[str, Any], batch_size: int, model: JEPA) -> torch.optim.Optimizer:
    """The optimiser of the section `optim`: AdamW unless it names another.

    Raises:
        RecipeError: it names parts that are not trained.
    """
    grouping: dict[str, Any] = {"decay_all": optim["decay_all"]}
    if optim["predictor_lr"] is not None:
        grouping["fixed_rates"] = {"predictor": optim["predictor_lr"] * rate_factor(optim, batch_size)}
    try:
        if optim.get("optimizer") is None:
            return adamw(model, betas=tuple(optim["betas"]), eps=optim["eps"], **grouping)
        groups = parameter_groups(model, **grouping)
    except ValueError as error:
        raise RecipeError(f"optim: {error}") from error
    return build(optim["optimizer"], "optim.optimizer", params=groups, lr=0.0, weight_decay=0.0)


def rate_factor(optim: Mapping[str, Any], batch_size: int) -> float:
    """For rates stated for another batch size: Adam's grow with the square root of the batch (Malladi et al. 2022)."""
    return 1.0 if optim["reference_batch"] is None else sqrt(batch_size / optim["reference_batch"])


def scaled(schedule: Schedule, factor: float) -> Schedule:
    return lambda step: factor * schedule(step)


def build_schedule(
    node: Mapping[str, Any], where: str, *, steps: int, batch_size: int, dataset_size: int | None
) -> Schedule:
    """A schedule of the optimiser step; `total` is the length of the run unless the recipe says otherwise."""
    takes_total = "total" in parameters(locate(str(node.get(TARGET)), where))
    node = {**({"total": steps} if takes_total else {}), **node}
    for name in recipes.LENGTHS:
        if name in node:
            node[name] = recipes.length(
                node[name], f"{where}.{name}", steps=steps, batch_size=batch_size, dataset_size=dataset_size
            )
    if node.get("total") == 0:
        raise RecipeError(f"{where}.total is 0 steps")
    if node.get("warmup", 0) >= steps:
        log.warning("%s.warmup is %d steps, the run %d: it never reaches its peak", where, node["warmup"], steps)
    return build(node, where)
