"""Does this run's training resume exactly? Train a few steps twice, without interruption and with kills, and compare.

RUN/verify/through and RUN/verify/killed are temporary run folders that read the run's prepared tokens; the run's own
training is not touched.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from modelwright.core.api import files
from modelwright.core.api.errors import StopRequested
from modelwright.core.config import to_plain
from modelwright.core.extras import require
from modelwright.core.runs.events import EventTail
from modelwright.core.runs.folder import RunFolder
from modelwright.core.runs.plan import perform, state
from modelwright.core.runs.stage import Run
from modelwright.core.runs.supervisor import WorkerDiedError, stop_on_signals
from modelwright.core.stages.train.stage import Train

STEPS, CHECKPOINT_EVERY = 8, 2
# The first kill is between two checkpoints, the second before the checkpoint of its own step is written.
KILLS = (3, 6)
# Relative difference of weights that is allowed if sums have no fixed order (2-norms over the whole model).
TOLERANCE = 1e-3


@frozen(kw_only=True)
class Verification:
    """How a training that was killed compares with one that was not.

    Attributes:
        steps: number of steps of each of them.
        kills: how often the second one was killed.
        same_examples: whether both saw the same examples in the same order; None if the trainer does not report it.
        same_losses: whether every step had exactly the same loss in every attempt.
        same_bytes: whether the files of weights are identical.
        relative_difference: the 2-norm of the weights' difference over that of the weights; None if they cannot be
            compared, because names or shapes differ.
        exact_promised: whether identical bytes are promised: on the CPU, without `torch.compile`.
    """

    steps: int
    kills: int
    same_examples: bool | None
    same_losses: bool
    same_bytes: bool
    relative_difference: float | None
    exact_promised: bool

    @property
    def passed(self) -> bool:
        """Whether the training resumes as exactly as promised."""
        if self.kills < len(KILLS) or self.same_examples is False:
            return False
        if self.exact_promised:
            return self.same_losses and self.same_bytes
        return self.relative_difference is not None and self.relative_difference <= TOLERANCE


def verify_resume(run: Run) -> Verification:
    """Train a few steps twice, and compare.

    Args:
        run: with a locked folder and prepared tokens.

    Raises:
        StopRequested: a stop was requested.
        ModelwrightError: a training failed for a reason of its own; RUN/verify then stays, with its logs.
    """
    place = run.folder.path / "verify"
    shutil.rmtree(place, ignore_errors=True)
    try:
        through, killed = (_aside(run, place / name) for name in ("through", "killed"))
        _attempt(through, None)
        kills = _train_with_kills(killed)
        result = _compare(through, killed, kills)
    except StopRequested as error:
        shutil.rmtree(place, ignore_errors=True)
        raise StopRequested(
            f"{run.config.name}: stopped on request; the same command starts the check again"
        ) from error
    shutil.rmtree(place)
    return result


def _aside(run: Run, path: Path) -> Run:
    """A short version of the run's training, in a folder of its own."""
    # A fixed length, so that any training is long enough for the kills, and nothing that could end it earlier.
    train = evolve(
        run.config.training, max_steps=STEPS, epochs=None, checkpoint_every=CHECKPOINT_EVERY, early_stopping=None
    )
    config = evolve(run.config, train=train)
    folder = RunFolder(path, f"{run.config.name}:{path.name}")
    aside = evolve(run, config=config, folder=folder)
    aside.base = run.base  # the address was resolved for the run, not for this folder
    path.mkdir(parents=True)
    files.write_json(folder.config, to_plain(config))
    folder.stop_with(run.folder)
    folder.stage("prepare").symlink_to(run.folder.stage("prepare"))
    done = run.folder.done("prepare")
    assert done is not None, "the tokens are prepared"
    folder.mark_done("prepare", done)
    return aside


def _attempt(aside: Run, kill_after: int | None) -> bool:
    """Train, or resume; returns whether it was killed as planned."""
    train = Train(kill_after=kill_after)
    with aside.folder.locked(), stop_on_signals(aside.folder):
        step = state(aside, train)
        try:
            perform(aside, train, step.inputs)
        except WorkerDiedError:
            if kill_after is None or kill_after not in [data["step"] for data in _steps(aside)]:
                raise
            return True
    return False


def _train_with_kills(aside: Run) -> int:
    """Train to the end; returns how often it was killed before."""
    kills = 0
    for step in KILLS:
        if not _attempt(aside, step):
            return kills
        kills += 1
    _attempt(aside, None)
    return kills


def _steps(aside: Run) -> Sequence[Mapping[str, Any]]:
    """The step events of every attempt, including steps that a later attempt repeated."""
    return [event.data for event in EventTail(aside.folder.events).poll() if event.kind == "step"]


def _compare(through: Run, killed: Run, kills: int) -> Verification:
    expected = {data["step"]: data for data in _steps(through)}
    seen = _steps(killed)
    complete = expected.keys() == {data["step"] for data in seen}

    def same(key: str) -> bool:
        return complete and all(data.get(key) == expected[data["step"]].get(key) for data in seen)

    reports_order = any("order" in data for data in expected.values())
    one, other = (aside.folder.stage("train") / "model" for aside in (through, killed))
    same_bytes = _digests(one) == _digests(other)
    started = [event.data for event in EventTail(through.folder.events).poll() if event.kind == "started"]
    on_cpu = all(data.get("device", "cpu") == "cpu" for data in started)
    return Verification(
        steps=len(expected),
        kills=kills,
        same_examples=same("order") if reports_order else None,
        same_losses=same("loss"),
        same_bytes=same_bytes,
        relative_difference=0.0 if same_bytes else _difference(one, other),
        exact_promised=on_cpu and not through.config.training.compile,
    )


def _weights(model: Path) -> list[Path]:
    return sorted(model.glob("*.safetensors"))


def _digests(model: Path) -> dict[str, str]:
    return {path.name: files.sha256_file(path) for path in _weights(model)}


def _difference(one: Path, other: Path) -> float | None:
    """The 2-norm of the difference of all weights over that of the first; None if names or shapes differ."""
    torch, safetensors = require("torch"), require("safetensors")
    difference = size = 0.0
    if [path.name for path in _weights(one)] != [path.name for path in _weights(other)]:
        return None
    for path in _weights(one):
        with safetensors.safe_open(path, "pt") as left, safetensors.safe_open(other / path.name, "pt") as right:
            if set(left.keys()) != set(right.keys()):
                return None
            for name in left.keys():  # noqa: SIM118 - not a mapping
                a, b = left.get_tensor(name).to(torch.float64), right.get_tensor(name).to(torch.float64)
                if a.shape != b.shape:
                    return None
                difference += float((a - b).square().sum())
                size += float(a.square().sum())
    return float((difference / size) ** 0.5) if size else None
