"""Models and data sets of the hub, from a hub that a test serves on this machine, or from its cache."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

FIRST, SECOND = "1" * 40, "2" * 40
RUN = """\
name = "tuned"
[model]
base = "{base}"
[data]
format = "math"
[[data.sources]]
path = "builtin:arithmetic/train"
limit = 20
[data.tokens]
max_length = 128
[train]
max_steps = 1
batch_size = 2
"""
SCRATCH = RUN.replace('[model]\nbase = "{base}"', "[model.scratch]\nhidden_size = 16\nlayers = 1\nheads = 2")


class Hub:
    """What a hub knows: for each repository its commits' files and its branches; and what was asked of it."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.branches = {"main": FIRST, "dev": SECOND}
        rows = [{"question": f"How much is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(30)]
        data = ("".join(json.dumps(row) + "\n" for row in part).encode() for part in (rows[:20], rows[20:]))
        names = ("main/train-0.jsonl", "main/train-1.jsonl")
        splits = dict(zip(names, data, strict=True))
        self.repositories = {"org/data": {**splits, "main/test.jsonl": b"{}\n", "README.md": b""}}
        self.repositories |= {"org/model": files, "org/pickled": {**files, "pytorch_model.bin": b"\x80\x04N."}}
        del self.repositories["org/pickled"]["model.safetensors"]
        self.requested: list[str] = []

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a path of the hub's API, as far as a download asks."""
        parts = unquote(urlsplit(path).path).strip("/").split("/")
        self.requested.append("/".join(parts))
        if parts[0] == "api":
            return self._api("/".join(parts[2:4]), parts[4:])
        parts = parts[parts[0] == "datasets" :]
        name, revision, file = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        content = self.repositories.get(name, {}).get(file)
        if content is None:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        etag = hashlib.sha256(content).hexdigest()
        return 200, {"X-Repo-Commit": self.branches.get(revision, revision), "ETag": f'"{etag}"'}, content

    def _api(self, name: str, rest: list[str]) -> tuple[int, dict[str, str], bytes]:
        if name == "org/gated":
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        if name == "org/broken":
            return 500, {}, b"{}"
        if name not in self.repositories:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        revision = rest[1] if len(rest) > 1 else "main"
        commit = self.branches.get(revision, revision)
        if commit not in (FIRST, SECOND):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        files = self.repositories[name]
        if rest and rest[0] == "tree":
            tree = [
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in files.items()
            ]
            return 200, {}, json.dumps(tree).encode()
        info = {"id": name, "sha": commit, "private": False, "gated": False, "tags": [], "downloads": 0, "likes": 0}
        return 200, {}, json.dumps({**info, "siblings": [{"rfilename": path} for path in files]}).encode()


@pytest.fixture(scope="module")
def model_files(tmp_path_factory) -> dict[str, bytes]:
    """The files of a model that was trained here."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "run.toml").write_text(SCRATCH)
    environment = {**os.environ, "MODELWRIGHT_HOME": str(folder / "home")}
    command = [sys.executable, "-m", "modelwright.core", "run", "run.toml"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = folder / "home" / "runs" / "tuned" / "train" / "model"
    files = {path.name: path.read_bytes() for path in made.iterdir()}
    return files | {"README.md": b"# A model\n", "onnx/config.json": b"{}", "consolidated.safetensors": b"again"}


@pytest.fixture
def hub(model_files, monkeypatch, tmp_path):
    """A hub at work, and an empty cache for it."""
    served = Hub(dict(model_files))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, headers, body = served.answer(self.path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - the handler's names

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def run(modelwright, tmp_path):
    def run(base, *more, command="run"):
        (tmp_path / "run.toml").write_text(RUN.format(base=base))
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
    assert fetched == set(hub.files) - {"README.md", "onnx/config.json", "consolidated.safetensors"}

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


DATA = RUN.replace('[model]\nbase = "{base}"', "[model.scratch]").replace("builtin:arithmetic/train", "{path}")


@pytest.fixture
def prepare_data(modelwright, tmp_path, home):
    """Prepares data of the hub; gives the report, or the line of the error."""

    def prepare(path, *more):
        (tmp_path / "run.toml").write_text(DATA.format(path=path).replace("limit = 20\n", ""))
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
