"""What a recipe would do, without weights, a device or (if its root is not given) data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from jepa import recipe as recipes
from jepa import seeding
from jepa.assemble import build_schedule, fitting_grid, fitting_masker, input_size
from jepa.build import build, build_model
from jepa.data.base import SampleDataset
from jepa.data.batches import MAX_CONSECUTIVE_UNREADABLE, pose
from jepa.interfaces import Masker
from jepa.model import JEPA
from jepa.settings import TrainSettings
from jepa.types import JepaBatch, JointGrid, Masks, Motions, UnreadableSample, View, each

SAMPLES = 32  # of which tokens, arithmetic and memory are estimated
Kinds = Sequence[tuple[float, Sequence[Masks | Motions]]]  # share of batches, and what is drawn for them
Drawn = Mapping[str, Kinds]  # by when


@dataclass(frozen=True)
class Cost:
    """Of one training step, per sample.

    Attributes:
        flops: forward and backward, a multiply-add counted as two.
        activations: bytes kept for the backward pass.
    """

    flops: float
    activations: float


def describe(recipe: Mapping[str, Any]) -> str:
    """A table of what the recipe would do.

    Raises:
        RecipeError: a part cannot be built with these values, or parts do not fit together.
    """
    settings = recipes.train_settings(recipe)
    dataset = known_dataset(recipe)
    size = None if dataset is None else len(dataset)
    steps = recipes.total_steps(settings, size)
    for name in ("lr", "weight_decay"):
        build_schedule(
            recipe["optim"][name], f"optim.{name}", steps=steps, batch_size=settings.batch_size, dataset_size=size
        )
    recipes.length(
        settings.clip_after, "train.clip_after", steps=steps, batch_size=settings.batch_size, dataset_size=size
    )
    shape = input_size(recipe["data"]["size"])
    model: JEPA = build_model(recipe, meta=True)
    grid = fitting_grid(model.encoder, shape)
    masker = fitting_masker(recipe, model, grid)
    count = min(SAMPLES, settings.batch_size)
    drawn = {
        when: [
            (share, kind.sample(count, grid, seeding.generator(recipe["seed"], seeding.Stream.MASK, 1)))
            for share, kind in now.kinds()
            if share
        ]
        for when, now in ends(masker).items()
    }
    shape = with_channels(channels_of(dataset, recipe), shape)
    costs = [step_cost(recipe, masks, grid, count, shape, settings) for kinds in drawn.values() for _, masks in kinds]
    cost = Cost(max(cost.flops for cost in costs), max(cost.activations for cost in costs))
    return "\n".join(
        f"{name:<22}{value}" for name, value in rows(recipe, settings, model, grid, drawn, cost, steps, size)
    )


def ends(masker: Masker) -> dict[str, Masker]:
    """The masker; or as it is at first and at last, where it changes in training."""
    first, last = masker.at(0.0), masker.at(1.0)
    return {"": masker} if first is last else {" at first": first, " at last": last}


def known_dataset(recipe: Mapping[str, Any]) -> SampleDataset | None:
    """The dataset, unless its place, or that of one that it mixes, is not given yet."""
    node = recipe["data"]["dataset"]
    placeless = any(part.get("root", "") is None for part in (node, *node.get("datasets", {}).values()))
    return None if placeless else build(node, "data.dataset")


def channels_of(dataset: SampleDataset | None, recipe: Mapping[str, Any]) -> Any:
    """Channels of the first sample that can be read; the encoder's where there is none. Or of each modality."""
    for i in range(0 if dataset is None else min(len(dataset), MAX_CONSECUTIVE_UNREADABLE)):
        assert dataset is not None
        with suppress(UnreadableSample):
            return each(dataset[i].x, lambda x: x.shape[0])
    node = recipe["encoder"]
    if "patches" in node:
        return {name: patch["in_chans"] for name, patch in node["patches"].items()}
    return node.get("in_chans", 3)


def with_channels(channels: Any, size: Any) -> Any:
    """(C, *size), or so for each modality."""
    if isinstance(size, Mapping):
        return {name: (channels[name], *part) for name, part in size.items()}
    return (channels, *size)


def count_parameters(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())


class _ThereAndBack(nn.Module):
    """Forward and backward pass as one call: blocks that are recomputed need their weights in the backward pass too."""

    def __init__(self, model: JEPA) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: JepaBatch) -> None:
        self.model(batch).loss.backward()


def step_cost(
    recipe: Mapping[str, Any],
    drawn: Sequence[Masks | Motions],
    grid: tuple[int, ...],
    samples: int,
    shape: Any,
    settings: TrainSettings,
) -> Cost:
    """Arithmetic and activations of forward and backward passes on these masks, traced without computing anything.

    Args:
        shape: (C, *size) of what the encoder sees, or so for each modality.
    """
    batch_transform = build(recipe["data"]["batch_transform"], "data.batch_transform")
    if hasattr(batch_transform, "raw_shape"):
        shape = batch_transform.raw_shape(shape)
    x = each(shape, lambda part: torch.zeros(samples, *part))
    tasks = [pose(x, masks, grid, task=task) for task, masks in enumerate(drawn)]
    batch = batch_transform(JepaBatch(View(x), tasks))
    model = build_model(recipe, meta=True).train()
    weights: dict[str, Tensor] = {}
    kept: dict[int, Tensor] = {}  # tensors, not numbers: a storage that is freed could lend its id to another

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(id(tensor.untyped_storage()), tensor)
        return tensor

    with FakeTensorMode() as fake:
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            weights[f"model.{name}"] = torch.empty(tensor.shape, dtype=tensor.dtype).requires_grad_(
                tensor.requires_grad
            )
        batch = batch.apply(fake.from_tensor)
        counter = FlopCounterMode(display=False)
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16")
        with counter, autocast, saved_tensors_hooks(keep, lambda tensor: tensor):
            functional_call(_ThereAndBack(model), weights, (batch,))
    own = {id(tensor.untyped_storage()) for tensor in weights.values()}
    activations = sum(t.untyped_storage().nbytes() for storage, t in kept.items() if storage not in own)
    return Cost(counter.get_total_flops() / samples, activations / samples)


def asked(drawn: Masks | Motions) -> str:
    """A task in a line."""
    if isinstance(drawn, Motions):
        numbers = drawn.motion.shape[1]
        return f"1 view from 1 other, nothing hidden, {numbers} numbers told"
    context, targets = drawn.context.flatten(1).sum(1).float(), drawn.targets.flatten(2).sum(2).float()
    return (
        f"context {context.mean():.1f} tokens ({context.min():.0f} to {context.max():.0f}), "
        f"{targets.shape[1]} target sets of {targets.mean():.1f} ({targets.min():.0f} to {targets.max():.0f})"
    )


def task_rows(when: str, kinds: Kinds) -> Iterator[tuple[str, str]]:
    """A row for each task, and below it one for each further kind of masks."""
    for number in range(len(kinds[0][1])):
        for place, (share, posed) in enumerate(kinds):
            often = f"in {share:.0%} of batches: " if share < 1 else ""
            yield "" if place else f"task {number + 1}{when}", f"{often}{asked(posed[number])}"


def described(grid: tuple[int, ...]) -> str:
    """A grid in words, or the grids of several modalities."""
    if isinstance(grid, JointGrid):
        return " + ".join(f"{name} {' x '.join(map(str, part))}" for name, part in grid.parts.items())
    return " x ".join(map(str, grid))


def rows(
    recipe: Mapping[str, Any],
    settings: TrainSettings,
    model: JEPA,
    grid: tuple[int, ...],
    drawn: Drawn,
    cost: Cost,
    steps: int,
    dataset_size: int | None,
) -> list[tuple[str, str]]:
    samples = steps * settings.batch_size
    trained = count_parameters(model.encoder) + count_parameters(model.predictor)
    fixed = count_parameters(model.target_encoder)
    state = 4 * (trained * 4 + fixed)  # weights, gradients and two moments, float32; the target has weights only
    table = [
        ("recipe", str(recipe["recipe"])),
        ("encoder", f"{count_parameters(model.encoder):,} parameters"),
        ("target encoder", f"{fixed:,} parameters" if fixed else "the encoder itself"),
        ("predictor", f"{count_parameters(model.predictor):,} parameters"),
        ("grid", f"{described(grid)} = {prod(grid):,} tokens per sample for the target"),
        *(row for when, kinds in drawn.items() for row in task_rows(when, kinds)),
    ]
    epochs = f" = {samples / dataset_size:,.1f} epochs of {dataset_size:,}" if dataset_size else ""
    return [
        *table,
        ("steps", f"{steps:,} of {settings.batch_size:,} samples"),
        ("samples", f"{samples:,}{epochs}"),
        ("precision", settings.precision),
        ("FLOPs per sample", f"{cost.flops / 1e9:,.2f} G (forward and backward)"),
        ("FLOPs of the run", f"{cost.flops * samples:.3g}"),
        ("memory, fixed", f"{state / 1e9:,.2f} GB on each device (weights, target, gradients, AdamW)"),
        ("memory, activations", f"{cost.activations / 1e9:,.3f} GB per sample of a device's micro-batch"),
        ("run_dir", str(recipe["run_dir"])),
    ]
