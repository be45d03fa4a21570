"""The example clients, in Python and in Node.js, each as a user runs it against a server in a process of its own."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "examples"
SERVER_TESTS = REPOSITORY / "tests" / "grpc_server"
QUESTION = "Tom has 7 apples and gets 5 more. How many apples does Tom have now?"
# What the echo engine says to it, by ChatML's template: a token a character, and the examples ask for 64.
ANSWER = f"math@1:user\n{QUESTION}"[:64] + "\n"


def load_shelf(folder):
    """The server tests' registry of tiny models."""
    spec = importlib.util.spec_from_file_location("serving", SERVER_TESTS / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Shelf(folder)


@pytest.fixture
def server(tmp_path, install_plugin):
    """`HOST:PORT` of a server of `math@1`, whose answers repeat the question."""
    source = (SERVER_TESTS / "echo_engine.py").read_text().replace("echo_engine:", "echo_examples:")
    install_plugin("echo-examples", source)
    shelf = load_shelf(tmp_path / "models")
    shelf.add("math", context=512)
    shelf.point("assistant", "math", 1)
    command = [sys.executable, "-m", "modelwright.core", "serve", "@assistant", "--registry", shelf.url]
    command += ["--engine", "echo", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path
    ) as process:
        try:
            said = ""
            while (found := re.search(r"serving on (\S+);", said)) is None:
                line = process.stdout.readline()
                assert line, said
                said += line
            yield found[1]
        finally:
            process.kill()


def run(*command, folder):
    """A program as a user starts it."""
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_the_example_in_python_asks_and_streams(server, tmp_path):
    """Both clients; what is wrong is an error with a line."""
    script = EXAMPLES / "client.py"
    done = run(sys.executable, script, "--server", server, "--model", "@assistant", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"math@1 answers: {ANSWER}" in done.stdout
    assert f"Piece by piece: {ANSWER}" in done.stdout
    assert "math@1 has a context of 512 tokens" in done.stdout
    assert re.search(r"3 \+ 1: math@1:user\nAna has 3 apples", done.stdout)
    done = run(sys.executable, script, "--server", server, "--model", "nobody", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: this server does not serve the model 'nobody'")
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def node_example(tmp_path_factory):
    """A copy of the example in Node.js with its packages installed."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.strip().lstrip("v").partition(".")[0]) < 18:
        pytest.skip(f"the example needs Node.js 18, and this is {version.strip()}")
    folder = tmp_path_factory.mktemp("examples") / "node"
    shutil.copytree(EXAMPLES / "node", folder, ignore=shutil.ignore_patterns("node_modules"))
    command = [npm, "ci", "--no-audit", "--no-fund", "--fetch-retries=1", "--fetch-timeout=20000"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("npm's registry does not answer")
    if re.search(r"ENOTFOUND|ECONNREFUSED|ETIMEDOUT|EAI_AGAIN|ECONNRESET|ERR_SOCKET_TIMEOUT", done.stderr):
        pytest.skip("npm's registry cannot be reached")
    assert done.returncode == 0, done.stderr
    return folder


def test_the_example_in_node_asks_and_streams(server, node_example):
    """From the same protos, with no generated code; what is wrong is one line."""
    command = ["node", "client.mjs", "--protos", REPOSITORY / "protos", "--server", server]
    done = run(*command, "--model", "@assistant", folder=node_example)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "math@1 has a context of 512 tokens"
    assert f"math@1 answers: {ANSWER}" in done.stdout
    assert "ended by FINISH_REASON_" in done.stdout
    assert f"Piece by piece: {ANSWER}" in done.stdout
    done = run(*command, "--model", "nobody", folder=node_example)
    assert done.returncode == 1
    assert done.stderr.startswith("error: NOT_FOUND: this server does not serve the model 'nobody'")
    assert done.stderr.count("\n") == 1


def test_the_example_in_node_names_no_registry():
    """Its lock file has versions and digests; where they come from is each machine's affair."""
    lock = (EXAMPLES / "node" / "package-lock.json").read_text()
    assert '"resolved"' not in lock
    assert '"integrity": "sha512-' in lock
