"""How fast maskers draw, against a plain loop over samples and blocks, on one core: `python -m benchmarks.masks`.

Times are CPU seconds of this one-threaded process, so that other processes on the machine disturb them less. Each
repeat times every row once; a ratio compares the two times of the same repeat. The conversion of maps to indices is
included.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from jepa.interfaces import Masker
from jepa.maskers import Causal, MultiBlock, MultiBlock3D, RandomPatches, RandomTubes, Rasterized, SingleBlock
from jepa.types import Indices


def loop_over_images(batch_size: int, rows: int, columns: int) -> list[tuple[Tensor, list[Tensor]]]:
    """Multi-block masks as one would write them first: for each image the context's and four targets' indices."""

    def block(scale: float, aspect: float) -> Tensor:
        area = scale * rows * columns
        height = min(rows, round(math.sqrt(area * aspect)))
        width = min(columns, round(math.sqrt(area / aspect)))
        top, left = random.randint(0, rows - height), random.randint(0, columns - width)
        cells = torch.zeros(rows, columns, dtype=torch.bool)
        cells[top : top + height, left : left + width] = True
        return cells

    masks = []
    for _ in range(batch_size):
        targets = [block(random.uniform(0.15, 0.2), random.uniform(0.75, 1.5)) for _ in range(4)]
        context = block(random.uniform(0.85, 1.0), rows / columns)
        for target in targets:
            context &= ~target
        masks.append((context.flatten().nonzero(), [target.flatten().nonzero() for target in targets]))
    return masks


def loop_over_clips(batch_size: int, steps: int, rows: int, columns: int) -> list[tuple[Tensor, Tensor]]:
    """V-JEPA's two tasks in the same way: for each clip and task the indices of the context and of the targets."""
    masks = []
    for blocks, scale in ((8, 0.15), (2, 0.7)):
        for _ in range(batch_size):
            hidden = torch.zeros(steps, rows, columns, dtype=torch.bool)
            for _ in range(blocks):
                aspect = random.uniform(0.75, 1.5)
                height = min(rows, round(math.sqrt(scale * rows * columns * aspect)))
                width = min(columns, round(math.sqrt(scale * rows * columns / aspect)))
                top, left = random.randint(0, rows - height), random.randint(0, columns - width)
                hidden[:, top : top + height, left : left + width] = True
            masks.append(((~hidden).flatten().nonzero(), hidden.flatten().nonzero()))
    return masks


def draw(masker: Masker, batch_size: int, grid: tuple[int, ...], generator: torch.Generator) -> None:
    for masks in masker.sample(batch_size, grid, generator):
        Indices.from_maps(masks.context)
        Indices.from_maps(masks.targets.flatten(0, 1))


def seconds(call: Callable[[], object], calls: int) -> float:
    """CPU seconds of one call, the mean over `calls`."""
    start = time.process_time()
    for _ in range(calls):
        call()
    return (time.process_time() - start) / calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--grid", type=int, nargs="+", default=(16, 16), help="rows and columns; time before them")
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)

    batch, grid, generator = args.batch, tuple(args.grid), torch.Generator().manual_seed(0)
    pictures = {
        "MultiBlock()": MultiBlock(),
        "MultiBlock(compat=True)": MultiBlock(compat=True),
        "SingleBlock()": SingleBlock(),
        "Rasterized()": Rasterized(),
        "RandomPatches()": RandomPatches(),
    }
    clips = {
        "MultiBlock3D()": MultiBlock3D(),
        "MultiBlock3D(compat=True)": MultiBlock3D(compat=True),
        "RandomTubes()": RandomTubes(),
        "Causal()": Causal(),
    }
    maskers, loop = (pictures, loop_over_images) if len(grid) == 2 else (clips, loop_over_clips)
    rows: dict[str, Callable[[], object]] = {"plain loop": lambda: loop(batch, *grid)}
    rows |= {name: lambda masker=masker: draw(masker, batch, grid, generator) for name, masker in maskers.items()}
    for call in rows.values():
        seconds(call, 3)
    times = {name: [] for name in rows}
    for _ in range(args.repeats):
        for name, call in rows.items():
            times[name].append(seconds(call, 2 if name == "plain loop" else 50))

    size = "x".join(map(str, grid))
    print(f"batch {batch}, grid {size}, one thread, torch {torch.__version__}, {args.repeats} repeats\n")
    print(f"{'':26}{'samples/s: min':>14}{'median':>10}{'max':>10}{'x loop: min':>14}{'median':>8}{'max':>8}")
    for name, own in times.items():
        rates = [batch / t for t in own]
        ratios = [loop / t for loop, t in zip(times["plain loop"], own, strict=True)]
        print(
            f"{name:26}{min(rates):14,.0f}{median(rates):10,.0f}{max(rates):10,.0f}"
            f"{min(ratios):14.1f}{median(ratios):8.1f}{max(ratios):8.1f}"
        )


if __name__ == "__main__":
    main()
