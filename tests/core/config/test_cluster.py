"""`[cluster]`: times, sizes and options of Slurm are checked where they are read."""

from __future__ import annotations

import pytest

from modelwright.core.config import ConfigError, read_run
from modelwright.core.config.cluster import seconds_of

RUN = """
name = "tiny"
[model.scratch]
[data]
format = "math"
sources = [{{ path = "builtin:arithmetic/train" }}]
[train]
max_steps = 1
[cluster]
{cluster}
"""


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
    ("line", "said"),
    [
        ('time = "4h"', "[cluster] time: must be a time such as 04:00:00 or 1-12:00:00"),
        ('time = "00:00:00"', "[cluster] time: must be a time such as"),
        ('time = "00:01:00"', "[cluster] stop_before: must be shorter than the time limit: jobs of 60 s would be told"),
        ('memory = "64 GB"', '[cluster] memory: must be a size such as 64G or 900M, not "64 GB"'),
        ('partition = "a\\nb"', "[cluster] partition: must be a line of text"),
        ('environment = { "A B" = "1" }', '[cluster] environment: "A B" is no name of a variable'),
        ('sbatch = { array = "1-4" }', "modelwright submit sets this option itself: remove it"),
        ('sbatch = { mem = "4G" }', "must stand in [cluster] memory"),
        ('sbatch = { "--constraint" = "h200" }', "must be the long name of an option, without its dashes"),
        ("nodes = 0", "[cluster] nodes: must be > 0"),
        ("gpus = 8", "[cluster] gpus: unknown key"),
    ],
)
def test_what_slurm_would_stumble_over_is_one_line(tmp_path, line, said):
    """With the file, the line and the key."""
    path = tmp_path / "run.toml"
    path.write_text(RUN.format(cluster=line))
    with pytest.raises(ConfigError) as caught:
        read_run(path)
    [problem] = caught.value.lines
    assert said in problem
    assert f"{path}:10" in problem or "stop_before" in said, "a default has no line"
