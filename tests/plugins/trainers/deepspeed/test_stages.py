"""Every stage of ZeRO in two processes against one process: whole models and adapters, in each precision."""

from __future__ import annotations

import importlib.util
import itertools

import pytest
import torch

pytest.importorskip("deepspeed", reason="the extra deepspeed is not installed")

from attrs import evolve
from zero_series import SERIES, Case, Cases, losses

from modelwright.core.api import AdapterSettings, UsageError
from modelwright.core.testing.ranks import train_in_ranks
from modelwright.core.testing.trainer import Recorder, TrainerContract, make_job, write_model
from modelwright.plugins.trainers import DeepSpeedOptions, modelwright_trainers

LOCAL, _ = modelwright_trainers()
pytestmark = [pytest.mark.long, pytest.mark.xdist_group("stages")]  # one process trains all cases

STAGES, KINDS, PRECISIONS = (0, 1, 2, 3), ("full", "adapter"), ("float32", "bfloat16")
QUANTIZED = importlib.util.find_spec("bitsandbytes") is not None


def settings(**changes):
    """Ten sequences a step in passes of three, at a constant rate, so that a wrong update shows at once."""
    values = {
        "max_steps": 3,
        "batch_size": 10,
        "micro_batch_size": 3,
        "checkpoint_every": 2,
        "learning_rate": 1e-2,
        "warmup": 0.0,
        "schedule": "constant",
        "weight_decay": 0.1,
        "preflight": False,
    }
    return TrainerContract().settings(**(values | changes))


def changes(kind, precision, **more):
    adapter = AdapterSettings(rank=4, alpha=8) if kind == "adapter" else None
    return {"settings": settings(precision=precision, **more), "adapter": adapter}


def case(stage, kind, precision):
    folder = f"{kind}-{precision}-{stage}"
    return Case(folder=folder, options=DeepSpeedOptions(zero_stage=stage), changes=changes(kind, precision))


def stopped(stage, optimizer):
    """A training that goes through, and one that is stopped and resumed."""
    options = DeepSpeedOptions(zero_stage=stage)
    made = Case(
        folder=f"{optimizer}-{stage}",
        options=options,
        changes=changes("full", "float32", optimizer=optimizer, learning_rate=3e-3, neftune_noise=1.0),
    )
    again = evolve(made, folder=f"{made.folder}-stopped")
    return [made, evolve(again, stop_after=1), again]


MATRIX = list(itertools.product(STAGES, KINDS, PRECISIONS))
OF_BITSANDBYTES = [(1, "lion"), (2, "adamw_8bit"), (3, "adamw_8bit")]
RESUMED = [(0, "muon"), (0, "adafactor"), *(OF_BITSANDBYTES if QUANTIZED else [])]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """The job of the series, after all cases were trained by two processes."""
    folder = tmp_path_factory.mktemp("stages")
    made = make_job(folder, Recorder(), settings(), model=write_model(folder / "base", weights=True))
    cases = [each for stage, optimizer in RESUMED for each in stopped(stage, optimizer)]
    cases += [case(*each) for each in MATRIX]
    train_in_ranks(SERIES, Cases(tuple(cases)), made, Recorder(), size=2)
    return made


@pytest.fixture(scope="module")
def alone(job):
    """The losses of one process."""

    def train(kind, precision, name):
        recorder = Recorder()
        folder = job.folder / f"alone-{name}"
        own = {"folder": folder, "output": folder / "model", "emit": recorder.emit, "stopping": recorder.stopping}
        LOCAL.create().train(evolve(job, **own, **changes(kind, precision)))
        return [data["loss"] for data in recorder.of("step")]

    return {
        (kind, precision): train(kind, precision, f"{kind}-{precision}")
        for kind, precision in itertools.product(KINDS, PRECISIONS)
    }


@pytest.mark.parametrize(("stage", "kind", "precision"), MATRIX)
def test_two_processes_train_what_one_does(job, alone, stage, kind, precision):
    """To the precision's rounding."""
    rounding = {"float32": 1e-4, "bfloat16": 4e-3}[precision]
    assert losses(job, f"{kind}-{precision}-{stage}") == pytest.approx(alone[kind, precision], abs=rounding)


@pytest.mark.parametrize(("stage", "optimizer"), RESUMED)
def test_every_optimizer_resumes_to_the_same_bytes(job, stage, optimizer):
    """Also where ZeRO has cut its states into pieces, noise included."""
    name = f"{optimizer}-{stage}"
    assert losses(job, name) == losses(job, f"{name}-stopped")
    through, resumed = ((job.folder / each / "model" / "model.safetensors") for each in (name, f"{name}-stopped"))
    assert through.read_bytes() == resumed.read_bytes()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_optimizer_at_stage_0_has_stepped_only_in_steps(job, precision):
    """DeepSpeed's own for bfloat16 steps once with gradients of zero when it is built, and is one step ahead."""
    (file,) = (job.folder / f"full-{precision}-0" / "checkpoints" / "step-00000002").rglob("*model_states.pt")
    states = torch.load(file, weights_only=False)["optimizer"]["state"].values()
    assert {float(state["step"]) for state in states} == {2.0}


def test_states_that_cannot_be_converted_are_resumed_by_the_same_number_alone(job, wording):
    """DeepSpeed converts AdamW's."""
    from modelwright.plugins.trainers.deepspeed.zero import check_layout

    layout = {"strategy": "zero", "stage": 2, "ranks": 2}
    check_layout(job.folder, layout, DeepSpeedOptions(zero_stage=2), "adamw", 4)
    check_layout(job.folder, layout, DeepSpeedOptions(zero_stage=2), "lion", 2)
    with pytest.raises(UsageError) as caught:
        check_layout(job.folder, layout, DeepSpeedOptions(zero_stage=2), "lion", 4)
    wording(caught.value)
