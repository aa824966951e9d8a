"""How fast does a predictor learn alone? The encoder of vjepa_tiny keeps its first weights and makes the targets.

    python -m benchmarks.small_data.predictors [--steps 200] [--clips 4000] [--seed 0]

Prints, for each predictor and rate, the L1 loss averaged over each quarter of the steps, beside what knows nothing (the
mean of all targets) and what only knows the place (the mean of the targets at each).
"""

from __future__ import annotations

import argparse
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.small_data.labels import drawn, normalised
from jepa.build import build
from jepa.data import MovingShapes
from jepa.interfaces import Encoder
from jepa.recipe import load_recipe
from jepa.types import Indices, View

BATCH, WARMUP, HIDDEN = 32, 50, 0.6
TRANSFORMER = ["predictor=vit", "predictor.axis_order=first_first"]
PREDICTORS = {
    "transformer, 48 wide, 2 deep": [*TRANSFORMER, "predictor.dim=48", "predictor.depth=2"],
    "transformer, 96 wide, 4 deep": [*TRANSFORMER, "predictor.dim=96", "predictor.depth=4"],
    "convolutions, 96 wide, 4 deep": [],
}
RATES = (1.4e-3, 5e-3)


def targets(encoder: Encoder, x: Tensor) -> Tensor:  # (B, C, T, H, W) -> (B, G, D)
    with torch.no_grad():
        tokens = encoder(View(x)).dense()
        return F.layer_norm(tokens, tokens.shape[-1:])


def learn(encoder: Encoder, clips: Tensor, parts: list[str], rate: float, steps: int, seed: int) -> list[float]:
    """Losses of the steps."""
    torch.manual_seed(seed)
    recipe = load_recipe(["recipe=vjepa_tiny", *parts])
    predictor = build(recipe["predictor"], "predictor", embed_dim=encoder.embed_dim)
    optimizer = torch.optim.AdamW(predictor.parameters(), rate, weight_decay=0.04)
    grid, losses = encoder.grid(clips.shape[2:]), []
    for step in range(1, steps + 1):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, step / WARMUP)
        x = normalised(clips[torch.randint(len(clips), (BATCH,))])
        hidden = torch.rand(BATCH, prod(grid)).argsort(1) < HIDDEN * prod(grid)
        with torch.no_grad():
            context = encoder(View(x, Indices.from_maps(~hidden, grid)))
        found = predictor(context, Indices.from_maps(hidden, grid)).x
        loss = F.l1_loss(found, targets(encoder, x)[hidden])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main(steps: int, clips: int, seed: int) -> None:
    seen, _ = drawn(MovingShapes(clips, 48, 8))
    torch.manual_seed(seed)
    encoder = build(load_recipe(["recipe=vjepa_tiny"])["encoder"], "encoder").eval().requires_grad_(False)
    known = torch.cat([targets(encoder, normalised(x)) for x in seen[:1000].split(100)])
    for name, mean in {"nothing known": known.mean((0, 1)), "the place known": known.mean(0)}.items():
        print(f"{name}: {(known - mean).abs().mean():.3f}")
    for name, parts in PREDICTORS.items():
        for rate in RATES:
            losses = torch.tensor(learn(encoder, seen, parts, rate, steps, seed))
            print(f"{name}, rate {rate:g}:", *(f"{part.mean():.3f}" for part in losses.chunk(4)), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"steps": 200, "clips": 4000, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    main(**vars(parser.parse_args()))
