"""Speed of a recipe on this machine: python -m jepa.bench recipe=NAME [key=value ...]

Prints samples and tokens per second, TFLOP/s and their share of the matrix-product peak measured here, peak memory, and
where a step's time goes. Data comes from the recipe, so that waiting for it is measured too; nothing is written.
Two more keys: bench.steps (10, timed) and bench.warmup (3, not timed).
"""

from __future__ import annotations

import logging
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula

from jepa import recipe as recipes
from jepa.assemble import assemble
from jepa.build import RecipeError
from jepa.run import ERRORS, make_accelerator
from jepa.trainer import Trainer
from jepa.types import Indices, JepaBatch

PHASES = ("data", "target", "context", "predictor", "backward", "optimizer", "target update")


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        counts = {"bench.steps": 10, "bench.warmup": 3}
        for argument in [a for a in arguments if a.partition("=")[0] in counts]:
            name, _, value = argument.partition("=")
            if not value.isdigit() or (name == "bench.steps" and value == "0"):
                raise RecipeError(f"{argument}: give a number of steps")
            counts[name] = int(value)
            arguments.remove(argument)
        arguments = [a for a in arguments if not a.startswith(("train.steps=", "train.epochs=", "train.samples="))]
        with tempfile.TemporaryDirectory() as folder:
            recipe = recipes.load_recipe(
                [*arguments, f"run_dir={folder}", f"train.steps={sum(counts.values()) * 2 + 1}"]
            )
            print(report(recipe, warmup=counts["bench.warmup"], steps=counts["bench.steps"]))
    except ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def report(recipe: Mapping[str, Any], *, warmup: int, steps: int) -> str:
    """Measure a recipe; the table as text."""
    settings = recipes.train_settings(recipe)
    accelerator = make_accelerator(settings, recipe["run_dir"])
    trainer = assemble(recipe, settings, accelerator)
    bench = Bench(trainer)
    stream = bench.stream()
    flops, tokens = bench.count(next(stream))
    bench.run(stream, warmup)
    seconds = timed(lambda: bench.run(stream, steps), bench.device) / steps
    phases = bench.phases(stream, steps)
    peak = matmul_peak(accelerator.device, torch.bfloat16 if settings.precision == "bf16" else torch.float32)
    samples = trainer.batches.slice_size
    rows = [
        (
            "recipe",
            f"{recipe['recipe']}, {settings.precision}, {accelerator.device}, {samples} samples per micro-batch",
        ),
        ("samples/s", f"{samples / seconds:,.2f}"),
        ("tokens/s", f"{tokens / seconds:,.0f} (target, context and predictor tokens)"),
        ("TFLOP/s", f"{flops / seconds / 1e12:.3g}"),
        ("matmul peak", f"{peak / 1e12:.3g} TFLOP/s measured here; the step uses {flops / seconds / peak:.1%} of it"),
        ("memory", memory(accelerator.device)),
        ("step", f"{seconds * 1e3:,.1f} ms"),
        *((name, f"{phases[name] * 1e3:,.1f} ms  {phases[name] / sum(phases.values()):6.1%}") for name in PHASES),
    ]
    accelerator.end_training()
    return "\n".join(f"{name:<15}{value}" for name, value in rows)


class Bench:
    """Steps of a trainer's parts, whole or phase by phase."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.device = trainer, trainer.accelerator.device

    def stream(self) -> Iterator[JepaBatch]:
        for batch in self.trainer.stream():
            yield self.trainer.batch_transform(batch.to(self.device))

    def run(self, stream: Iterator[JepaBatch], steps: int) -> None:
        for _ in range(steps):
            self.step(stream)

    def step(self, stream: Iterator[JepaBatch], timed: Callable[[str, Callable[[], Any]], Any] | None = None) -> None:
        run = timed or (lambda name, work: work())
        trainer = self.trainer
        batch = run("data", lambda: next(stream))
        output = trainer.model(batch)
        run("backward", lambda: trainer.accelerator.backward(output.loss))
        run("optimizer", lambda: (trainer.optimizer.step(), trainer.optimizer.zero_grad(set_to_none=True)))
        run("target update", lambda: trainer.jepa.update_target(0.999))

    def phases(self, stream: Iterator[JepaBatch], steps: int) -> dict[str, float]:
        """Mean seconds of each phase, waiting for the device between them."""
        seconds = dict.fromkeys(PHASES, 0.0)

        def clock(name: str, work: Callable[[], Any]) -> Any:
            result: list[Any] = []
            seconds[name] += timed(lambda: result.append(work()), self.device)
            return result[0]

        model = self.trainer.jepa
        parts = {"context": model.encoder, "predictor": model.predictor}
        if model.target_encoder is not None:
            parts["target"] = model.target_encoder
        with self._clocked(parts, seconds):
            for _ in range(steps):
                self.step(stream, clock)
        return {name: total / steps for name, total in seconds.items()}

    @contextmanager
    def _clocked(self, parts: Mapping[str, nn.Module], seconds: dict[str, float]) -> Iterator[None]:
        started: dict[str, float] = {}

        def now() -> float:
            synchronize(self.device)
            return time.perf_counter()

        handles = []
        for name, part in parts.items():
            handles.append(part.register_forward_pre_hook(lambda *_, name=name: started.update({name: now()})))
            handles.append(
                part.register_forward_hook(
                    lambda *_, name=name: seconds.update({name: seconds[name] + now() - started[name]})
                )
            )
        yield
        for handle in handles:
            handle.remove()

    def count(self, batch: JepaBatch) -> tuple[float, int]:
        """FLOPs of a step's forward and backward passes, and the tokens that they process."""
        with flop_counter(self.device) as counter:
            self.trainer.accelerator.backward(self.trainer.model(batch).loss)
        self.trainer.optimizer.zero_grad(set_to_none=True)
        tokens = 0
        with torch.no_grad():
            tokens += self.trainer.jepa.teacher(batch.target).index.total
        for task in batch.tasks:
            seen = task.context.keep.total if task.context.keep is not None else 0
            tokens += seen
            if isinstance(task.query, Indices):
                tokens += seen * (len(task.query) // len(batch.target)) + task.query.total
        return counter.get_total_flops(), tokens


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds that `work` takes, with what it asks of the device."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def flop_counter(device: torch.device) -> FlopCounterMode:
    """Counts arithmetic, that of attention over packed sequences too, for which older releases of torch have no
    formula."""
    if device.type == "cuda":
        register_varlen()
    return FlopCounterMode(display=False)


def register_varlen() -> None:
    from torch.nn.attention import varlen  # noqa: F401  its operators are there from now on

    operators = torch.ops.torch_attn
    if operators._varlen_attn in flop_registry:
        return

    def products(query: Tensor, ends: Tensor) -> int:
        """Of one (L, D) x (D, L) product for each head and sequence."""
        lengths = ends.diff().double()
        return int(2 * lengths.square().sum()) * query.shape[1] * query.shape[2]

    @register_flop_formula(operators._varlen_attn, get_raw=True)
    def forward(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, *_: Any, **__: Any) -> int:
        return 2 * products(query, ends)

    @register_flop_formula(operators._varlen_attn_backward, get_raw=True)
    def backward(
        grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, ends: Tensor,
        *_: Any, **__: Any,
    ) -> int:  # fmt: skip
        return 5 * products(query, ends)  # as torch counts its other kernels: scores are computed again


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of square matrix products: the best of several, each twice as wide, until one takes a while."""
    small = torch.randn(8, 8, device=device).to(dtype)
    small @ small  # libraries load
    best = 0.0
    for size in (512, 1024, 2048, 4096, 8192):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        for _ in range(5):
            taken = timed(partial(torch.mm, a, b), device)
            best = max(best, 2 * size**3 / taken)
            if taken > 0.5:  # half precision on a processor without it
                return best
    return best


def memory(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB peak on the device"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB peak of the process"


if __name__ == "__main__":
    sys.exit(main())
