"""Models and data sets of the hub, from a hub that a test serves on this machine, or from its cache."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import warm
from stand_in_hub import FIRST, SECOND, Hub, serving
from tiny_run import tiny_run

RUN = 'name = "tuned"\ntrain.max_steps = 1'


@pytest.fixture(scope="module")
def model_files(tmp_path_factory) -> dict[str, bytes]:
    """The files of a model that was trained here."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "run.toml").write_text(tiny_run(RUN))
    environment = {**os.environ, "MODELWRIGHT_HOME": str(folder / "home")}
    command = [sys.executable, "-m", "modelwright.core", "run", "run.toml"]
    done = warm.run(command, cwd=folder, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    made = folder / "home" / "runs" / "tuned" / "train" / "model"
    files = {path.name: path.read_bytes() for path in made.iterdir()}
    return files | {"README.md": b"# A model\n", "onnx/config.json": b"{}", "consolidated.safetensors": b"again"}


@pytest.fixture
def hub(model_files, monkeypatch, tmp_path):
    """A hub at work, and an empty cache for it."""
    rows = [{"question": f"How much is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(30)]
    data = ("".join(json.dumps(row) + "\n" for row in part).encode() for part in (rows[:20], rows[20:]))
    splits = dict(zip(("main/train-0.jsonl", "main/train-1.jsonl"), data, strict=True))
    pickled = {**model_files, "pytorch_model.bin": b"\x80\x04N."}
    del pickled["model.safetensors"]
    repositories = {"org/data": {**splits, "main/test.jsonl": b"{}\n", "README.md": b""}}
    repositories |= {"org/model": dict(model_files), "org/pickled": pickled}
    with serving(Hub(repositories), tmp_path / "hub", monkeypatch) as served:
        yield served


@pytest.fixture
def run(modelwright, tmp_path):
    def run(base, *more, command="run"):
        (tmp_path / "run.toml").write_text(tiny_run(RUN, f'model.base = "{base}"'))
        return modelwright(command, "run.toml", *more)

    return run


@pytest.fixture
def prepare(run, home):
    """Does the first stage, which needs the base's tokenizer; gives what the run began from."""

    def prepare(base, *more) -> str:
        done = run(base, *more, command="prepare")
        assert done.returncode == 0, done.stderr
        pinned = json.loads((home / "runs" / "tuned" / "base.json").read_text())
        assert pinned["source"] == base
        return pinned["address"]

    return prepare


def test_a_model_of_the_hub_is_downloaded_trained_and_recorded_with_its_commit(hub, run, modelwright, tmp_path):
    """Only what a model is made of: no pickles, no other program's files. What continues it has it for a parent."""
    done = run("org/model")
    assert done.returncode == 0, done.stderr
    assert json.loads(modelwright("models", "show", "tuned", "--json").stdout)["parent"] == f"org/model@{FIRST}"
    (snapshot,) = (tmp_path / "hub" / "hub" / "models--org--model" / "snapshots").iterdir()
    fetched = {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()}
    assert fetched == set(hub.repositories["org/model"]) - {"README.md", "onnx/config.json", "consolidated.safetensors"}

    further = (tmp_path / "run.toml").read_text().replace("org/model", "tuned@1").replace('"tuned"', '"further"')
    (tmp_path / "run.toml").write_text(further)
    done = modelwright("run", "run.toml")
    assert done.returncode == 0, done.stderr
    assert json.loads(modelwright("models", "show", "further", "--json").stdout)["parent"] == "tuned@1"


def test_what_was_downloaded_is_used_without_a_network(hub, prepare, monkeypatch):
    """HF_HUB_OFFLINE is honoured: the hub hears nothing."""
    assert prepare("org/model") == f"org/model@{FIRST}"
    hub.requested.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert prepare("org/model", "--fresh") == f"org/model@{FIRST}"
    assert hub.requested == []


def test_a_branch_that_grows_does_not_change_what_a_run_began_from(hub, prepare):
    """The commit is kept in the run's folder; `--fresh` looks again."""
    assert prepare("org/model") == f"org/model@{FIRST}"
    hub.branches["main"] = SECOND
    assert prepare("org/model") == f"org/model@{FIRST}"
    assert prepare("org/model", "--fresh") == f"org/model@{SECOND}"


@pytest.mark.parametrize(("revision", "commit"), [("dev", SECOND), (SECOND, SECOND)])
def test_a_revision_is_a_branch_or_a_commit(hub, prepare, revision, commit):
    """Recorded as the commit."""
    assert prepare(f"org/model@{revision}") == f"org/model@{commit}"


@pytest.mark.parametrize(
    ("base", "code"),
    [("org/nothing", 2), ("org/gated", 2), ("org/model@nowhere", 2), ("org/broken", 1), ("org/pickled", 2)],
)
def test_a_model_that_cannot_be_had(hub, run, home, base, code, wording):
    """One line that says what to do, before any work."""
    done = run(base)
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert (done.returncode, line.startswith(f"error: [model] base {base}")) == (code, True)
    wording(line, commit=FIRST)
    assert not home.exists()


def test_offline_and_not_in_the_cache(hub, run, monkeypatch, wording):
    """It says which variable forbids the network, and how the cache is filled."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = run("org/model")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    wording(done.stderr)


def test_no_hub_at_all(hub, run, monkeypatch, wording):
    """A machine without a network, whose owner did not say so."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = run("org/model")
    assert done.returncode == 1
    wording(done.stderr.splitlines()[-1])


def test_a_folder_of_that_name_is_the_folder(hub, run, tmp_path: Path):
    """What lies beside the file goes before the hub."""
    (tmp_path / "org" / "model").mkdir(parents=True)
    done = run("org/model")
    assert f"error: [model] base {tmp_path}/org/model: there is no config.json" in done.stderr
    assert hub.requested == []


@pytest.fixture
def prepare_data(modelwright, tmp_path, home):
    """Prepares data of the hub; gives the report, or the line of the error."""

    def prepare(path, *more):
        (tmp_path / "run.toml").write_text(tiny_run(RUN, f'data.sources = [{{ path = "{path}" }}]'))
        done = modelwright("prepare", "run.toml", *more)
        if done.returncode:
            return done.returncode, done.stderr.splitlines()[-1]
        return json.loads((home / "runs/tuned/prepare/report.json").read_text())

    return prepare


@pytest.mark.parametrize(
    ("path", "rows"), [("org/data/main/train-*.jsonl", 30), ("org/data@dev/main/train-1.jsonl", 10)]
)
def test_files_of_a_data_set_of_the_hub_are_downloaded_and_read(hub, prepare_data, path, rows):
    """Those that are asked for: a test split is not trained on because it lies beside."""
    assert prepare_data(f"hf://datasets/{path}")["read"] == rows
    assert not any("test.jsonl" in requested for requested in hub.requested if "resolve" in requested)


def test_a_data_set_that_was_downloaded_needs_no_network(hub, prepare_data, monkeypatch):
    """And what has changed on its branch is prepared again where there is one."""
    path = "hf://datasets/org/data/main/train-*.jsonl"
    first = prepare_data(path)
    hub.requested.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert prepare_data(path, "--fresh") == first
    assert hub.requested == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    hub.repositories["org/data"]["main/train-1.jsonl"] = b'{"question": "How much is 1 + 1?", "answer": "#### 2"}\n'
    hub.branches["main"] = SECOND
    assert prepare_data(path)["read"] == 21


@pytest.mark.parametrize(
    "path", ["org", "org/data/no/*.csv", "org/nothing/x.jsonl", "org/data@nowhere/x.jsonl", "org/gated/x.jsonl"]
)
@pytest.mark.usefixtures("hub")
def test_what_the_hub_does_not_give_is_one_line(prepare_data, path, wording):
    """Which data set, and what to do."""
    code, line = prepare_data(f"hf://datasets/{path}")
    assert code == 2
    wording(line)
