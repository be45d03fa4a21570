"""Memory is predicted before any weights are read, and at ZeRO's stage 3 nobody holds all of them."""

import json
import subprocess
import sys

import pytest
import torch
from attrs import evolve

from modelwright.core.api import AdapterSettings, ModelwrightError, TrainingMemory
from modelwright.core.testing.trainer import VOCABULARY, Recorder, TrainerContract, make_job, write_model
from modelwright.plugins.trainers import modelwright_trainers
from modelwright.plugins.trainers.memory import Size, check_memory, free_memory, needs
from modelwright.plugins.trainers.model.adapter import adapt
from modelwright.plugins.trainers.model.load import load_model, skeleton

LOCAL, *_ = modelwright_trainers()


@pytest.mark.parametrize(
    ("options", "device", "host"),
    [
        ({}, 16, 0),
        ({"low": True}, 16, 0),
        ({"low": True, "stage": 1, "ranks": 4}, 4 + 3, 0),
        ({"low": True, "stage": 2, "ranks": 4}, 2 + 0.5 + 3, 0),
        ({"low": True, "stage": 3, "ranks": 4}, 4, 0),
        ({"low": True, "stage": 3, "ranks": 4, "offload": "optimizer"}, 1, 3),
        ({"low": True, "stage": 3, "ranks": 4, "offload": "all"}, 0.5, 3.5),
    ],
)
def test_memory_is_predicted_as_zeros_paper_counts_it(options, device, host):
    """Bytes for each weight: 2 + 2 + 12 in mixed precision, shared out by stage."""
    assert needs(Size(parameters=1000, trainable=1000), **options) == TrainingMemory(
        device=round(1000 * device), host=round(1000 * host)
    )


def test_an_adapter_needs_optimiser_states_for_itself_only():
    """A frozen weight is a weight and nothing else."""
    assert needs(Size(parameters=1000, trainable=10)) == TrainingMemory(device=4 * 1000 + 12 * 10)


def test_memory_that_cannot_suffice_is_an_error_before_anything_is_made():
    """How much is needed, how much there is, and what needs less."""
    with pytest.raises(ModelwrightError, match=r"not enough memory on this machine: .* GB in each .*\[adapter\]"):
        check_memory(TrainingMemory(device=free_memory() * 2), torch.device("cpu"), on_machine=1)
    check_memory(TrainingMemory(device=1), torch.device("cpu"), on_machine=4)


def test_a_model_that_each_process_reads_whole_must_fit_beside_the_others():
    """Eight processes of one machine with eight GPUs read it eight times, unless ZeRO-3 shares it out as it is read."""
    size = Size(parameters=free_memory() // 4, trainable=1)
    check_memory(TrainingMemory(device=1), torch.device("cpu"), on_machine=1)
    with pytest.raises(ModelwrightError, match=r"each process reads the whole model .* zero_stage = 3"):
        check_memory(TrainingMemory(device=1), torch.device("cpu"), on_machine=8, whole=size)


def test_the_memory_of_a_model_is_known_before_its_weights_are_read(tmp_path):
    """Its configuration says it, with the adapter and the new tokens of the job."""
    job = make_job(tmp_path, Recorder(), TrainerContract().settings())
    assert Size.of(skeleton(job)) == Size.of(load_model(job))
    wanted = evolve(job, adapter=AdapterSettings(rank=4), vocabulary=VOCABULARY + 3)
    models = [skeleton(wanted), load_model(wanted)]
    for model in models:
        adapt(model, wanted)
    assert Size.of(models[0]) == Size.of(models[1])
    assert {parameter.device.type for parameter in models[0].parameters()} == {"meta"}


def test_a_model_that_memory_does_not_suffice_for_is_refused_before_it_is_read(tmp_path):
    """Nothing of it is made; the weights, which are not even there, are not missed."""
    job = make_job(tmp_path, Recorder(), TrainerContract().settings())
    write_model(job.model)
    config = json.loads((job.model / "config.json").read_text())
    config |= {"hidden_size": 1 << 17, "intermediate_size": 1 << 19, "num_attention_heads": 1, "num_key_value_heads": 1}
    (job.model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelwrightError, match=r"not enough memory on this machine: weights, gradients and optimizer"):
        LOCAL.create().train(job)


_LOOK = """
import sys
from pathlib import Path
from modelwright.core.testing.trainer import Recorder, TrainerContract, make_job
from modelwright.plugins.trainers import DeepSpeedOptions
from modelwright.plugins.trainers.deepspeed.trainer import Processes
from modelwright.plugins.trainers.model.load import load_model

job = make_job(Path(sys.argv[1]), Recorder(), TrainerContract().settings())
setup = Processes(job.settings, DeepSpeedOptions(zero_stage=3))
model = load_model(job, sharing=setup.sharing)
whole = sum(parameter.ds_numel for parameter in model.parameters())
mine = sum(parameter.ds_tensor.numel() for parameter in model.parameters())
here = sum(parameter.numel() for parameter in model.parameters())
Path(sys.argv[1], f"{setup.ranks.rank}.seen").write_text(f"{whole} {mine} {here}")
setup.ranks.wait()
"""


@pytest.mark.long
def test_at_stage_3_each_process_keeps_its_share_of_what_is_read(tmp_path):
    """Half of the numbers, of two processes; the parameters themselves are empty until they are computed with."""
    pytest.importorskip("deepspeed", reason="the extra deepspeed is not installed")
    write_model(tmp_path / "base", weights=True)
    make_job(tmp_path, Recorder(), TrainerContract().settings())
    (tmp_path / "look.py").write_text(_LOOK)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launcher, str(tmp_path / "look.py"), str(tmp_path)], check=True, timeout=120)
    for rank in (0, 1):
        whole, mine, here = map(int, (tmp_path / f"{rank}.seen").read_text().split())
        assert whole == Size.of(load_model(make_job(tmp_path, Recorder(), TrainerContract().settings()))).parameters
        assert mine == pytest.approx(whole / 2, rel=0.01)
        assert here == 0
