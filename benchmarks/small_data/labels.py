"""Train the encoder of vjepa_tiny *with* labels of direction and shape: can it learn at all what a JEPA is to learn?

    python -m benchmarks.small_data.labels [--steps 400] [--gain 0] [--stem linear] [--clips 10000] [--seed 0]

`gain` is the standard deviation of first weights times the square root of a layer's inputs; 0 leaves the published .02.
Prints mean losses on the way, and accuracies on 2,000 test clips.
"""

from __future__ import annotations

import argparse
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.small_data.parts import STEMS
from jepa.build import build
from jepa.data import MovingShapes
from jepa.data.base import SampleDataset
from jepa.recipe import load_recipe
from jepa.types import View

CLASSES = {"direction": 8, "shape": 6}
BATCH, RATE, WARMUP = 64, 1e-3, 50


def drawn(data: SampleDataset) -> tuple[Tensor, Tensor]:
    """All clips (N, 3, T, H, W) uint8, and their labels (N, 2)."""
    samples = [data[i] for i in range(len(data))]
    return torch.stack([s.x for s in samples]), torch.tensor([[int(s.labels[n]) for n in CLASSES] for s in samples])


def normalised(clips: Tensor) -> Tensor:
    return (clips.float() / 255 - 0.5) / 0.19


def main(steps: int, gain: float, stem: str, clips: int, seed: int) -> None:
    varied = "encoder._target_=benchmarks.small_data.parts.VariedViT"
    recipe = load_recipe(["recipe=vjepa_tiny", varied, f"encoder.stem={stem}"])
    train, test = (drawn(MovingShapes(n, 48, 8, split=s)) for n, s in ((clips, "train"), (2000, "test")))
    torch.manual_seed(seed)
    encoder = build(recipe["encoder"], "encoder")
    for layer in encoder.modules():
        if gain and isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=gain / sqrt(layer.in_features), a=-2.0, b=2.0)
    head = nn.Linear(encoder.embed_dim, sum(CLASSES.values()))
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], RATE, weight_decay=0.05)

    def answers(x: Tensor) -> tuple[Tensor, ...]:
        pooled = encoder(View(normalised(x))).pooled()
        return head(pooled).split(list(CLASSES.values()), dim=1)

    losses = []
    for step in range(1, steps + 1):
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, step / WARMUP)
        rows = torch.randint(len(train[0]), (BATCH,))
        found = torch.stack(
            [F.cross_entropy(a, y) for a, y in zip(answers(train[0][rows]), train[1][rows].T, strict=True)]
        )
        optimizer.zero_grad()
        found.sum().backward()
        optimizer.step()
        losses.append(found.detach())
        if step % 50 == 0:
            means = torch.stack(losses[-50:]).mean(0).tolist()
            print(f"step {step}:", *(f"{n} {m:.3f}" for n, m in zip(CLASSES, means, strict=True)), flush=True)
    encoder.eval()
    with torch.inference_mode():
        said = [torch.stack([a.argmax(1) for a in answers(x)], 1) for x in test[0].split(100)]
    right = (torch.cat(said) == test[1]).float().mean(0).tolist()
    print("accuracy:", *(f"{name} {share:.3f}" for name, share in zip(CLASSES, right, strict=True)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"steps": 400, "gain": 0.0, "clips": 10_000, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--stem", choices=STEMS, default="linear")
    main(**vars(parser.parse_args()))
