"""Replay numbers recorded from the published code: python -m tests.replay_golden PREFIX

PREFIX.safetensors and PREFIX.json hold sizes, weights, inputs and the first steps of training. A line for each quantity
gives its largest relative error; the exit status is 1 if one exceeds 1e-5.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from jepa.encoders import ViT
from jepa.losses import SmoothL1
from jepa.model import JEPA
from jepa.nn.position import sincos_table
from jepa.optim import adamw, set_hyperparameters
from jepa.predictors import ViTPredictor
from jepa.schedules import Cosine, WarmupCosine
from jepa.targets import EMA
from jepa.types import Indices, JepaBatch, Task, View
from tests.published import ENCODER, PREDICTOR, load_published, relative_error

TOLERANCE = 1e-5


def build(args: dict, ema: list[float]) -> JEPA:
    return JEPA(
        encoder=ViT(dim=args["dim"], depth=args["depth"], heads=args["heads"], patch_size=args["patch"]),
        predictor=ViTPredictor(embed_dim=args["dim"], dim=args["pdim"], depth=args["pdepth"], heads=args["heads"]),
        target=EMA(start=ema[0], end=ema[1]),
        criterion=SmoothL1(),
    )


def batch(data: dict[str, Tensor], number: int, grid: tuple[int, int]) -> JepaBatch:
    """The recorded masks are (1, B, K) and mask-major (M, B, K); ours are sample-major sets."""
    x = data[f"batch{number}.x"]
    context, targets = data[f"batch{number}.context"][0], data[f"batch{number}.targets"].transpose(0, 1)

    def indices(values: Tensor) -> Indices:
        return Indices.of(values.flatten(), torch.full((values[..., 0].numel(),), values.shape[-1]), grid)

    return JepaBatch(View(x), [Task(View(x, indices(context)), indices(targets))])


def published_order(sets: Tensor, samples: int) -> Tensor:
    """(B * M, K, D) sample-major -> mask-major, as recorded."""
    return sets.unflatten(0, (samples, -1)).transpose(0, 1).flatten(0, 1)


def replay(prefix: str) -> dict[str, float]:
    """Relative error of every recorded quantity."""
    record = json.loads(Path(f"{prefix}.json").read_text())
    data = load_file(f"{prefix}.safetensors")
    args, hyper = record["args"], record["hyperparameters"]
    grid = (args["img"] // args["patch"],) * 2
    model = build(args, hyper["ema"])
    names: dict[str, str] = {}
    errors: dict[str, float] = {}
    for part, rules in (("encoder", ENCODER), ("predictor", PREDICTOR)):
        weights = {k.removeprefix(f"{part}."): v for k, v in data.items() if k.startswith(f"{part}.")}
        mapped = load_published(getattr(model, part), weights, rules)
        names |= {f"{part}.{theirs}": f"{part}.{ours}" for theirs, ours in mapped.items()}
        table = next(v for k, v in weights.items() if k.endswith("pos_embed"))[0]
        errors[f"{part} position table"] = relative_error(sincos_table(table.shape[1], grid, "last_first"), table)
    model.target_encoder.load_state_dict(model.encoder.state_dict())

    steps = int(hyper["ipe_scale"] * hyper["epochs"] * hyper["ipe"])
    lr = WarmupCosine(hyper["start_lr"], hyper["lr"], hyper["final_lr"], hyper["warmup"] * hyper["ipe"], steps)
    weight_decay = Cosine(hyper["wd"], hyper["final_wd"], steps)
    optimizer = adamw(model)
    for row in record["trajectory"]:
        step = row["step"]
        work = batch(data, (step - 1) % args["nbatch"], grid)
        set_hyperparameters(optimizer, lr=lr(step), weight_decay=weight_decay(step))
        out = model(work)
        optimizer.zero_grad()
        out.loss.backward()
        if step == 1:
            errors |= first_step(model, out, data, names, work)
        optimizer.step()
        momentum = model.updater.momentum(step, steps)
        model.update_target(momentum)
        ours = {"loss": out.loss.item(), "lr": lr(step), "weight_decay": weight_decay(step), "momentum": momentum}
        errors |= {f"step {step} {name}": relative_error(value, row[name]) for name, value in ours.items()}
    return errors


def first_step(model: JEPA, out, data: dict[str, Tensor], names: dict[str, str], work: JepaBatch) -> dict[str, float]:
    """Tokens, predictions, targets and every gradient of the first step."""
    seen = out.intermediates["tasks"][0]
    samples = len(work.target.x)
    with torch.no_grad():
        tokens = model.teacher(work.target).dense()
    targets = out.intermediates["target"].at(seen["query"]).view_as(seen["prediction"].dense())
    errors = {
        "step 1 target_tokens": relative_error(tokens, data["step0.target_tokens"]),
        "step 1 context_tokens": relative_error(seen["context"].dense(), data["step0.context_tokens"]),
        "step 1 predictions": relative_error(
            published_order(seen["prediction"].dense(), samples), data["step0.predictions"]
        ),
        "step 1 targets": relative_error(published_order(targets, samples), data["step0.targets"]),
    }
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for key in sorted(k for k in data if k.startswith("step0.grad.")):
        theirs = data[key]
        ours = gradients[names[key.removeprefix("step0.grad.")]].reshape(theirs.shape)
        errors[f"step 1 gradient of {key.removeprefix('step0.grad.')}"] = relative_error(ours, theirs)
    return errors


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    errors = replay(sys.argv[1])
    for name, error in errors.items():
        print(f"{error:10.2e}  {'ok ' if error <= TOLERANCE else 'BAD'}  {name}")
    worst = max(errors, key=lambda name: errors[name])
    print(f"{len(errors)} quantities, largest relative error {errors[worst]:.2e} ({worst}), tolerance {TOLERANCE:.0e}")
    return int(not all(error <= TOLERANCE for error in errors.values()))


if __name__ == "__main__":
    sys.exit(main())
