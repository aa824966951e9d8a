"""Replay numbers recorded from the published code: python -m tests.replay_golden PREFIX

PREFIX.safetensors and PREFIX.json hold sizes, weights, inputs and the first steps of training. A line for each quantity
gives its largest relative error; the exit status is 1 if one exceeds 1e-5.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from jepa.encoders import ViT
from jepa.losses import L1, SmoothL1
from jepa.model import JEPA
from jepa.nn.position import sincos_table
from jepa.optim import adamw, set_hyperparameters
from jepa.predictors import ViTPredictor
from jepa.schedules import Cosine, WarmupCosine
from jepa.targets import EMA
from jepa.types import Indices, JepaBatch, StepOutput, Task, View
from tests.published import ENCODER, PREDICTOR, load_published, own_part, relative_error

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Recorded:
    """What differs between the recordings of the published methods.

    Attributes:
        tasks: keys of the masks of each task, and the end of the keys of its tokens.
        prefix: of the weights' names.
        parts: options of the encoder, and of the predictor beside these.
        criterion: of the loss.
    """

    tasks: tuple[tuple[str, str, str], ...]
    prefix: str
    encoder: Mapping[str, Any]
    predictor: Mapping[str, Any]
    criterion: type[L1 | SmoothL1]


RECORDED = {
    "ijepa": Recorded((("context", "targets", ""),), "", {"axis_order": "last_first"}, {}, SmoothL1),
    "vjepa": Recorded(
        (("context0", "target0", "0"), ("context1", "target1", "1")),
        "backbone.",
        {"axis_order": "first_first"},
        {"mask_tokens": 2, "zero_init_mask_tokens": True},
        L1,
    ),
}


def patch_size(args: dict) -> tuple[int, ...]:
    return (args["patch"],) * 2 if args["which"] == "ijepa" else (args["tubelet"], args["patch"], args["patch"])


def grid_of(args: dict) -> tuple[int, ...]:
    size = (args["img"],) * 2 if args["which"] == "ijepa" else (args["frames"], args["img"], args["img"])
    return tuple(s // p for s, p in zip(size, patch_size(args), strict=True))


def build(args: dict, ema: list[float]) -> JEPA:
    recorded = RECORDED[args["which"]]
    shape = {"dim": args["pdim"], "depth": args["pdepth"], "heads": args["heads"]}
    return JEPA(
        encoder=ViT(
            dim=args["dim"],
            depth=args["depth"],
            heads=args["heads"],
            patch_size=patch_size(args),
            **recorded.encoder,
        ),
        predictor=ViTPredictor(embed_dim=args["dim"], **shape, **recorded.encoder, **recorded.predictor),
        target=EMA(start=ema[0], end=ema[1]),
        criterion=recorded.criterion(),
    )


def batch(data: dict[str, Tensor], number: int, recorded: Recorded, grid: tuple[int, ...]) -> JepaBatch:
    """I-JEPA's recorded masks are (1, B, K) and mask-major (M, B, K), V-JEPA's (B, K); ours are sample-major sets."""
    x = data[f"batch{number}.x"]

    def indices(key: str, task: int) -> Indices:
        values = data[f"batch{number}.{key}"].view(-1, len(x), data[f"batch{number}.{key}"].shape[-1]).transpose(0, 1)
        lengths = torch.full((prod(values.shape[:2]),), values.shape[2])
        return replace(Indices.of(values.flatten(), lengths, grid), task=task)

    return JepaBatch(
        View(x),
        [
            Task(View(x, indices(context, task)), indices(targets, task))
            for task, (context, targets, _) in enumerate(recorded.tasks)
        ],
    )


def published_order(sets: Tensor, samples: int) -> Tensor:
    """(B * M, K, D) sample-major -> mask-major, as recorded."""
    return sets.unflatten(0, (samples, -1)).transpose(0, 1).flatten(0, 1)


def replay(prefix: str) -> dict[str, float]:
    """Relative error of every recorded quantity."""
    record = json.loads(Path(f"{prefix}.json").read_text())
    data = load_file(f"{prefix}.safetensors")
    args, hyper = record["args"], record["hyperparameters"]
    recorded, grid = RECORDED[args["which"]], grid_of(args)
    model = build(args, hyper["ema"])
    names: dict[str, str] = {}
    errors: dict[str, float] = {}
    for part, rules in (("encoder", ENCODER), ("predictor", PREDICTOR)):
        prefix = f"{part}.{recorded.prefix}"
        weights = {k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)}
        mapped = load_published(getattr(model, part), weights, rules)
        names |= {f"{prefix}{theirs}": f"{part}.{ours}" for theirs, ours in mapped.items()}
        table = next(v for k, v in weights.items() if k.endswith("pos_embed"))[0]
        ours = sincos_table(table.shape[1], grid, recorded.encoder["axis_order"])
        errors[f"{part} position table"] = relative_error(ours, table)
    model.target_encoder.load_state_dict(model.encoder.state_dict())

    steps = int(hyper["ipe_scale"] * hyper["epochs"] * hyper["ipe"])
    lr = WarmupCosine(hyper["start_lr"], hyper["lr"], hyper["final_lr"], hyper["warmup"] * hyper["ipe"], steps)
    weight_decay = Cosine(hyper["wd"], hyper["final_wd"], steps)
    optimizer = adamw(model)
    for row in record["trajectory"]:
        step = row["step"]
        work = batch(data, (step - 1) % args["nbatch"], recorded, grid)
        set_hyperparameters(optimizer, lr=lr(step), weight_decay=weight_decay(step))
        out = model(work)
        optimizer.zero_grad()
        out.loss.backward()
        if step == 1:
            errors |= first_step(model, out, data, names, work, recorded)
        optimizer.step()
        momentum = model.updater.momentum(step, steps)
        model.update_target(momentum)
        ours = {"loss": out.loss.item(), "lr": lr(step), "weight_decay": weight_decay(step), "momentum": momentum}
        errors |= {f"step {step} {name}": relative_error(value, row[name]) for name, value in ours.items()}
    return errors


def first_step(
    model: JEPA, out: StepOutput, data: dict[str, Tensor], names: dict[str, str], work: JepaBatch, recorded: Recorded
) -> dict[str, float]:
    """Tokens, predictions, targets and every gradient of the first step."""
    samples = len(work.target.x)
    with torch.no_grad():
        tokens = model.teacher(work.target).dense()
    errors = {"step 1 target_tokens": relative_error(tokens, data["step0.target_tokens"])}
    for (_, _, end), seen in zip(recorded.tasks, out.intermediates["tasks"], strict=True):
        found = {
            "context_tokens": seen["context"].dense(),
            "predictions": published_order(seen["prediction"].dense(), samples),
            "targets": published_order(
                out.intermediates["target"].at(seen["query"]).view_as(seen["prediction"].dense()), samples
            ),
        }
        errors |= {f"step 1 {n}{end}": relative_error(ours, data[f"step0.{n}{end}"]) for n, ours in found.items()}
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for key in sorted(k for k in data if k.startswith("step0.grad.")):
        theirs = data[key]
        ours = own_part(gradients[names[key.removeprefix("step0.grad.")]], key).reshape(theirs.shape)
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
