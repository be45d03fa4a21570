"""`modelwright config check | show`, as they are typed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import tomli

from modelwright.core.config import read_run

# A person's file, not a built one: tests count its lines and change its text.
RUN = """\
name = "tiny"
[model.scratch]
[data]
format = "math"
[[data.sources]]
path = "train.jsonl"
[train]
max_steps = 10
[[evaluate]]
name = "test"
path = "test.jsonl"
metrics = ["math_accuracy"]
[variants.short]
train.max_steps = 5
[variants.long]
train.max_steps = 50
"""


@pytest.fixture
def run_toml(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    return path


def test_check_prints_one_line_for_each_variant(modelwright, run_toml, wording):
    """Exit code 0, and what was read in a few words."""
    done = modelwright("config", "check", "run.toml")
    assert (done.returncode, done.stderr) == (0, "")
    for name, line in zip(("tiny-short", "tiny-long"), done.stdout.splitlines(), strict=True):
        assert line.startswith(f"run.toml: ok ({name}: ")
        wording(line)
    one = modelwright("config", "check", "run.toml", "--variant", "long", "--set", "evaluate=[]")
    wording(one.stdout)


def test_check_prints_a_line_for_each_mistake_and_exits_with_2(modelwright, run_toml):
    """On standard error, without a traceback; and as JSON on request."""
    run_toml.write_text(
        RUN.replace("max_steps = 10", "max_steps = 0\nlerning_rate = 1").replace("max_steps = 50", "schedul = 1")
    )
    typed = ("config", "check", "run.toml", "--set", "name=x")
    done = modelwright(*typed)
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        "run.toml:8 [train] max_steps",
        "run.toml:9 [train] lerning_rate",
        "run.toml:17 [variants.long.train] schedul",
        "--set name",
    ]
    as_json = modelwright(*typed, "--json")
    report = json.loads(as_json.stdout)
    assert (as_json.returncode, report["ok"], len(report["problems"])) == (2, False, 4)
    assert report["problems"][1] == {
        "source": "run.toml",
        "line": 9,
        "column": None,
        "table": "train",
        "key": "lerning_rate",
        "message": lines[1].partition(": ")[2],
    }


def test_show_prints_what_the_file_comes_to(modelwright, run_toml, tmp_path):
    """A TOML document for each variant, which is itself a run.toml for that variant's run; or a JSON list."""
    done = modelwright("config", "show", "run.toml", "--set", "seed=5")
    first, second = done.stdout.split("\n# ")
    assert first.startswith("# tiny-short, from run.toml\n")
    assert second.startswith("tiny-long, from run.toml\n")
    assert tomli.loads(first)["train"]["max_steps"] == 5
    again = tmp_path / "resolved.toml"
    again.write_text(first)
    assert read_run(again).configs == read_run(run_toml, variants=["short"], overrides=["seed=5"]).configs
    as_json = json.loads(modelwright("config", "show", "run.toml", "--json").stdout)
    assert [one["name"] for one in as_json] == ["tiny-short", "tiny-long"]
    assert as_json[0]["data"]["sources"][0]["path"] == str(tmp_path / "train.jsonl")
    assert as_json[0]["train"]["max_steps"] == 5


def test_a_file_that_is_not_there_is_one_line(modelwright):
    """As for every command that takes a run.toml."""
    for command in ("check", "show"):
        done = modelwright("config", command, "nowhere.toml")
        assert (done.returncode, done.stderr) == (2, "nowhere.toml: there is no such file\n")


def test_reading_a_configuration_imports_nothing_heavy(modelwright, run_toml, tmp_path):
    """Not torch, and not the parser that finds lines where none is asked for."""
    script = """
import sys
from pathlib import Path
from modelwright.core.config import read_run
read_run(Path("run.toml"))
heavy = ("torch", "transformers", "datasets", "deepspeed", "jinja2", "tree_sitter")
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
