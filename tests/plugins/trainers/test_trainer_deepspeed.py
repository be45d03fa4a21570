"""Real processes on CPUs, that share out a training by ZeRO; every test here starts them."""

import json
import pickle

import pytest
from attrs import evolve

pytest.importorskip("deepspeed", reason="the extra deepspeed is not installed")

from modelwright.core.api import ModelwrightError
from modelwright.core.testing.ranks import train_in_ranks
from modelwright.core.testing.trainer import (
    Recorder,
    TrainerContract,
    counting_rows,
    make_job,
    read_weights,
    write_model,
    write_token_folder,
)
from modelwright.plugins.trainers import DeepSpeedOptions, LocalOptions, modelwright_trainers

LOCAL, ZERO = modelwright_trainers()


class Ranks(TrainerContract):
    """The contract over two processes."""

    options = DeepSpeedOptions()
    size = 2

    def train(self, job):
        """Train in processes of their own; the recorder of the job is told when they have ended."""
        recorder = job.emit.__self__
        return train_in_ranks(ZERO, self.options, job, recorder, size=self.size, stop_after=recorder.stop_after)


class TestTwoProcesses(Ranks):
    """ZeRO-2."""


class TestOneProcess(Ranks):
    """ZeRO-1 alone."""

    options = DeepSpeedOptions(zero_stage=1)
    size = 1


class TestWeightsSharedOut(Ranks):
    """ZeRO-3."""

    options = DeepSpeedOptions(zero_stage=3)


class TestNothingSharedOut(Ranks):
    """Stage 0."""

    options = DeepSpeedOptions(zero_stage=0)
