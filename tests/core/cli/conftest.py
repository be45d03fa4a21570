"""`modelwright serve` in a process of its own, over the server tests' registry of tiny models."""

import contextlib
import importlib.util
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import warm

from modelwright.core.cli import main

SERVER_TESTS = Path(__file__).parent.parent.parent / "grpc_server"
ENGINE = (SERVER_TESTS / "echo_engine.py").read_text().replace("echo_engine:", "echo_cli:")


def load_server_tests():
    """The helpers of the server's tests."""
    spec = importlib.util.spec_from_file_location("serving", SERVER_TESTS / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def shelf(tmp_path, install_plugin, monkeypatch):
    install_plugin("echo-cli", ENGINE)
    shelf = load_server_tests().Shelf(tmp_path / "models")
    monkeypatch.setenv("MODELWRIGHT_REGISTRY", shelf.url)
    shelf.add("math")
    shelf.point("assistant", "math", 1)
    return shelf


@pytest.fixture(scope="session")
def tls(tmp_path_factory):
    """A certificate for this machine, and its key."""
    return load_server_tests().make_certificate(tmp_path_factory.mktemp("tls"))


class Serving:
    """A `modelwright serve` in a process of its own."""

    def __init__(self, *arguments):
        command = [sys.executable, "-m", "modelwright.core", "serve", "--engine", "echo", "--listen", "127.0.0.1:0"]
        self.process = warm.popen(
            [*command, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.output = ""
        while "modelwright generate" not in self.output:
            line = self.process.stdout.readline()
            assert line, self.process.stderr.read()
            self.output += line
        self.target = re.search(r"serving on (\S+);", self.output)[1]

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        rest, errors = self.process.communicate(timeout=20)
        return self.process.returncode, rest, errors


@pytest.fixture
def serve(shelf):
    """Starts servers that end with the test: `serve("math", "--http", "127.0.0.1:0")`."""
    with contextlib.ExitStack() as stack:

        def start(*arguments):
            serving = Serving(*arguments)
            stack.callback(serving.process.communicate)
            stack.callback(serving.process.kill)
            return serving

        yield start


@pytest.fixture
def here(capsys):
    """Runs a command in this process, for those that fail early; gives the exit code and the error."""

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main(list(map(str, arguments)))
        output, error = capsys.readouterr()
        assert output == ""
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        return caught.value.code, error

    return run


@pytest.fixture
def models(capsys):
    """Runs `modelwright models …` here: (exit code, standard output, standard error)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            main(["models", *map(str, arguments)])
        return (end.value.code, *capsys.readouterr())

    return run
