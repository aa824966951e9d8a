"""The training loop. It knows batches, a model and step numbers; nothing of modalities, methods or Hydra.

Everything random or scheduled is a function of the step, so that a run continues exactly where a checkpoint left it.
"""

from __future__ import annotations

import logging
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from jepa import checkpoint
from jepa.data.batches import Batches, loader
from jepa.metrics import Clock, MetricsFile
from jepa.model import JEPA
from jepa.nn.blocks import compile_blocks
from jepa.optim import set_hyperparameters, trained_parts
from jepa.plan import Facts, Plan, Probe
from jepa.seeding import Stream, key
from jepa.stop import Stop
from jepa.types import JepaBatch, StepOutput

log = logging.getLogger(__name__)

Schedule = Callable[[int], float]


class NonFiniteLoss(RuntimeError):
    """The loss is no longer a number."""


class Trainer:
    """Runs optimiser steps 1..plan.steps, from wherever the newest checkpoint left them.

    Args:
        model: the JEPA, on the CPU.
        make_optimizer: parameters of a model -> optimiser, called once the model is on its device.
        batches: this process's micro-batches, each a function of its number.
        batch_transform: runs on the device on every batch.
        lr, weight_decay: schedules of the optimiser step.
        accelerator: device, processes and precision.
        plan: lengths and places.
        probe: looks on, if given.
    """

    def __init__(
        self,
        *,
        model: JEPA,
        make_optimizer: Callable[[JEPA], torch.optim.Optimizer],
        batches: Batches,
        batch_transform: Callable[[JepaBatch], JepaBatch],
        lr: Schedule,
        weight_decay: Schedule,
        accelerator: Accelerator,
        plan: Plan,
        compile: bool = False,
        probe: Probe | None = None,
    ) -> None:
        self.accelerator, self.plan, self.batches, self.probe = accelerator, plan, batches, probe
        self.batch_transform, self.lr, self.weight_decay = batch_transform, lr, weight_decay
        self.jepa = model.to(accelerator.device).train()
        if compile:
            compile_blocks(self.jepa)
        self.optimizer = make_optimizer(self.jepa)
        self.model = accelerator.prepare(self.jepa)  # DDP and autocast around the same parameters
        self.step = 0
        self.stop = Stop()
        self.skipped = 0  # samples, by this process
        self.skipped_by_all = 0  # as of the last time that the processes agreed
        self.metrics = MetricsFile(plan.run_dir / "metrics.jsonl", write=accelerator.is_main_process)

    def resume(self, checkpoints: Path | None = None) -> int:
        """Continue from the newest usable checkpoint of the run directory, if there is one.

        Args:
            checkpoints: another run's instead.

        Returns:
            the step it was written after; 0 where there is none.

        Raises:
            checkpoint.CheckpointError: checkpoints are damaged, or belong to other data or another model.
        """
        found = checkpoint.newest_usable(checkpoints or self.plan.checkpoints)
        if found is not None:
            path, state = found
            if state["fingerprint"] != self.plan.fingerprint:
                raise checkpoint.CheckpointError(
                    f"the data changed since {path} was written (it was {state['fingerprint']}, it is "
                    f"{self.plan.fingerprint}): give back the same samples, or start anew with another run_dir"
                )
            seen = checkpoint.load(path, self.jepa, self.optimizer)
            if self.probe is not None and seen:
                self.probe.load_state_dict(seen)
            self.step = state["step"]
            self.skipped_by_all = state["skipped"]
            self.skipped = state["skipped"] if self.accelerator.is_main_process else 0
        self.accelerator.wait_for_everyone()
        self.metrics.truncate(self.step)
        return self.step

    def stream(self) -> Iterator[JepaBatch]:
        """This process's micro-batches from after the current step to the end of the plan."""
        return iter(
            loader(
                self.batches,
                start=self.step * self.batches.accumulate,
                stop=self.plan.steps * self.batches.accumulate,
                workers=self.plan.workers,
                pin_memory=self.accelerator.device.type == "cuda",
            )
        )

    def fit(self) -> bool:
        """Train to the end of the plan.

        Returns:
            whether the end was reached; False after SIGTERM or SIGINT, with a checkpoint written.

        Raises:
            NonFiniteLoss: naming the step, the last good checkpoint and what to try.
            checkpoint.CheckpointError: a checkpoint could not be written.
        """
        plan = self.plan
        stream = self.stream()
        clock = Clock(self.step)
        first_bad = torch.zeros((), device=self.accelerator.device)  # step of the first loss that is not finite
        with self.stop.on_signals(), self._progress() as bar:
            while self.step < plan.steps:
                self.step += 1
                terms, output, batch, momentum = self._train_step(stream, clock)
                loss = torch.stack(list(terms.values())).sum()
                first_bad = torch.where((first_bad == 0) & ~loss.isfinite(), float(self.step), first_bad)
                last = self.step == plan.steps
                looking_due = self.probe is not None and (last or self.step % self.probe.every == 0)
                seen = self._look(output, batch, looking_due)
                bar.update(1)
                logging_due = last or self.step == 1 or self.step % plan.log_every == 0 or looking_due
                saving_due = last or self.step % plan.checkpoint_every == 0
                alone = self.accelerator.num_processes == 1
                if not (logging_due or saving_due or (alone and self.stop.reason)):
                    continue
                facts = self._agree(terms, first_bad)  # the only place that waits for the device
                if facts.bad_step:
                    raise self._non_finite(facts.bad_step)
                if logging_due:
                    self._log(facts, momentum, seen, clock, bar)
                if saving_due or facts.stop:
                    self._save(facts)
                if facts.stop and not last:
                    return False
        return True

    def _train_step(
        self, stream: Iterator[JepaBatch], clock: Clock
    ) -> tuple[dict[str, Tensor], StepOutput, JepaBatch, float]:
        """One optimiser step over its micro-batches; returns this process's part of the loss's terms, the last
        micro-batch and what came of it, and the target's momentum."""
        step = self.step
        torch.manual_seed(key(self.batches.seed, Stream.STEP, step, self.accelerator.process_index))
        set_hyperparameters(self.optimizer, lr=self.lr(step), weight_decay=self.weight_decay(step))
        terms: dict[str, Tensor] = {}
        for number in range(self.batches.accumulate):
            with clock.waiting():
                batch = next(stream)
            self._report_skipped(batch)
            batch = self.batch_transform(batch.to(self.accelerator.device))
            last = number == self.batches.accumulate - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                output = self.model(batch)
                self.accelerator.backward(output.loss)
            terms = {name: terms[name] + term if number else term for name, term in output.terms.items()}
        self._clip()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        momentum = self.jepa.updater.momentum(step, self.plan.steps)
        self.jepa.update_target(momentum)
        return terms, output, batch, momentum

    def _clip(self) -> None:
        plan = self.plan
        if plan.clip_norm is None or self.step <= plan.clip_after:
            return
        parts = [self.jepa.get_submodule(name) for name in trained_parts(self.jepa)] if plan.clip_parts else [self.jepa]
        for part in parts:
            self.accelerator.clip_grad_norm_(part.parameters(), plan.clip_norm)

    def _look(self, output: StepOutput, batch: JepaBatch, due: bool) -> Mapping[str, float]:
        if self.probe is None or not self.accelerator.is_main_process:
            return {}
        seen = self.probe(self.step, output, batch, due=due)
        if self.probe.stop and not self.stop.reason:
            self.stop.reason = self.probe.stop
        return seen

    def _agree(self, terms: Mapping[str, Tensor], first_bad: Tensor) -> Facts:
        """What all processes know together: mean terms, whether one lost its numbers, was told to stop, skipped."""
        mine = [*terms.values(), first_bad, self.stop.reason is not None, self.skipped]
        numbers = torch.stack([torch.as_tensor(x, dtype=torch.float32, device=first_bad.device) for x in mine])
        *sums, bad, stop, skipped = self.accelerator.reduce(numbers, reduction="sum").tolist()
        means = {name: total / self.accelerator.num_processes for name, total in zip(terms, sums, strict=True)}
        bad_step = int(first_bad.item()) or (self.step if bad else 0)
        self.skipped_by_all = int(skipped)
        return Facts(means, bad_step, bool(stop), int(skipped))

    def _log(
        self,
        facts: Facts,
        momentum: float,
        seen: Mapping[str, float],
        clock: Clock,
        bar: Any,
    ) -> None:
        step = self.step
        rate, waiting = clock.lap(step, self.batches.batch_size)
        row = {
            "step": step,
            "samples": step * self.batches.batch_size,
            "loss": facts.loss,
            "lr": self.lr(step),
            "weight_decay": self.weight_decay(step),
            "momentum": momentum,
            **({f"loss_{name}": term for name, term in facts.terms.items()} if len(facts.terms) > 1 else {}),
            **seen,
            "skipped": facts.skipped,
            "samples_per_second": rate,
            "data_wait": waiting,
        }
        self.metrics.append(row)
        self.accelerator.log({k: v for k, v in row.items() if k != "step"}, step=step)
        shown = {"loss": f"{facts.loss:.4f}", "samples/s": f"{rate:.0f}"}
        shown |= self.probe.summary() if self.probe is not None and self.accelerator.is_main_process else {}
        bar.set_postfix(shown | ({"skipped": facts.skipped} if facts.skipped else {}))

    def _save(self, facts: Facts) -> None:
        weights = [tensor for tensor in self.jepa.state_dict().values() if tensor.is_floating_point()]
        if not torch.stack(torch._foreach_norm(weights)).isfinite().all():  # the last step lost them, after its loss
            raise self._non_finite(self.step)
        if self.accelerator.is_main_process:
            state = {
                "samples": self.step * self.batches.batch_size,
                "fingerprint": self.plan.fingerprint,
                "skipped": facts.skipped,
                "loss": facts.loss,
                "torch": torch.__version__,
                "hardware": f"{self.accelerator.num_processes} x {device_name(self.accelerator.device)}",
            }
            seen = self.probe.state_dict() if self.probe is not None else {}
            path, size = checkpoint.save(self.plan.checkpoints, self.step, self.jepa, self.optimizer, state, seen)
            checkpoint.prune(self.plan.checkpoints, self.step, self.plan.keep_last, self.plan.keep_every)
            log.info("checkpoint of step %d: %s (%s)", self.step, path, f"{size / 1e6:,.1f} MB")
        self.accelerator.wait_for_everyone()

    def _report_skipped(self, batch: JepaBatch) -> None:
        for line in batch.skipped:
            self.skipped += 1
            log.warning("skipped %s", line)

    def _non_finite(self, bad_step: int) -> NonFiniteLoss:
        found = checkpoint.complete(self.plan.checkpoints)
        last_good = f"the last good checkpoint is {found[-1]}" if found else "there is no checkpoint yet"
        return NonFiniteLoss(
            f"the loss is not finite at step {bad_step}; {last_good}. Try a lower peak learning rate (optim.lr.peak), "
            f"a longer warmup (optim.lr.warmup), gradient clipping (train.clip_norm=1.0), or train.precision=fp32; "
            f"if it happens at once, look for broken inputs"
        )

    def _progress(self) -> Any:
        return tqdm(
            total=self.plan.steps,
            initial=self.step,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 30.0,  # a log file is not a screen
            disable=not self.accelerator.is_main_process,
        )


def device_name(device: torch.device) -> str:
    """What a person calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"
