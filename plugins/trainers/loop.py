"""The training loop that the trainers share.

The loss of an optimiser step is the mean cross-entropy over the step's supervised tokens, however the step is split
into micro-batches: their token losses are summed, and each sum is divided by the step's total.

Everything random is a function of (seed, step): the order of the sequences, and dropout, whose generator is seeded anew
at each step. A checkpoint therefore holds weights, optimiser and progress, and nothing else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from attrs import asdict, frozen

from modelwright.core.api import Job, ModelwrightError, Trained, files
from modelwright.plugins.trainers import schedule
from modelwright.plugins.trainers.checkpoints import Checkpoints, Progress, write_finished
from modelwright.plugins.trainers.data import Corpus, Numbers, Plan, held_out
from modelwright.plugins.trainers.forward import SupervisedLogits
from modelwright.plugins.trainers.isolation import check_isolation

# With how many packs a model must show that it keeps documents apart.
_CHECKED_PACKS = 4


class Strategy(Protocol):
    """How one kind of trainer computes; the loop decides what is computed, and when.

    Attributes:
        model: the module that is called, a causal language model of transformers.
        device: where its inputs go.
    """

    model: Any
    device: torch.device

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of the forward pass."""
        ...

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of `loss` (a scalar) to those of the step so far."""
        ...

    def step(self, learning_rate: float) -> torch.Tensor:
        """Clip the gradients, step, forget them; gives their 2-norm before clipping, a scalar."""
        ...

    def save(self, folder: Path) -> None:
        """Write weights and optimiser into a checkpoint's folder."""
        ...

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        ...

    def export(self, folder: Path) -> None:
        """Write config and weights in Hugging Face layout, or the adapter that was trained."""
        ...

    def facts(self) -> dict[str, Any]:
        """What the event `started` says of the machine: device, precision and the like."""
        ...


@frozen
class StepResult:
    """What one optimiser step did.

    Attributes:
        loss: mean over its supervised tokens, in nats.
        grad_norm: the gradient's 2-norm before clipping.
        learning_rate: what was stepped with.
        tokens: tokens that went through the model, padding aside.
        supervised: tokens that were learnt.
    """

    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    supervised: int


class Loop:
    """One training job.

    Args:
        job: what to train.
        strategy: how.
        corpus: the job's tokens.
        micro_batch_tokens: the most tokens of a micro-batch where the settings give no size.
    """

    def __init__(self, job: Job, strategy: Strategy, corpus: Corpus, *, micro_batch_tokens: int) -> None:
        self.job = job
        self.settings = job.settings
        self.strategy = strategy
        self.corpus = corpus
        self.plan = Plan(corpus, job.settings, seed=job.seed)
        self.warmup = schedule.warmup_steps(self.plan.steps, job.settings.warmup)
        self.holdout = held_out(job)
        self.checkpoints = Checkpoints(
            job.folder, fingerprint=job.fingerprint, keep=job.settings.keep_checkpoints, emit=job.emit
        )
        self._micro_batch_tokens = micro_batch_tokens
        self._logits = SupervisedLogits(strategy.model)

    def run(self) -> Trained:
        """Train to the end, or until someone asks to stop; then a checkpoint of the last whole step is left.

        Raises:
            ModelwrightError: loss or gradient are no numbers any more, or the model mixes the documents of a pack.
        """
        began = time.perf_counter()
        self._emit_started()
        self._check_isolation()
        progress = self._resume()
        saved = progress.step
        self.strategy.model.train()
        while progress.step < self.plan.steps:
            further = self._advance(progress)
            if further is None:
                # The optimiser has not stepped: weights and states are those of the last step still.
                if progress.step > saved:
                    self._checkpoint(progress)
                return self._trained(progress, finished=False)
            progress = further
            if progress.step == self.plan.steps:
                break
            due = progress.step % self.settings.checkpoint_every == 0
            if due:
                progress = self._measure_holdout(progress)
            stop = self.job.stopping()
            if due or stop:
                self._checkpoint(progress)
                saved = progress.step
            if stop:
                return self._trained(progress, finished=False)
        progress = self._measure_holdout(progress)
        with files.writing_folder(self.job.output) as folder:
            self.strategy.export(folder)
        trained = self._trained(progress, finished=True)
        write_finished(self.job, trained)
        self.job.emit("finished", {**asdict(progress), "seconds": round(time.perf_counter() - began, 3)})
        return trained

    def _emit_started(self) -> None:
        parameters = list(self.strategy.model.parameters())
        facts = {
            "steps": self.plan.steps,
            "examples": self.corpus.examples,
            "sequences": len(self.corpus.sequences),
            "skipped": self.corpus.skipped,
            "tokens": self.corpus.tokens,
            "epochs": round(self.plan.count / len(self.corpus.sequences), 4),
            "parameters": sum(parameter.numel() for parameter in parameters),
            "trainable": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        }
        self.job.emit("started", facts | self.strategy.facts())

    def _check_isolation(self) -> None:
        packed = self.corpus.packed(self.corpus.sequences)[:_CHECKED_PACKS]
        for part in self._split(self.corpus, packed):
            check_isolation(self.strategy, self._logits, [self.corpus.documents(pack) for pack in part.tolist()])

    def _resume(self) -> Progress:
        newest = self.checkpoints.newest()
        if newest is None:
            if self.checkpoints.begun_before:
                # An earlier attempt left events and nothing to go on from: readers drop what it said.
                self.job.emit("resumed", {"step": 0})
            return Progress()
        folder, progress = newest
        self.strategy.load(folder)
        self.job.emit("resumed", {"step": progress.step})
        return progress

    def _advance(self, progress: Progress) -> Progress | None:
        began = time.perf_counter()
        step = progress.step + 1
        result = self.step(step)
        if result is None:
            return None
        event = {"step": step, "steps": self.plan.steps, **asdict(result)}
        self.job.emit("step", event | {"seconds": round(time.perf_counter() - began, 6)})
        return Progress(
            step=step, tokens=progress.tokens + result.tokens, loss=result.loss, holdout_loss=progress.holdout_loss
        )

    def step(self, step: int) -> StepResult | None:
        """Do optimiser step `step` (1 to the plan's steps); None where someone asked to stop before its end.

        A step left so changes nothing but the gradients; done again, it comes out the same.
        """
        torch.manual_seed(_step_seed(self.job.seed, step))
        sequences = self.plan.sequences(step)
        supervised = self.corpus.supervised(sequences)
        micro_batches = self._split(self.corpus, sequences)
        losses: list[torch.Tensor] = []
        tokens = 0
        for part in micro_batches:
            if self.job.stopping():  # a large batch on a slow machine takes hours, and whoever asks waits for minutes
                return None
            batch = self.corpus.read(part).to(self.strategy.device)
            with self.strategy.autocast():
                loss = self._logits.summed_loss(batch) / supervised
            self.strategy.backward(loss)
            losses.append(loss.detach())
            tokens += batch.tokens
        rate = self.settings.learning_rate * schedule.factor(
            step, steps=self.plan.steps, warmup=self.warmup, schedule=self.settings.schedule
        )
        norm = self.strategy.step(rate)
        # One transfer a step: reading each number alone would wait for the device each time.
        *parts, grad_norm = torch.stack([*losses, norm.to(losses[0])]).tolist()
        self._check_finite(step, micro_batches, parts, grad_norm)
        return StepResult(
            loss=math.fsum(parts), grad_norm=grad_norm, learning_rate=rate, tokens=tokens, supervised=supervised
        )

    def _split(self, corpus: Corpus, sequences: Numbers) -> list[Numbers]:
        return corpus.split(sequences, size=self.settings.micro_batch_size, tokens=self._micro_batch_tokens)

    def _check_finite(self, step: int, micro_batches: Sequence[Numbers], losses: Sequence[float], norm: float) -> None:
        wrong = [part for part, loss in zip(micro_batches, losses, strict=True) if not math.isfinite(loss)]
        if not wrong and math.isfinite(norm):
            return
        what = f"the loss is {math.fsum(losses)}" if wrong else f"the gradient's norm is {norm}"
        ids = [example for part in (wrong or micro_batches) for example in self.corpus.read(part).ids]
        shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
        raise ModelwrightError(
            f"step {step}: {what}, in the examples {shown}: lower learning_rate, lengthen warmup, or look at the data"
        )

    def _measure_holdout(self, progress: Progress) -> Progress:
        if self.holdout is None or not len(self.holdout.sequences):
            return progress
        total = 0.0
        self.strategy.model.eval()
        with torch.no_grad():
            for part in self._split(self.holdout, self.holdout.sequences):
                batch = self.holdout.read(part).to(self.strategy.device)
                with self.strategy.autocast():
                    total += self._logits.summed_loss(batch).item()
        self.strategy.model.train()
        loss = total / self.holdout.supervised(self.holdout.sequences)
        self.job.emit("holdout", {"step": progress.step, "loss": loss})
        return Progress(step=progress.step, tokens=progress.tokens, loss=progress.loss, holdout_loss=loss)

    def _checkpoint(self, progress: Progress) -> None:
        began = time.perf_counter()
        self.checkpoints.save(progress, self.strategy.save)
        self.job.emit("checkpoint", {"step": progress.step, "seconds": round(time.perf_counter() - began, 3)})

    def _trained(self, progress: Progress, *, finished: bool) -> Trained:
        return Trained(
            finished=finished,
            step=progress.step,
            steps=self.plan.steps,
            loss=progress.loss,
            holdout_loss=progress.holdout_loss,
        )


def _step_seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0])
