"""The evaluate stage of a run: what a suite does not depend on costs it nothing."""

from __future__ import annotations

import json

from modelwright.core.runs.events import read_events

RUN = """
name = "tiny"
[model.scratch]
hidden_size = 16
layers = 1
heads = 2
[data]
format = "math"
[[data.sources]]
path = "builtin:arithmetic/train"
limit = 50
[train]
max_steps = 2
batch_size = 4
"""
SUITE = """
[[evaluate]]
name = "{name}"
path = "builtin:arithmetic/test"
metrics = ["exact_match"]
limit = {limit}
generation.max_tokens = 4
"""
ODD = """
from modelwright import MetricSpec, hookimpl

class Odd:
    def __init__(self, options): pass
    def score(self, example, outputs): raise KeyError("odd")

@hookimpl
def modelwright_metrics():
    return [MetricSpec(name="odd", summary="Odd", factory="odd_metric:Odd")]
"""


def test_only_the_suite_that_changed_is_graded_again(modelwright, tmp_path, home, install_plugin):
    """Another limit of one, a metric that fails in one: the other keeps what it has."""
    install_plugin("odd-metric", ODD)
    path = tmp_path / "run.toml"

    def graded(*arguments, code=0):
        seen = len(read_events(home / "runs/tiny/events", stage="evaluate"))
        done = modelwright("run", path, "--json", *arguments)
        assert done.returncode == code, done.stderr
        events = read_events(home / "runs/tiny/events", stage="evaluate")[seen:]
        return [event.data["suite"] for event in events if event.kind == "graded"], done

    path.write_text(RUN + SUITE.format(name="a", limit=5) + SUITE.format(name="b", limit=5))
    assert graded()[0] == ["a", "b"]
    path.write_text(RUN + SUITE.format(name="a", limit=5) + SUITE.format(name="b", limit=6))
    suites, done = graded()
    assert suites == ["b"]
    [result] = json.loads(done.stdout)
    assert {suite: figures["exact_match"]["n"] for suite, figures in result["evaluate"]["metrics"].items()} == {
        "a": 5,
        "b": 6,
    }
    suites, done = graded("--set", 'evaluate.0.metrics=["odd"]', "--set", "evaluate.1.limit=7", code=1)
    assert suites == ["b"], "what fails in one suite costs the other nothing"
    assert "error: metric 'odd' failed on builtin:arithmetic/test:1: KeyError: 'odd'" in done.stderr
    assert graded("--set", "evaluate.1.limit=7")[0] == [], "the failed suite kept its older results until new ones come"
    folder = home / "runs/tiny/evaluate"
    assert sorted(file.name for file in folder.iterdir()) == [
        "a",
        "a.answers.jsonl",
        "b",
        "b.answers.jsonl",
        "work_list.json",
    ]
    with_options = '[{name="exact_match", ignore_case=true}, "exact_match"]'
    answers = (folder / "a.answers.jsonl").read_bytes()
    suites, done = graded("--set", f"evaluate.0.metrics={with_options}", "--set", "evaluate.1.limit=7")
    assert suites == ["a"], "other options are other figures"
    assert (folder / "a.answers.jsonl").read_bytes() == answers, "the answers that are there are graded, none is new"
    [result] = json.loads(done.stdout)
    assert set(result["evaluate"]["metrics"]["a"]) == {"exact_match", "exact_match(ignore_case=true)"}
