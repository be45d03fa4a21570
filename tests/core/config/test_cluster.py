"""`[cluster]`: times, sizes and options of Slurm are checked where they are read."""

from __future__ import annotations

import pytest

from modelwright.core.config.cluster import seconds_of


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
    ],
)
def test_what_slurm_would_stumble_over_is_one_line(mistakes, minimal, line, key):
    """With the file, the line and the key; a default has the line of its table."""
    table = "cluster.sbatch" if line.startswith("sbatch") else "cluster"
    number = 9 if key == "stop_before" else 10
    assert mistakes(f"{minimal}[cluster]\n{line}") == [f"run.toml:{number} [{table}] {key}"]
