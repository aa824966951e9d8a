"""Speed and memory of recipes' training steps on one CUDA device: `python -m benchmarks.gpu [RECIPE=SAMPLES ...]`

In bfloat16 with compiled blocks, on noise that lies on the device, with the recipe's own masks, three batches in
turn: truncated as published, ragged, and ragged with blocks recomputed in the backward pass. Times are of whole steps
(forward, backward, AdamW, moving average). Of the matrix-product peak, what is recomputed is not counted twice.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any

import torch

from benchmarks.step import Step, arithmetic, spread
from jepa import recipe as recipes
from jepa.assemble import fitting_grid, fitting_masker, input_size
from jepa.bench import matmul_peak, memory, timed
from jepa.build import build_model
from jepa.data.batches import pose
from jepa.model import JEPA
from jepa.nn.blocks import compile_blocks
from jepa.types import Indices, JepaBatch, View

RECIPES = ("ijepa_vith14=128", "vjepa_vitl16=24")  # with what one device is given where they are published
BATCHES, ROUNDS = 3, 12
SAVING = ("encoder.grad_checkpointing=true", "predictor.grad_checkpointing=true")
VARIANTS = {
    "truncated": ("masker.compat=true",),
    "ragged": ("masker.compat=false",),
    "ragged, recomputed": ("masker.compat=false", *SAVING),
}


def draw(recipe: dict[str, Any], model: JEPA, samples: int, device: torch.device) -> list[JepaBatch]:
    """Noise with masks, the same for every variant."""
    size = input_size(recipe["data"]["size"])
    grid = fitting_grid(model.encoder, size)
    masker, generator = fitting_masker(recipe, model, grid), torch.Generator().manual_seed(0)
    x = torch.randn(samples, recipe["encoder"]["in_chans"], *size, generator=generator)
    drawn = [masker.sample(samples, grid, generator) for _ in range(BATCHES)]
    batches = [JepaBatch(View(x), [pose(x, masks, task=i) for i, masks in enumerate(tasks)]) for tasks in drawn]
    return [batch.to(device) for batch in batches]


def tokens(batch: JepaBatch) -> int:
    """Tokens of contexts and targets in a batch."""
    keeps = [task.context.keep for task in batch.tasks]
    return sum(part.total for part in (*keeps, *(task.query for task in batch.tasks)) if isinstance(part, Indices))


def compare(name: str, samples: int, device: torch.device, more: Sequence[str] = ()) -> None:
    """A line for each variant of a recipe; `more` are overrides of it."""
    peak = matmul_peak(device, torch.bfloat16)
    print(
        f"{name}, {samples} samples, bfloat16, {peak / 1e12:.0f} TFLOP/s in matrix products, torch {torch.__version__}"
    )
    work: dict[str, float] = {}
    for variant, own in VARIANTS.items():
        recipe = recipes.load_recipe([f"recipe={name}", "data.root=none", *own, *more])
        torch.manual_seed(0)
        model = build_model(recipe).to(device)
        step, batches = Step(model, torch.bfloat16), draw(recipe, model, samples, device)
        masks = variant.partition(",")[0]
        if masks not in work:
            work[masks] = sum(arithmetic(step, batch) for batch in batches) / BATCHES
        compile_blocks(model)
        for batch in batches * 2:
            step(batch)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        times = [timed(partial(step, batches[k % BATCHES]), device) for k in range(ROUNDS)]
        print(
            f"  {variant:20}% of peak: {spread([100 * work[masks] / t / peak for t in times])}   "
            f"{samples / median(times):.1f} samples/s, {median(times) * 1e3:.0f} ms, {work[masks] / 1e12:.1f} TFLOP, "
            f"{sum(map(tokens, batches)) / BATCHES:.0f} tokens of contexts and targets, {memory(device)}",
            flush=True,
        )


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("there is no CUDA device")
    for argument in sys.argv[1:] or RECIPES:
        name, _, samples = argument.partition("=")
        compare(name, int(samples), torch.device("cuda"))


if __name__ == "__main__":
    main()
