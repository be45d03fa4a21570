"""A run from beginning to end, by the command line: it skips, resumes, and survives what happens to it.

Tests begin from a finished run where they can (`finished`), and the command line works in this process; what is killed
or signalled is a process, and those tests are long.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_run import WHOLE, tiny_run

from modelwright.core.runs.events import EventTail, read_events

CHANGED = """
train.max_steps = {steps}
[registry]
promote = {{ alias = "production", if = "sums.math_accuracy >= {bar}" }}
"""


@pytest.fixture
def run_file(tmp_path):
    def write(*, steps=10, bar=0.0):
        path = tmp_path / "run.toml"
        path.write_text(tiny_run(WHOLE, CHANGED.format(steps=steps, bar=bar)))
        return path

    return write


def _models(run):
    return json.loads(run("models", "list", "--json").stdout)


def _ok(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert done.returncode == 0, done.stderr
    return done


def _plan(run, path, *more):
    rows = json.loads(_ok(run("run", path, "--dry-run", "--json", *more)).stdout)
    return [(step["stage"], step["done"], step["why"]) for step in rows["tiny"]]


def test_one_command_trains_registers_evaluates_and_promotes_and_again_does_nothing(run_file, command, home):
    """The chain, and its memory."""
    path = run_file()
    assert _plan(command, path) == [
        ("prepare", False, "not done yet"),
        ("train", False, "prepare runs first"),
        ("register", False, "prepare runs first"),
        ("evaluate", False, "prepare runs first"),
        ("promote", False, "prepare runs first"),
    ]
    assert not home.exists(), "a dry run writes nothing"
    printed = _ok(command("run", path)).stdout
    assert "tiny@1" in printed
    assert "modelwright serve tiny" in printed

    [model] = _models(command)
    assert (model["name"], model["version"], model["aliases"]) == ("tiny", 1, ["production"])
    assert set(model["metrics"]["sums"]) == {"math_accuracy", "exact_match"}
    assert model["metrics"]["sums"]["math_accuracy"]["n"] == 20

    assert all(done for _, done, _ in _plan(command, path))
    before = {file: file.stat().st_mtime_ns for file in (home / "runs" / "tiny" / "done").iterdir()}
    assert "Nothing to do" in _ok(command("run", path)).stdout
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert len(_models(command)) == 1

    _ok(command("models", "alias", "other", "tiny"))
    assert "@other" in _ok(command("run", path)).stdout, "aliases are shown as they stand now"


def test_a_plan_says_what_has_changed_and_only_that_runs_again(finished, command):
    """A learning rate does not touch the tokens; another limit of the test set does not touch the model."""
    path = finished
    assert _plan(command, path, "--set", "train.learning_rate=2e-3")[:3] == [
        ("prepare", True, "done, and its inputs have not changed"),
        ("train", False, "changed: train.learning_rate"),
        ("register", False, "train runs first"),
    ]
    changed = _plan(command, path, "--set", "evaluate.0.limit=10")
    assert [(stage, done) for stage, done, _ in changed][2:4] == [("register", True), ("evaluate", False)]
    assert "limit" in changed[3][2]
    _ok(command("run", path, "--set", "evaluate.0.limit=10"))
    [model] = _models(command)
    assert model["metrics"]["sums"]["exact_match"]["n"] == 10
    _ok(command("run", path, "--set", "train.learning_rate=2e-3"))
    assert [model["version"] for model in _models(command)] == [1, 2]


def test_an_unmet_condition_leaves_a_registered_unpromoted_version_and_is_not_a_failure(finished, command):
    """It says what was measured."""
    done = _ok(
        command(
            "run",
            finished,
            "--set",
            "registry.promote.if='sums.math_accuracy >= 1.1'",
            "--set",
            "registry.promote.alias='other'",
        )
    )
    assert "sums.math_accuracy >= 1.1 does not hold" in done.stderr
    [model] = _models(command)
    assert model["aliases"] == ["production"]


def test_stages_run_one_by_one_in_their_order_only(run_file, command):
    """`train` alone says what must come before."""
    path = run_file()
    refused = command("train", path)
    assert refused.returncode == 2
    assert "train needs the stage prepare (not done yet)" in refused.stderr
    for stage in ("prepare", "train", "register", "evaluate", "promote"):
        _ok(command(stage, path))
    assert len(_models(command)) == 1


def test_fresh_starts_over_and_the_same_model_is_not_registered_twice(finished, command):
    """Training is deterministic: the digest is the same, so is the version."""
    path = finished
    _ok(command("run", path, "--fresh"))
    assert [model["version"] for model in _models(command)] == [1]
    begun = [
        event.stage
        for event in EventTail(finished.parent / "home" / "runs" / "tiny" / "events").poll()
        if event.kind == "begun"
    ]
    assert begun == ["prepare", "train", "register", "evaluate", "promote"] * 2


def test_a_lost_registry_gets_version_metrics_and_alias_back(finished, command):
    """What is done is done in the registry, too, or it is done again."""
    path = finished
    before = _models(command)
    (finished.parent / "home" / "registry.db").unlink()
    assert _plan(command, path)[2][1:] == (False, "there is no model 'tiny'")
    _ok(command("run", path))
    assert _models(command) == before


def test_a_moved_home_is_the_same_home(finished, command, monkeypatch, tmp_path):
    """Nothing is trained or registered again because a folder has another name."""
    path = finished
    (finished.parent / "home").rename(tmp_path / "elsewhere")
    monkeypatch.setenv("MODELWRIGHT_HOME", str(tmp_path / "elsewhere"))
    assert [done for _, done, _ in _plan(command, path)[:2]] == [True, True]
    _ok(command("run", path))
    assert [(model["version"], model["aliases"]) for model in _models(command)] == [(1, ["production"])]


def test_a_run_that_continues_what_its_own_alias_names_is_done_when_it_is_done(finished, command, tmp_path):
    """The base is resolved when the run begins, not again after the alias has moved."""
    path = tmp_path / "next.toml"
    path.write_text(tiny_run(WHOLE, 'name = "next"\nmodel.base = "@production"'))
    for _ in range(2):
        _ok(command("run", path))
    models = {model["name"]: model for model in _models(command)}
    assert (models["next"]["version"], models["next"]["aliases"]) == (1, ["production"])
    assert json.loads(command("models", "show", "next", "--json").stdout)["parent"] == "tiny@1"


def test_what_a_killed_worker_left_in_the_models_folder_is_not_part_of_the_model(finished, command):
    """A kill while the tokenizer is written beside the weights."""
    path, home = finished, finished.parent / "home"
    (home / "registry.db").unlink()
    folder = home / "runs" / "tiny"
    (folder / "done" / "train.json").unlink()
    (folder / "train" / "model" / ".tmp-tokenizer.json-12345678").write_text("{")
    _ok(command("run", path))
    files = {entry["path"] for entry in json.loads(command("models", "show", "tiny", "--json").stdout)["files"]}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
    assert not any(".tmp-" in file for file in files)


def _start(path: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "modelwright.core", "run", str(path)],
        cwd=path.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_for(home: Path, condition, *, seconds: float = 90) -> None:
    folder = home / "runs" / "tiny" / "events"
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        if folder.is_dir() and any(condition(event) for event in read_events(folder)):
            return
        time.sleep(0.02)
    raise AssertionError("what the test waits for did not happen")


def _after_step(step):
    return lambda event: event.kind == "step" and event.data["step"] >= step


def test_a_run_trains_on_packs(run_file, command, home):
    """From rows to packs to a model; the events say how many sequences there are."""
    path = run_file(steps=6)
    for stage in ("prepare", "train"):
        _ok(command(stage, path, "--set", "data.tokens.packing='pack'", "--set", "data.tokens.max_length=256"))
    events = list(read_events(home / "runs" / "tiny" / "events"))
    [prepared] = [event.data for event in events if event.kind == "prepared"]
    [started] = [event.data for event in events if event.kind == "started"]
    assert started["sequences"] == prepared["packs"]["packs"] < prepared["rows"]
    assert len([event for event in events if event.kind == "step"]) == 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1], ids=lambda n: n.name)
@pytest.mark.long
def test_a_signal_stops_the_run_at_a_step_with_75_and_the_same_command_resumes(run_file, modelwright, home, number):
    """The steps before the signal are not done again."""
    path = run_file(steps=30000)
    runner = _start(path)
    _wait_for(home, _after_step(7))
    runner.send_signal(number)
    _, said = runner.communicate(timeout=60)
    assert runner.returncode == 75, said
    assert "stopped on request after step" in said
    [*_, checkpoint] = sorted((home / "runs" / "tiny" / "train" / "checkpoints").iterdir())
    step = int(checkpoint.name.removeprefix("step-"))
    plan = _plan(modelwright, path)
    assert plan[1] == ("train", False, f"interrupted; resumes after step {step}")
    runner = _start(path)
    _wait_for(home, _after_step(step + 2))
    runner.send_signal(number)
    runner.communicate(timeout=60)
    steps = [event for event in read_events(home / "runs" / "tiny" / "events") if event.kind == "step"]
    assert [event.data["step"] for event in steps] == list(range(1, steps[-1].data["step"] + 1))
    assert next(event for event in steps if event.data["step"] == step).writer != steps[-1].writer


@pytest.mark.long
def test_a_signal_to_every_process_of_a_run_stops_it_as_one_to_the_runner_does(run_file, home):
    """As a batch system and a closing session send it; none of them ends the worker before its checkpoint."""
    runner = _start(run_file(steps=30000))
    _wait_for(home, _after_step(3))
    for process in (*_children(runner), runner.pid):
        os.kill(process, signal.SIGTERM)
    _, said = runner.communicate(timeout=60)
    assert runner.returncode == 75, said
    assert "stopped on request after step" in said


def _final_weights(home: Path) -> bytes:
    return (home / "runs" / "tiny" / "train" / "model" / "model.safetensors").read_bytes()


def _kill_runner_alone(runner: subprocess.Popen) -> None:
    runner.kill()


def _kill_all(runner: subprocess.Popen) -> None:
    """The runner and its worker, which has a process group of its own, at once."""
    children = _children(runner)
    runner.kill()
    for child in children:
        os.kill(child, signal.SIGKILL)


def _children(runner: subprocess.Popen) -> list[int]:
    listed = subprocess.run(["pgrep", "-P", str(runner.pid)], capture_output=True, text=True, check=False)
    return [int(child) for child in listed.stdout.split()]


@pytest.mark.parametrize("kill", [_kill_runner_alone, _kill_all])
@pytest.mark.long
def test_a_killed_run_is_finished_by_the_same_command_with_the_same_weights(
    run_file, modelwright, home, monkeypatch, tmp_path, kill
):
    """SIGKILL at any stage, of the runner alone or of everything; never two writers, never half a result."""
    path = run_file(steps=40)
    moments = [
        lambda event: event.stage == "prepare",
        lambda event: (event.stage, event.role) == ("train", "worker"),
        _after_step(13),
        _after_step(29),
        lambda event: event.stage == "register",
        lambda event: (event.stage, event.role) == ("evaluate", "worker"),
    ]
    for moment in moments:
        runner = _start(path)
        _wait_for(home, moment)
        kill(runner)
        runner.communicate()
    _ok(modelwright("run", path))
    [model] = _models(modelwright)
    assert (model["version"], model["aliases"]) == (1, ["production"])
    weights = _final_weights(home)
    writers = [event.writer for event in read_events(home / "runs" / "tiny" / "events") if event.kind == "step"]
    assert writers == sorted(writers), "two workers never wrote at the same time"

    monkeypatch.setenv("MODELWRIGHT_HOME", str(tmp_path / "other"))
    _ok(modelwright("run", path))
    assert _final_weights(tmp_path / "other") == weights


@pytest.mark.long
def test_a_second_runner_of_the_same_run_is_refused(run_file, modelwright, home):
    """And does not disturb the first."""
    path = run_file(steps=30000)
    runner = _start(path)
    _wait_for(home, _after_step(1))
    refused = modelwright("run", path)
    assert refused.returncode == 1
    assert f"is in use by process {runner.pid} on " in refused.stderr
    runner.send_signal(signal.SIGINT)
    runner.communicate(timeout=60)
    assert runner.returncode == 75


def test_a_worker_that_dies_is_named_with_its_last_words(run_file, command, home, install_plugin):
    """A crash in native code leaves no traceback; the runner says what it can."""
    install_plugin(
        "crashing-plugin",
        """
        import os
        from modelwright import TrainerSpec, hookimpl

        @hookimpl
        def modelwright_trainers():
            yield TrainerSpec(name="crash", summary="", factory="crashing_plugin:Crash")

        class Crash:
            def __init__(self, options): pass
            def train(self, job):
                print("last words", flush=True)
                os.abort()
        """,
    )
    done = command("run", run_file(), "--set", 'train.trainer="crash"')
    assert done.returncode == 1
    assert "died (signal SIGABRT) without a result" in done.stderr
    assert str(home / "runs" / "tiny" / "logs" / "train.log") in done.stderr
    assert _models(command) == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return Trained(finished=True, step=1, steps=1)", "trainer 'odd' finished without a model"),
        ("raise ValueError('no luck')", "train: ValueError: no luck (see "),
    ],
)
def test_a_trainer_that_makes_nothing_is_reported_and_nothing_is_registered(
    run_file, command, install_plugin, body, message
):
    """Even if a plugin fails in any way, the registry holds whole models."""
    install_plugin(
        "odd-plugin",
        f"""
        from modelwright import Trained, TrainerSpec, hookimpl

        @hookimpl
        def modelwright_trainers():
            yield TrainerSpec(name="odd", summary="", factory="odd_plugin:Odd")

        class Odd:
            def __init__(self, options): pass
            def train(self, job):
                {body}
        """,
    )
    done = command("run", run_file(), "--set", 'train.trainer="odd"')
    assert done.returncode == 1
    assert message in done.stderr
    assert _models(command) == []


def test_a_metric_that_gives_something_else_is_named(finished, command, install_plugin):
    """It is the plugin's mistake; the model stays registered and unpromoted."""
    install_plugin(
        "odd-metric",
        """
        from modelwright import MetricSpec, Score, hookimpl

        @hookimpl
        def modelwright_metrics():
            yield MetricSpec(name="odd", summary="", factory="odd_metric:Odd")

        class Odd:
            def __init__(self, options): pass
            def score(self, example, outputs): return Score(value=1.0, verdict="correct")
            def aggregate(self, scores): return None
        """,
    )
    (finished.parent / "home" / "registry.db").unlink()
    done = command("run", finished, "--set", 'evaluate.0.metrics=["odd"]', "--set", "registry.promote.if='sums.odd>0'")
    assert done.returncode == 1
    assert "metric 'odd' failed to aggregate 20 scores: TypeError: it gave NoneType, not Figure" in done.stderr
    [model] = _models(command)
    assert (model["version"], model["aliases"], model["metrics"]) == (1, [], {})


def test_everything_that_is_missing_is_reported_at_once(run_file, command, home):
    """One line each; nothing starts."""
    wrong = ("--set", "data.sources=[{path='no.jsonl'}]", "--set", "evaluate.0.path='none.jsonl'")
    done = command("run", run_file(), *wrong)
    assert done.returncode == 2
    assert [line.rpartition("/")[2][:9] for line in done.stderr.splitlines()] == ["no.jsonl:", "none.json"]
    assert not home.exists()


def test_too_many_unreadable_rows_stop_the_run_before_training(run_file, command, home, tmp_path):
    """Named, counted, and kept to look at."""
    rows = [json.dumps({"question": f"{n} + 1?", "answer": f"#### {n + 1}"}) for n in range(40)]
    rows[3:5] = ["{broken", json.dumps({"q": "1 + 1?"})]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    done = command("run", run_file(), "--set", "data.sources=[{path='rows.jsonl'}]")
    assert done.returncode == 1
    assert (
        "2 of 40 rows were rejected (5.0%, more than [data] max_rejected = 1.0%); the first: "
        "rows.jsonl:4: not valid JSON" in done.stderr
    )
    rejected = home / "runs" / "tiny" / "prepare" / "rejected.jsonl"
    assert str(rejected) in done.stderr
    assert [json.loads(line)["line"] for line in rejected.read_text().splitlines()] == [4, 5]
    assert not (home / "runs" / "tiny" / "train").exists()
    allowed = ("--set", "data.sources=[{path='rows.jsonl'}]", "--set", "data.max_rejected=0.1")
    assert "2 rejected" in _ok(command("prepare", run_file(), *allowed)).stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.sources=[{path='no.jsonl'}]", "no.jsonl: there is no such file"),
        ("evaluate.0.path='no.jsonl'", "no.jsonl: there is no such file"),
        ("registry.promote.if='sums.accuracy > 1'", "the run does not measure sums.accuracy"),
        ("registry.promote.if='sums'", "sums"),
        ("train.processes=2", "runs in one process"),
        ("data.format='mth'", "did you mean"),
    ],
)
def test_what_is_wrong_is_found_before_anything_starts(run_file, command, home, override, message):
    """Exit code 2, and not even a folder."""
    done = command("run", run_file(), "--set", override)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert not home.exists()


def test_a_missing_extra_is_named_with_what_to_install(run_file, command, monkeypatch):
    """As on a machine with the light installation."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name in ("torch", "pyarrow") else find(name, *more)
    )
    done = command("run", run_file())
    assert done.returncode == 2
    assert "prepare needs pyarrow, which is not installed: pip install 'modelwright[train]'" in done.stderr
