"""`[cluster]`: times, sizes and options of Slurm are checked where they are read."""

from __future__ import annotations

import pytest

from modelwright.core.config.cluster import ClusterConfig, StageResources, bytes_of, seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 1800),
        ("10:30", 630),
        ("04:00:00", 14400),
        ("1-12", 129600),
        ("1-12:30", 131400),
        ("2-00:00:05", 172805),
        ("4h", None),
        ("", None),
        ("1-", None),
        ("-5", None),
        ("UNLIMITED", None),
    ],
)
def test_a_time_is_what_slurm_takes_it_for(text, seconds):
    """Two numbers are minutes and seconds, not hours and minutes."""
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('time = "4h"', "time"),
        ('time = "00:00:00"', "time"),
        ('time = "00:01:00"', "stop_before"),
        ('memory = "64 GB"', "memory"),
        ('partition = "a\\nb"', "partition"),
        ('environment = { "A B" = "1" }', "environment"),
        ('sbatch = { array = "1-4" }', "array"),
        ('sbatch = { mem = "4G" }', "mem"),
        ('sbatch = { "--constraint" = "h200" }', "--constraint"),
        ("nodes = 0", "nodes"),
        ("gpus = 8", "gpus"),
        ('gpus_per_node = "a100"', "gpus_per_node"),
        ("gpus_per_node = 0", "gpus_per_node"),
        ('srun = { ntasks = "4" }', "ntasks"),
        ("one_job = true\nprepare_shards = 2", "one_job"),
    ],
)
def test_what_slurm_would_stumble_over_is_one_line(mistakes, minimal, line, key):
    """With the file, the line and the key; a default has the line of its table."""
    name = line.partition(" ")[0]
    table = f"cluster.{name}" if name in ("sbatch", "srun") else "cluster"
    number = 9 if key == "stop_before" else 10
    assert mistakes(f"{minimal}[cluster]\n{line}") == [f"run.toml:{number} [{table}] {key}"]


def test_what_a_stage_requests_is_checked_like_the_rest(mistakes, minimal):
    """Its time limit against the seconds before it, too."""
    lines = mistakes(f'{minimal}[cluster]\nnodes = 2\n[cluster.train]\ntime = "00:01:00"\nmemory = "big"')
    assert lines == ["run.toml:13 [cluster.train] memory"]
    lines = mistakes(f'{minimal}[cluster]\nstop_before = 90\n[cluster.train]\ntime = "00:01:00"')
    assert lines == ["run.toml:10 [cluster] stop_before"]


WHOLE = ClusterConfig(
    gpus_per_node="a100:4",
    cpus=32,
    memory="256G",
    partition="gpu",
    time="12:00:00",
    sbatch={"nice": "7"},
    prepare=StageResources(partition="cpu", memory="64G", sbatch={"constraint": "fast"}),
    register=StageResources(memory="3G"),
)


@pytest.mark.parametrize(
    ("stage", "requested"),
    [
        ("prepare", (None, 32, "64G", "cpu", "12:00:00", {"nice": "7", "constraint": "fast"})),
        ("train", ("a100:4", 32, "256G", "gpu", "12:00:00", {"nice": "7"})),
        ("run", ("a100:4", 32, "256G", "gpu", "12:00:00", {"nice": "7"})),
        ("register", (None, 1, "3G", "gpu", "01:00:00", {"nice": "7"})),
        ("evaluate", (None, 32, "256G", "gpu", "12:00:00", {"nice": "7"})),
        ("promote", (None, 1, "1G", "gpu", "01:00:00", {"nice": "7"})),
    ],
)
def test_only_training_requests_gpus_and_what_takes_seconds_requests_little(stage, requested):
    """What a stage's own table says is over what all request; the one job of all stages is a training's."""
    has = WHOLE.of(stage)
    assert (has.gpus_per_node, has.cpus, has.memory, has.partition, has.time, has.sbatch) == requested


def test_a_stage_that_takes_seconds_never_requests_more_than_the_others():
    """Nor a limit within the seconds in which it would be asked to stop; and nothing where nothing is requested."""
    small = ClusterConfig(memory="900M", time="00:10:00").of("register")
    assert (small.cpus, small.memory, small.time) == (None, "900M", "00:10:00")
    assert ClusterConfig(time="12:00:00", stop_before=7200).of("promote").time == "12:00:00"


@pytest.mark.parametrize(("size", "count"), [("1", 2**20), ("900M", 900 * 2**20), ("64G", 2**36), ("2K", 2**11)])
def test_a_size_is_what_slurm_takes_it_for(size, count):
    """A number alone is megabytes."""
    assert bytes_of(size) == count


@pytest.mark.parametrize(
    ("requested", "there", "fits"),
    [
        ("a100:4", "a100:8", True),
        ("a100:4", "a100:2", False),
        ("a100:4", "h100:8", False),
        ("a100:4", "8", False),
        (4, "h100:4", True),
        (4, "", False),
        (None, "", True),
    ],
)
def test_a_node_has_the_gpus_of_the_type_that_is_requested(requested, there, fits):
    """As `sinfo` lists them; without a type, any will do."""
    assert StageResources(gpus_per_node=requested).fits(there) is fits
