"""An evaluation without a run, from the command line to the folder and the registry: real models, real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import warm
from waiting import until

from modelwright.core.runs.folder import RunFolder

# A metric under which random models differ: their answers are of many lengths.
LENGTHS = """
    import os, signal
    from pathlib import Path
    from modelwright import MetricSpec, Score, hookimpl, wilson_mean

    class Lengths:
        def __init__(self, options): pass
        def score(self, example, outputs):
            crash = Path(os.environ.get("CRASH_ONCE", "/nonexistent"))
            if crash.exists():
                crash.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            even = [len(output.text.encode()) % 2 == 0 for output in outputs]
            return Score(value=sum(even) / len(even), verdict="correct" if all(even) else "wrong", reason="odd `|`")
        def aggregate(self, scores):
            return wilson_mean(scores)

    @hookimpl
    def modelwright_metrics():
        return [MetricSpec(name="lengths", summary="Even lengths", factory="lengths_metric:Lengths")]
"""


@pytest.fixture
def lengths(install_plugin):
    install_plugin("lengths-metric", LENGTHS)


@pytest.fixture
def evaluate(modelwright):
    """Runs the command and gives what it printed as JSON."""

    def run(*arguments, code=0, **options):
        done = modelwright("evaluate", *arguments, "--json", **options)
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)

    return run


def _samples(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_bytes().splitlines()]


def test_all_models_are_graded_at_their_newest_versions(store, questions, evaluate, tmp_path, lengths):
    """Figures in the folder and in the registry; every answer in the samples; and again it does nothing."""
    output = tmp_path / "out"
    arguments = ("--all", "--data", questions, "--format", "math", "--max-tokens", 12, "--output", output)
    arguments += ("--metric", "lengths", "--metric", "exact_match", "--samples", 2, "--temperature", 1)
    results = evaluate(*arguments)

    assert results == json.loads((output / "results.json").read_text())
    assert [(model["address"], model["requested"]) for model in results["models"]] == [
        ("one@2", ["one"]),
        ("two@1", ["two"]),
    ]
    (suite,) = results["suites"]
    assert (suite["name"], suite["examples"], suite["samples"]) == ("sums_of_2", 12, 2)
    assert suite["metrics"] == {
        "lengths": {"name": "lengths", "options": {}, "higher_is_better": True},
        "exact_match": {"name": "exact_match", "options": {"ignore_case": False}, "higher_is_better": True},
    }
    assert results["failed"] == []
    for each in results["results"]:
        recorded = store.metrics(*each["model"].split("@")[:1], int(each["model"][-1]))["sums_of_2"]
        for metric, figure in each["metrics"].items():
            assert (figure["value"], figure["n"]) == (recorded[metric].value, 12)
        assert sum(each["finishes"].values()) == 24
        assert sum(each["verdicts"]["lengths"].values()) == 12
    assert store.metrics("one", 1) == {}

    compared = {each["metric"]: each for each in results["comparisons"]}
    values = {
        (each["model"], metric): f["value"] for each in results["results"] for metric, f in each["metrics"].items()
    }
    assert compared["lengths"]["value"] == pytest.approx(values["one@2", "lengths"] - values["two@1", "lengths"])
    assert compared["exact_match"]["low"] < 0 == compared["exact_match"]["value"] < compared["exact_match"]["high"]

    samples = _samples(output)
    assert [(row["model"], row["example"]["source"]) for row in samples] == [
        (model, f"Sums of 2.jsonl:{line}") for model in ("one@2", "two@1") for line in range(1, 13)
    ]
    assert all(len(row["outputs"]) == 2 and set(row["scores"]) == {"lengths", "exact_match"} for row in samples)

    report = (output / "report.md").read_text()
    assert "| model | sums_of_2 lengths | sums_of_2 exact_match |" in report
    assert f"| two@1 | {values['two@1', 'lengths']:.3f} [" in report
    assert "| sums_of_2 exact_match | difference from one@2 | significant |" in report
    assert "temperature 1" in report
    assert r"odd \`\|\`" in report
    assert "Asked:\n\n```text\nWhat is " in report
    assert "Got, the first of 2 answers" in report

    logged = len(list((output / ".work/events").glob("*-worker-*")))
    events = store.registry.events()
    again = evaluate(*arguments)
    assert {**again, "begun": 0, "ended": 0} == {**results, "begun": 0, "ended": 0}
    assert len(list((output / ".work/events").glob("*-worker-*"))) == logged == 1
    assert store.registry.events() == events


def test_a_file_names_models_and_suites_in_toml_and_yaml(store, questions, evaluate, modelwright, tmp_path):
    """Addresses of any kind; a version asked for twice is graded once; the other suite alone is new in the YAML."""
    store.registry.set_alias("best", "one", 1)
    suite = (
        'path = "Sums of 2.jsonl"\nformat = "math"\nmetrics = ["exact_match"]\nlimit = 3\ngeneration.max_tokens = 4\n'
    )
    toml = tmp_path / "eval.toml"
    toml.write_text(
        'models = ["@best", "one@1", "two"]\noutput = "out"\n'
        f'[[evaluate]]\nname = "a"\n{suite}[[evaluate]]\nname = "b"\n{suite}'
    )
    planned = evaluate(toml, "--dry-run")
    assert planned == [
        {"model": model, "suite": suite, "done": False} for model in ("one@1", "two@1") for suite in ("a", "b")
    ]
    assert not (tmp_path / "out").exists()
    done = modelwright("evaluate", toml)
    assert done.returncode == 0, done.stderr
    assert "@best and one@1 are the same model, one@1" in done.stderr
    assert "two@1 on b: exact_match 0.000" in done.stderr
    assert "out/report.md" in done.stdout
    assert set(store.metrics("one", 1)) == set(store.metrics("two")) == {"a", "b"}
    assert store.metrics("one", 2) == {}

    entry = "path: Sums of 2.jsonl, format: math, metrics: [exact_match], limit: 3, generation: {max_tokens: 4}"
    (tmp_path / "eval.yaml").write_text(
        f"models: all\noutput: out\nevaluate:\n  - {{name: a, {entry}}}\n  - {{name: c, {entry}}}\n"
    )
    assert [
        (task["model"], task["suite"]) for task in evaluate(tmp_path / "eval.yaml", "--dry-run") if task["done"]
    ] == [("two@1", "a")]
    results = evaluate(tmp_path / "eval.yaml", "--set", "evaluate.1.limit=2", "--output", tmp_path / "elsewhere")
    assert [(each["model"], each["suite"], each["examples"]) for each in results["results"]] == [
        ("one@2", "a", 3),
        ("one@2", "c", 2),
        ("two@1", "a", 3),
        ("two@1", "c", 2),
    ]
    assert (tmp_path / "elsewhere" / "report.md").is_file()


def test_what_one_model_cannot_do_costs_the_others_nothing(
    store, questions, tiny_models, broken, modelwright, tmp_path, lengths, monkeypatch
):
    """A context too small, weights cut short, a worker that dies: each is reported, the rest graded, the code 1."""
    store.add("broken", broken)
    store.add("tight", tiny_models["tight"])
    (tmp_path / "crash").touch()
    monkeypatch.setenv("CRASH_ONCE", str(tmp_path / "crash"))
    output = tmp_path / "out"
    arguments = ["evaluate", "--all", "--data", questions, "--format", "math", "--metric", "lengths", "--limit", 3]
    arguments += ["--max-tokens", 4, "--output", output]
    done = modelwright(*arguments)
    assert done.returncode == 1
    assert "error: 3 evaluations failed (see failed in " in done.stderr
    results = json.loads((output / "results.json").read_text())
    assert [each["model"] for each in results["results"]] == ["two@1"]
    failed = {each["model"]: each for each in results["failed"]}
    assert failed["broken@1"]["suite"] is None
    assert "the model cannot be loaded" in failed["broken@1"]["error"]
    assert failed["tight@1"]["suite"] == "sums_of_2"
    assert failed["tight@1"]["error"].endswith("tokens, and the model's context is 8")
    assert "the worker process of evaluate died (signal SIGKILL) without a result" in failed["one@2"]["error"]
    assert "sums_of_2" in store.metrics("two")
    report = (output / "report.md").read_text()
    assert "- tight@1 on sums_of_2: " in report
    assert "| broken@1 | failed |" in report

    done = modelwright(*arguments)
    assert done.returncode == 1
    results = json.loads((output / "results.json").read_text())
    assert [each["model"] for each in results["results"]] == ["one@2", "two@1"], "what crashed is tried again"
    assert {each["model"] for each in results["failed"]} == {"broken@1", "tight@1"}


# An evaluation that takes a while, so that a stop finds it still at work however busy the machine is.
LONG = ("--max-tokens", 64, "--samples", 96, "--temperature", 1, "--format", "math", "--metric", "exact_match")


@pytest.fixture
def start(tmp_path):
    """Starts the command and waits until some answers are written down."""
    started = []

    def begin(*arguments):
        command = [sys.executable, "-m", "modelwright.core", "evaluate", *map(str, arguments)]
        process = warm.popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=tmp_path)
        started.append(process)
        answers = tmp_path / "out/.work/evaluate/one@2/sums_of_2.answers.jsonl"
        until(lambda: answers.is_file() and answers.read_bytes().count(b"\n") > 20, process, said=process.stderr.read)
        return process, answers

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_a_stop_keeps_the_answers_and_the_same_command_goes_on(store, questions, start, evaluate, tmp_path):
    """Also where the alias has moved meanwhile; the answers that were there are not generated again."""
    store.registry.set_alias("best", "one", 2)
    arguments = ("--model", "@best", "--data", questions, "--output", tmp_path / "out", *LONG)
    process, answers = start(*arguments)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert "out: stopped on request; run the same command to resume" in said
    kept = [json.loads(line)["token_ids"] for line in answers.read_bytes().splitlines()[1:]]
    assert kept
    assert not (tmp_path / "out/results.json").exists()

    store.registry.set_alias("best", "two", 1)
    results = evaluate(*arguments)
    assert [(model["address"], model["requested"]) for model in results["models"]] == [("one@2", ["@best"])]
    given = [output["token_ids"] for row in _samples(tmp_path / "out") for output in row["outputs"]]
    assert len(given) == 12 * 96
    assert all(tokens in given for tokens in kept)
    assert len(answers.read_bytes().splitlines()) == 1 + len(given), "no answer was generated twice"
    assert evaluate(*arguments[:6], "--limit", 1, *LONG)["models"][0]["address"] == "two@1", (
        "a finished one looks again"
    )


@pytest.mark.long
def test_a_killed_command_leaves_a_folder_that_the_same_command_completes(
    store, questions, start, evaluate, modelwright, tmp_path
):
    """The worker ends with it; two at once are refused."""
    output = tmp_path / "out"
    arguments = ("--all", "--data", questions, "--output", output, *LONG)
    process, _ = start(*arguments)
    second = modelwright("evaluate", *arguments)
    assert second.returncode == 1
    assert f"error: {output / '.work'} is in use by process {process.pid} on " in second.stderr
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(evaluate(*arguments)["results"]) == 2
    assert not list(output.rglob(".tmp-*"))
    with RunFolder(output / ".work").locked():
        pass

    before = {path: path.stat().st_mtime_ns for path in (output / ".work/evaluate").glob("*/*/results.json")}
    evaluate("--model", "two", *arguments[1:], "--fresh", "--max-tokens", 4, "--samples", 1)
    left = list((output / ".work/evaluate").glob("*/*/results.json"))
    assert [path.parts[-3] for path in left] == ["two@1"]
    assert all(path.stat().st_mtime_ns != before[path] for path in left)
