"""The training loop that the trainers share.

The loss of an optimizer step is the mean cross-entropy over the step's trained tokens, however the step is split
into micro-batches and over processes: their token losses are summed, and each sum is divided by the step's total.

Everything random is a function of (seed, step, process): the order of the sequences, and dropout, whose generator is
seeded again at each step. A checkpoint therefore holds weights, optimizer and progress, and no state of a generator.

Several processes run this loop in lockstep. They decide together (to stop, to drop a step), from numbers that all of
them have.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from attrs import asdict, evolve, frozen

from modelwright.core.api import Job, ModelwrightError, Trained
from modelwright.plugins.trainers.bad_steps import BadSteps
from modelwright.plugins.trainers.batches.corpus import Corpus, Plan
from modelwright.plugins.trainers.batches.micro_batches import Assignment, MicroBatch, Numbers
from modelwright.plugins.trainers.checkpoints import (
    Checkpoint,
    Checkpoints,
    Progress,
    shared_folder,
    write_finished,
)
from modelwright.plugins.trainers.memory import Meter
from modelwright.plugins.trainers.model.adapter import is_adapted
from modelwright.plugins.trainers.model.attention import attention_of
from modelwright.plugins.trainers.model.isolation import check_isolation, lay_end_to_end
from modelwright.plugins.trainers.model.loss import TrainedLogits
from modelwright.plugins.trainers.model.targets import coverage
from modelwright.plugins.trainers.strategy import Strategy

# Number of packs that a model is checked with, whether it keeps their documents apart.
_CHECKED_PACKS = 4


@frozen
class StepResult:
    """The figures of one optimizer step, over all processes.

    Attributes:
        loss: mean over its trained tokens, in nats; None if it is not finite.
        grad_norm: the gradient's 2-norm before clipping; None if the step was dropped.
        learning_rate: of this step.
        tokens: tokens that went through the model, without padding.
        trained_tokens: trained tokens among them.
        order: a digest of the numbers of its sequences.
        by_source: the mean loss of each source of its tokens, in nats; empty if there is only one source.
    """

    loss: float | None
    grad_norm: float | None
    learning_rate: float
    tokens: int
    trained_tokens: int
    order: str
    by_source: dict[str, float]


class Loop:
    """One training job, in one of its processes.

    Args:
        job: what to train.
        strategy: how.
        corpus: the job's tokens.
        checkpoints: of the job.
        holdout: its held-out tokens, if there are any.
        micro_batch_tokens: maximum number of tokens in a micro-batch if the settings give no size.
    """

    def __init__(
        self,
        job: Job,
        strategy: Strategy,
        corpus: Corpus,
        checkpoints: Checkpoints,
        *,
        holdout: Corpus | None = None,
        micro_batch_tokens: int,
    ) -> None:
        self.job = job
        self.settings = job.settings
        self.strategy = strategy
        self.ranks = strategy.ranks
        self.corpus = corpus
        self.plan = Plan(corpus, job.settings, seed=job.seed)
        self.holdout = holdout
        self.checkpoints = checkpoints
        self._bad_steps = BadSteps(corpus, job, self.ranks)
        self.logits = TrainedLogits(strategy.model, strategy.forward)
        length = corpus.tokens / max(1, corpus.examples)
        self.meter = Meter(strategy.model, strategy.device, strategy.precision, length=length, ranks=self.ranks)
        self._micro_batch_tokens = micro_batch_tokens
        self._end_to_end = False
        self._planned: dict[int, list[Assignment]] = {}
        self._began = time.perf_counter()

    def start(self) -> None:
        """Choose how micro-batches are laid out, and check the model with packs; `run` comes next.

        Raises:
            ModelwrightError: the model mixes the documents of a pack.
        """
        self._began = time.perf_counter()
        rows = [row for corpus in (self.corpus, self.holdout) if corpus is not None for row in corpus.varied()]
        self._end_to_end = lay_end_to_end(
            self.strategy, self.logits, rows, requested=self.job.attention, in_any_rank=self.ranks.any
        )
        self._emit_started()
        self._check_isolation()

    def run(self, newest: Checkpoint | None) -> Trained:
        """Train to the end, or until a stop is requested, which leaves a checkpoint of the last whole step.

        Args:
            newest: the checkpoint to resume from.

        Raises:
            ModelwrightError: loss or gradient are not finite, and the settings do not say to drop such steps.
        """
        progress = self._resume(newest)
        saved = progress.step
        self.strategy.model.train()
        while not self._is_over(progress):
            further = self._advance(progress)
            if further is None:
                # The optimizer has not stepped: weights and states are still those of the last step.
                if progress.step > saved:
                    self._checkpoint(progress)
                return self._trained(progress, finished=False)
            progress = further
            due = progress.step % self.settings.checkpoint_every == 0
            if due or progress.step == self.plan.steps:
                progress = self._measure_holdout(progress)
            if self._is_over(progress):
                break
            stop = self.ranks.any(self.job.stopping())
            if due or stop:
                self._checkpoint(progress)
                saved = progress.step
            if stop:
                return self._trained(progress, finished=False)
        return self._finish(progress)

    def _is_over(self, progress: Progress) -> bool:
        patience = self.settings.early_stopping
        return progress.step >= self.plan.steps or (patience is not None and progress.without_better >= patience)

    def _finish(self, progress: Progress) -> Trained:
        best = progress.best_step
        if self.settings.early_stopping is not None and best not in (None, progress.step):
            assert best is not None
            checkpoint = self.checkpoints.at(best)
            if checkpoint is None:
                raise ModelwrightError(
                    f"{self.checkpoints.folder}: the checkpoint of step {best}, which has the lowest held-out loss, is "
                    "damaged or missing: remove [train] early_stopping to keep the last step's model, or train again "
                    "with --only train --fresh"
                )
            self.strategy.load(checkpoint.path, checkpoint.layout)
            progress = evolve(progress, loss=checkpoint.progress.loss, holdout_loss=progress.best_holdout_loss)
            self.job.emit("best", {"best_step": best, "holdout_loss": progress.holdout_loss})
        with shared_folder(self.ranks, self.job.output) as folder:
            self.strategy.export(folder)
        trained = self._trained(progress, finished=True)
        if self.ranks.first:
            write_finished(self.job, trained)
        totals = {"step": progress.step, "tokens": progress.tokens, "loss": progress.loss, "skipped": progress.skipped}
        self.job.emit(
            "finished",
            totals | {"holdout_loss": progress.holdout_loss, "seconds": round(time.perf_counter() - self._began, 3)},
        )
        return trained

    def _emit_started(self) -> None:
        facts: dict[str, Any] = {
            "steps": self.plan.steps,
            "examples": self.corpus.examples,
            "sequences": len(self.corpus.sequences),
            "skipped": self.corpus.skipped,
            "tokens": self.corpus.tokens,
            "epochs": round(self.plan.count / len(self.corpus.sequences), 4),
            "processes": self.ranks.size,
        }
        facts |= {"attention": attention_of(self.strategy.model)}
        if is_adapted(self.strategy.model):
            facts |= coverage(self.strategy.model)
        self.job.emit("started", facts | self.meter.facts() | self.strategy.facts())

    def _check_isolation(self) -> None:
        # Every process checks the same packs: at ZeRO stage 3 they compute a forward pass together.
        packed = self.corpus.packed(self.corpus.sequences)[:_CHECKED_PACKS]
        size = self.settings.micro_batch_size
        for assignment in self.corpus.assignments(packed, size=size, tokens=self._micro_batch_tokens):
            packs = [self.corpus.documents(pack) for pack in assignment.sequences.tolist()]
            check_isolation(self.strategy, self.logits, packs)

    def _resume(self, newest: Checkpoint | None) -> Progress:
        if newest is None:
            if self.checkpoints.begun_before:
                # An earlier attempt left events but no checkpoint: readers drop its events.
                self.job.emit("resumed", {"step": 0})
            return Progress()
        self.strategy.load(newest.path, newest.layout)
        self.job.emit("resumed", {"step": newest.progress.step})
        return newest.progress

    def _advance(self, progress: Progress) -> Progress | None:
        began = time.perf_counter()
        step = progress.step + 1
        result = self.step(progress)
        if result is None:
            return None
        event: dict[str, Any] = {"step": step, "steps": self.plan.steps, **asdict(result)}
        self.job.emit("step", event | self.meter.measured(result.tokens, result.trained_tokens, began))
        further = evolve(progress, step=step, tokens=progress.tokens + result.tokens)
        if result.grad_norm is None or result.loss is None:
            return evolve(further, skipped=progress.skipped + 1, bad_in_a_row=progress.bad_in_a_row + 1)
        recent = self._bad_steps.recent(progress.recent, result.loss)
        return evolve(further, loss=result.loss, recent=recent, bad_in_a_row=0)

    def step(self, progress: Progress) -> StepResult | None:
        """Do the optimizer step after `progress`; returns None if a stop was requested before its end.

        A step that ends so changes only the gradients; done again, it has the same result.

        Raises:
            ModelwrightError: loss or gradient are bad, and the settings do not say to drop such a step.
        """
        step = progress.step + 1
        torch.manual_seed(_step_seed(self.job.seed, step, self.ranks.rank))
        sequences = self.plan.sequences(step)
        trained_tokens = self.corpus.trained_tokens(sequences)
        assignments = self._assignments(step)
        following = self._assignments(step + 1)[0] if step < self.plan.steps else None
        summed: list[torch.Tensor] = []
        tokens, names = 0, self.corpus.sources if len(self.corpus.sources) > 1 else []
        sources = torch.zeros(2, len(names), device=self.strategy.device)  # sums of losses, and counts of tokens
        for assignment, batch in self._batches(self.corpus, assignments, following):
            # A large batch on a slow machine can take hours, and a stop should take minutes.
            if self.ranks.any(self.job.stopping()):
                return None
            loss, each = self._loss(batch, assignment)
            loss = loss / trained_tokens
            self.strategy.backward(loss)
            if names and assignment.counts:
                sources[0].index_add_(0, batch.sources, each)
                sources[1].index_add_(0, batch.sources, torch.ones_like(each))
            summed.append(loss.detach())
            tokens += batch.tokens if assignment.counts else 0
        rate = self._rate(step)
        # One transfer for each step: reading each number alone would wait for the device each time.
        numbers = torch.cat([torch.stack(summed), sources.flatten()]).tolist()
        losses, of_sources = numbers[: len(assignments)], numbers[len(assignments) :]
        total, tokens_of_all, *of_all = self.ranks.sums([math.fsum(losses), tokens, *of_sources])
        bad = self._bad_steps.bad_loss(total, progress)
        if bad:
            self._poison(assignments[-1])
        norm = self.strategy.step(rate)
        if bad is None and not math.isfinite(norm):
            bad = f"the gradient's norm is {norm}"
        if bad:
            self._bad_steps.dropped(step, bad, assignments, losses, progress)
        return StepResult(
            loss=total if math.isfinite(total) else None,
            grad_norm=None if bad else norm,
            learning_rate=rate,
            tokens=round(tokens_of_all),
            trained_tokens=trained_tokens,
            order=hashlib.sha256(sequences.tobytes()).hexdigest()[:16],
            by_source=_means(names, of_all),
        )

    def _rate(self, step: int) -> float:
        warmup = warmup_steps(self.plan.steps, self.settings.warmup)
        return self.settings.learning_rate * schedule_factor(
            step, steps=self.plan.steps, warmup=warmup, schedule=self.settings.schedule
        )

    def _loss(self, batch: MicroBatch, assignment: Assignment) -> tuple[torch.Tensor, torch.Tensor]:
        """The summed loss of a micro-batch, and that of each token; the sum is 0 if another process counts it."""
        with self.strategy.autocast():
            loss, each = self.logits.summed_loss(batch)
        return loss if assignment.counts else loss * 0.0, each

    def _poison(self, assignment: Assignment) -> None:
        """Make the step's gradient NaN, so that every strategy drops it; there is no other way common to them all."""
        (_, batch), *_ = self._batches(self.corpus, [assignment])
        self.strategy.backward(self._loss(batch, assignment)[0] * math.nan)

    def _split(self, corpus: Corpus, sequences: Numbers) -> list[Assignment]:
        """What this process takes of these sequences, one forward pass after the other."""
        return corpus.assignments(
            sequences,
            rank=self.ranks.rank,
            ranks=self.ranks.size,
            size=self.settings.micro_batch_size,
            tokens=self._micro_batch_tokens,
            end_to_end=self._end_to_end,
        )

    def _assignments(self, step: int) -> list[Assignment]:
        """What this process takes of a step; kept, because those of the next step are used early for prefetching."""
        if step not in self._planned:
            self._planned = {planned: kept for planned, kept in self._planned.items() if planned == step - 1}
            self._planned[step] = self._split(self.corpus, self.plan.sequences(step))
        return self._planned[step]

    def _batches(
        self, corpus: Corpus, assignments: Sequence[Assignment], following: Assignment | None = None
    ) -> Iterator[tuple[Assignment, MicroBatch]]:
        for assignment, batch in corpus.batches(assignments, following):
            yield assignment, batch.to(self.strategy.device)

    def rehearse(self, sequences: Numbers, *, stepping: bool) -> int:
        """Put the two longest micro-batches of these sequences through forward and backward pass.

        Args:
            sequences: their numbers.
            stepping: whether a step follows; without it, weights and optimizer stay as they are.

        Returns:
            The number of positions of the larger one, padding included.
        """
        tokens = 0
        torch.manual_seed(_step_seed(self.job.seed, 0, self.ranks.rank))
        self.strategy.model.train()
        assignments = self._split(self.corpus, sequences)[:2]
        for assignment, batch in self._batches(self.corpus, assignments):
            tokens = max(tokens, batch.input_ids.numel())
            self.strategy.backward(self._loss(batch, assignment)[0] / self.corpus.trained_tokens(sequences))
        if not stepping:
            self._poison(assignments[-1])
        self.strategy.step(self._rate(1))
        return tokens

    def mean_loss(self, corpus: Corpus, sequences: Numbers) -> float:
        """The mean loss over the trained tokens of these sequences, without training on them, in nats."""
        total = 0.0
        self.strategy.model.eval()
        with torch.no_grad():
            for assignment, batch in self._batches(corpus, self._split(corpus, sequences)):
                total += self._loss(batch, assignment)[0].item()
        self.strategy.model.train()
        return self.ranks.sums([total])[0] / corpus.trained_tokens(sequences)

    def _measure_holdout(self, progress: Progress) -> Progress:
        if self.holdout is None or not len(self.holdout.sequences):
            return progress
        loss = self.mean_loss(self.holdout, self.holdout.sequences)
        self.job.emit("holdout", {"step": progress.step, "loss": loss})
        return progress.measured(loss)

    def _checkpoint(self, progress: Progress) -> None:
        began = time.perf_counter()
        self.checkpoints.save(progress, self.strategy.save, self.strategy.layout)
        self.job.emit("checkpoint", {"step": progress.step, "seconds": round(time.perf_counter() - began, 3)})

    def _trained(self, progress: Progress, *, finished: bool) -> Trained:
        return Trained(
            finished=finished,
            step=progress.step,
            steps=self.plan.steps,
            loss=progress.loss,
            holdout_loss=progress.holdout_loss,
        )


def warmup_steps(steps: int, warmup: float) -> int:
    """The number of steps in which the rate rises to its peak: the share `warmup` of all `steps`, rounded."""
    return round(warmup * steps)


def schedule_factor(step: int, *, steps: int, warmup: int, schedule: Literal["cosine", "linear", "constant"]) -> float:
    """The share of the peak learning rate for optimizer step `step` (1 to `steps`).

    With `W` warm-up steps out of `N`, and `p = (step - W - 1) / (N - W)`:

        step <= W    step / (W + 1)
        cosine       (1 + cos(pi * p)) / 2
        linear       1 - p
        constant     1

    The warm-up reaches the peak exactly at step `W + 1`, and the decay would reach 0 at step `N + 1`: no step is wasted
    on a rate of 0. The cosine is that of I. Loshchilov and F. Hutter, "SGDR", ICLR 2017, without restarts.
    """
    if step <= warmup:
        return step / (warmup + 1)
    done = (step - warmup - 1) / (steps - warmup)
    if schedule == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    return 1 - done if schedule == "linear" else 1.0


def _means(names: Sequence[str], sums: Sequence[float]) -> dict[str, float]:
    """The mean of each source, from all the sums followed by all the counts; sources without tokens are left out."""
    totals, counts = sums[: len(names)], sums[len(names) :]
    means = ((name, total / count) for name, total, count in zip(names, totals, counts, strict=True) if count)
    return {name: mean for name, mean in means if math.isfinite(mean)}


def _step_seed(seed: int, step: int, rank: int) -> int:
    """A seed of its own for each process, or dropout would drop the same units in all of them."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0])
