"""Speed of a training step against the method written down plainly: `python -m benchmarks.step`

Every round times each row once, one after another; a ratio compares two times of the same round. With one thread (the
default) times are CPU seconds of this process, so that other processes on the machine disturb them less. It runs on the
CPU; `benchmarks.gpu` is for CUDA.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor

from benchmarks.plain import PlainEncoder, PlainPredictor, PlainStep
from jepa.bench import flop_counter
from jepa.encoders import ViT
from jepa.losses import SmoothL1
from jepa.maskers import MultiBlock
from jepa.model import JEPA
from jepa.optim import adamw, set_hyperparameters
from jepa.predictors import ViTPredictor
from jepa.targets import EMA
from jepa.types import Indices, JepaBatch, Task, View

DIM, DEPTH, HEADS, PATCH, SIZE = 384, 12, 6, 16, 224  # ViT-S/16
PREDICTOR_DIM, PREDICTOR_DEPTH, PREDICTOR_HEADS = 192, 6, 6
GRID = (SIZE // PATCH, SIZE // PATCH)


class Step:
    """Ours: forward, backward, AdamW, moving average; remembers what the last moving average took."""

    def __init__(self, model: JEPA, precision: torch.dtype = torch.float32) -> None:
        self.model, self.precision, self.update_seconds = model.train(), precision, 0.0
        self.optimizer = adamw(model)
        set_hyperparameters(self.optimizer, lr=1e-4, weight_decay=0.05)

    def loss(self, batch: JepaBatch) -> Tensor:
        half = self.precision != torch.float32
        with torch.autocast(batch.target.x.device.type, dtype=torch.bfloat16, enabled=half):
            return self.model(batch).loss

    def __call__(self, batch: JepaBatch) -> None:
        self.loss(batch).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        start = now()
        self.model.update_target(0.996)
        self.update_seconds = now() - start


def small_model() -> JEPA:
    torch.manual_seed(0)
    return JEPA(
        encoder=ViT(dim=DIM, depth=DEPTH, heads=HEADS, patch_size=PATCH),
        predictor=ViTPredictor(embed_dim=DIM, dim=PREDICTOR_DIM, depth=PREDICTOR_DEPTH, heads=PREDICTOR_HEADS),
        target=EMA(),
        criterion=SmoothL1(),
    )


def plain_copy(model: JEPA) -> PlainStep:
    encoder = PlainEncoder(DIM, DEPTH, HEADS, PATCH, GRID)
    predictor = PlainPredictor(DIM, PREDICTOR_DIM, PREDICTOR_DEPTH, PREDICTOR_HEADS, GRID)
    for plain, ours in ((encoder, model.encoder), (predictor, model.predictor)):
        shapes = {name: value.shape for name, value in plain.state_dict().items()}
        plain.load_state_dict({name: value.reshape(shapes[name]) for name, value in ours.state_dict().items()})
    return PlainStep(encoder, predictor)


def draw(samples: int, size: int, patch: int, masker: MultiBlock) -> JepaBatch:
    generator = torch.Generator().manual_seed(0)
    (masks,) = masker.sample(samples, (size // patch, size // patch), generator)
    x = torch.randn(samples, 3, size, size, generator=generator)
    context, query = Indices.from_maps(masks.context), Indices.from_maps(masks.targets.flatten(0, 1))
    return JepaBatch(View(x), [Task(View(x, context), query)])


def dense(batch: JepaBatch) -> tuple[Tensor, Tensor, Tensor]:
    """The same problem for the plain formulation: picture, context (B, K), targets (M, B, K)."""
    task = batch.tasks[0]
    samples = len(batch.target.x)
    targets = task.query.values.view(samples, len(task.query) // samples, -1)
    return batch.target.x, task.context.keep.values.view(samples, -1), targets.transpose(0, 1).contiguous()


def tokens(batch: JepaBatch) -> int:
    """Tokens that pass through target encoder, encoder and predictor."""
    task = batch.tasks[0]
    context, per_sample = task.context.keep.total, len(task.query) // len(batch.target.x)
    return len(batch.target.x) * GRID[0] * GRID[1] + context * (1 + per_sample) + task.query.total


def arithmetic(step: Step, batch: JepaBatch) -> int:
    """Floating-point operations of a forward and backward pass."""
    with flop_counter(batch.target.signal.device) as counter:
        step.loss(batch).backward()
    step.optimizer.zero_grad()
    return counter.get_total_flops()


def now() -> float:
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def seconds(work: Callable[[], object]) -> float:
    start = now()
    work()
    return now() - start


def spread(values: Sequence[float]) -> str:
    return f"min {min(values):.2f}  median {median(values):.2f}  max {max(values):.2f}"


def compare(samples: int, rounds: int) -> None:
    equal, ragged = (draw(samples, SIZE, PATCH, MultiBlock(compat=cut)) for cut in (True, False))
    single, half, packed = Step(small_model()), Step(small_model(), torch.bfloat16), Step(small_model())
    plain, problem = plain_copy(small_model()), dense(equal)
    with torch.no_grad():
        ours, theirs = float(single.loss(equal)), float(plain.loss(*problem))
    assert abs(ours / theirs - 1) <= 1e-5, (ours, theirs)

    rows: dict[str, Callable[[], object]] = {
        "plain": lambda: plain(*problem),
        "ours": lambda: single(equal),
        "ours bf16": lambda: half(equal),
        "ragged": lambda: packed(ragged),
    }
    times: dict[str, list[float]] = {name: [] for name in rows}
    shares = []
    for number in range(rounds + 1):
        for name, work in rows.items():
            taken = seconds(work)
            if number:  # the first round warms up
                times[name].append(taken)
                if name == "ours":
                    shares.append(single.update_seconds / taken)

    def ratio(above: str, below: str, factor: float = 1.0) -> str:
        return spread([factor * a / b for a, b in zip(times[above], times[below], strict=True)])

    print(f"ViT-S/16, {samples} samples, {torch.get_num_threads()} threads, torch {torch.__version__}, {rounds} rounds")
    print(f"losses before the first step: ours {ours:.8f}, plain {theirs:.8f}\n")
    for name, own in times.items():
        print(f"{name + ', s/step':40}{spread(own)}")
    kept, work = tokens(ragged) / tokens(equal), arithmetic(single, ragged) / arithmetic(single, equal)
    print(f"\n{'plain / ours (bar: 1.0)':40}{ratio('plain', 'ours')}")
    print(f"{'plain / ours bf16 (bar: 1.6)':40}{ratio('plain', 'ours bf16')}")
    print(f"{'moving average, % of our step (bar: 2)':40}{spread([100 * share for share in shares])}")
    print(f"{'ragged / cut masks, tokens':40}{tokens(ragged)} / {tokens(equal)} = {kept:.2f}")
    print(f"{'ragged / cut masks, FLOP':40}{work:.2f}")
    print(f"{'ragged / cut masks, time':40}{ratio('ragged', 'ours')}")
    print(f"{'ragged / cut masks, tokens/s':40}{ratio('ours', 'ragged', kept)}")
    print(f"{'ragged / cut masks, FLOP/s':40}{ratio('ours', 'ragged', work)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    compare(args.samples, args.rounds)


if __name__ == "__main__":
    main()
