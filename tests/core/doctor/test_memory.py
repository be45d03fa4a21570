"""What a run takes on GPUs that are not here: for made-up cards, and from a base's config.json alone."""

from __future__ import annotations

import json

import pytest

from modelwright.core import runner
from modelwright.core.api import MemorySettings, ModelShape, UsageError
from modelwright.core.config import read_run
from modelwright.core.doctor.memory import Device, Way, does_not_fit, possible, read_device
from modelwright.core.stages.requirements import check_job_memory, memory_settings

GB = 10**9
CONFIG = {"model_type": "llama", "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4}
CONFIG |= {"num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 1000}


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("24GB", Device(24 * GB, 1)),
        ("80GBx16", Device(80 * GB, 16)),
        ("80 GB × 2", Device(80 * GB, 2)),
        ("24GiB", Device(24 * 2**30, 1)),
        ("47.5GBx1", Device(47_500_000_000, 1)),
        ("16384MiBx4", Device(2**34, 4)),
    ],
)
def test_a_device_is_a_size_and_a_number(text, device):
    """Decimal units as on a card's box, or nvidia-smi's binary ones."""
    assert read_device(text) == device


@pytest.mark.parametrize("text", ["", "24", "A100", "24GBx0", "0GB", "-24GB", "24GBx", "24GB, 80GB", "1e2GB"])
def test_a_device_that_is_none_is_one_line(text, wording):
    """With what is expected."""
    with pytest.raises(UsageError) as caught:
        read_device(text)
    wording(str(caught.value))


def test_every_way_is_listed_and_quantized_weights_are_not_split():
    """On one device without ZeRO's stages, which need several processes."""
    one = dict(possible("full", 1))
    assert [label for label in one if "gradient" not in label] == [
        "all weights, one process",
        "all weights, ZeRO-2, optimizer in main memory",
        "all weights, ZeRO-3, all in main memory",
    ]
    sixteen = dict(possible("adapter", 16))
    assert {how.stage for how in sixteen.values() if how.frozen == "bfloat16"} == {0, 1, 2, 3}
    assert {how.stage for how in sixteen.values() if how.frozen == "nf4"} == {0, 1, 2}
    assert {how.checkpointing for how in sixteen.values()} == {"off", "on"}
    assert {how.ranks for how in sixteen.values()} == {16}


def found(size, room, *hows):
    """Ways to train a model of so many weights, the first as configured, in so many bytes."""
    shape = ModelShape(parameters=size, trainable=size)
    return [
        Way(label=f"way {number}", configured=not number, shape=shape, how=how, room=room, sequence=1)
        for number, how in enumerate(hows)
    ]


def test_a_run_that_does_not_fit_is_one_line_with_what_would(wording):
    """The first of the others that does; or that none does."""
    less = MemorySettings(states=2)
    assert does_not_fit(found(GB, 16 * GB, MemorySettings()), Device(16 * GB, 1)) is None
    for room, count in ((12, 1), (8, 16)):
        line = does_not_fit(found(GB, room * GB, MemorySettings(), MemorySettings(), less), Device(room * GB, count))
        wording(line)


@pytest.fixture
def run_of(run_file):
    """A run with values of its own."""

    def opened(*overrides):
        config = read_run(run_file(), overrides=overrides)
        return runner.open_run(config.configs[0], config.plugins)

    return opened


def test_the_formula_gets_the_settings_of_the_run(run_of):
    """Those of ZeRO from its trainer; the others mean float32 weights under autocast."""
    zero = (
        'train.trainer="deepspeed"',
        "train.options.zero_stage=3",
        'train.options.offload="all"',
        "data.tokens.max_length=1000",
        "train.micro_batch_size=3",
    )
    how = memory_settings(run_of(*zero).config, launcher="deepspeed", ranks=8)
    assert (how.stage, how.offload, how.ranks, how.trained) == (3, "all", 8, "bfloat16")
    assert how.tokens == 1000 * min(3, -(-run_of(*zero).config.training.batch_size // 8))
    how = memory_settings(run_of('train.precision="float32"').config, launcher="python", ranks=1)
    assert (how.trained, how.frozen, how.precision, how.stage) == ("float32", "float32", "float32", 0)


def test_a_job_whose_memory_cannot_suffice_is_one_line(run_of, wording):
    """2.2 billion weights: 9 GB for each process to read on GPUs, 36 GB to train on CPUs; with what would fit."""
    large = ("model.scratch.hidden_size=4096", "model.scratch.layers=8", 'train.trainer="deepspeed"')
    run = run_of(*large)
    check_job_memory(run, 64 * 2**30, processes=4, gpus=True)
    check_job_memory(run_of(*large, "train.options.zero_stage=3"), 16 * 2**30, processes=4, gpus=True)
    for processes, gpus in ((4, True), (1, False), (8, True)):
        with pytest.raises(UsageError) as caught:
            check_job_memory(run, 24 * 2**30, processes=processes, gpus=gpus)
        wording(str(caught.value))


@pytest.mark.long
def test_the_table_needs_nothing_but_a_config(doctor, run_file, tmp_path):
    """No weights and no GPU: the run's own way first; what does not fit is missing."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text(json.dumps(CONFIG))
    own = ("--set", "model={ base = './base' }", "--set", "data.tokens.max_length=512")
    code, printed = doctor(run_file(), *own, "--device", "500MBx2")
    assert code == 1
    (rows,) = printed["memory"].values()
    assert rows[0]["configured"]
    assert not rows[0]["fits"]
    width, layers = 512, 4
    block = 2 * width * width + 2 * width * 128 + 3 * width * 1024 + 2 * width
    assert rows[0]["weights"] == 4 * (layers * block + 2 * 1000 * width + width)
    assert any(row["fits"] for row in rows[1:])
    lines = [each["text"] for each in printed["missing"]]
    assert any("not enough memory on 0.5 GB × 2" in line for line in lines)
    assert not any("train on CPUs" in line for line in lines)
