"""`modelwright serve --http` as a program: ports in use, signals with streams running, wrong tokens."""

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

GATEWAY = Path(__file__).parent.parent / "grpc_server" / "gateway"


def import_web():
    """The helpers of the gateway's own tests."""
    if "modelwright_tests_web" not in sys.modules:
        spec = importlib.util.spec_from_file_location("modelwright_tests_web", GATEWAY / "web.py")
        module = sys.modules["modelwright_tests_web"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["modelwright_tests_web"]


helpers = import_web()
TEXT = "/v1/completions"


class Program:
    """`modelwright serve --http` in a process of its own, with the echo engine as an installed plugin."""

    def __init__(self, folder, *arguments):
        command = [sys.executable, "-m", "modelwright.core", "serve", *arguments, "--engine", "echo"]
        self.process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ}
        )
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line)
            if (found := re.search(r"HTTP: https?://127\.0\.0\.1:(\d+)/v1", line)) is not None:
                self.port = int(found[1])
            if line.startswith("serving on"):
                break

    ask = helpers.Web.ask
    raw = helpers.Web.raw
    post_bytes = helpers.Web.post_bytes


@pytest.fixture
def program(tmp_path, install_plugin):
    """Starts servers of `slow@1` that end with the test."""
    engine = (GATEWAY.parent / "echo_engine.py").read_text().replace("echo_engine:", "echo_http:")
    install_plugin("echo-http", engine, entry="echo")
    shelf = helpers.Shelf(tmp_path / "models")
    shelf.add("slow", seconds_per_token=0.02, context=2048)
    programs = []

    def start(*arguments):
        programs.append(Program(tmp_path, "slow", "--registry", shelf.url, "--listen", "127.0.0.1:0", *arguments))
        return programs[-1]

    yield start
    for started in programs:
        started.process.kill()
        started.process.wait()
        started.process.stdout.close()


def test_a_signal_lets_running_streams_finish(program):
    """SIGTERM: health says 503 meanwhile, new requests are refused, the stream ends whole, the exit code is 0."""
    server = program("--http", "127.0.0.1:0")
    said = []
    body = {"model": "slow", "prompt": "x" * 100, "stream": True}
    data = server.post_bytes(TEXT, body, "Connection: close")
    with server.raw(data, wait=False) as sock:
        said.append(sock.recv(100))
        server.process.send_signal(signal.SIGTERM)
        helpers.wait_until(lambda: server.ask("GET", "/health")[0] == 503)
        status, headers, answer = server.ask("POST", TEXT, {"model": "slow", "prompt": "x"})
        assert (status, headers["retry-after"], answer["error"]["code"]) == (503, "1", "shutting_down")
        said += iter(lambda: sock.recv(65536), b"")
    whole = b"".join(said).decode()
    pieces = [json.loads(line[6:]) for line in whole.splitlines() if line.startswith("data: {")]
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == "slow@1:" + "x" * 100
    assert "data: [DONE]" in whole
    assert server.process.wait(10) == 0


def test_a_port_in_use_is_one_line_before_anything_is_loaded(program, modelwright):
    """Exit code 1, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = program("--http", f"127.0.0.1:{taken.getsockname()[1]}")
        assert server.process.wait(30) == 1
    (line,) = server.lines
    assert re.fullmatch(
        r"error: cannot listen on 127\.0\.0\.1:\d+: address already in use: stop the program that listens there, "
        r"or choose another address with --http\n",
        line,
    )


@pytest.mark.parametrize("where", ["nowhere", "127.0.0.1:99999", ":80", "0.0.0.0:0"])
def test_an_address_that_cannot_be_is_a_usage_error(program, where, wording):
    """Exit code 2, one line."""
    server = program("--http", where)
    assert server.process.wait(30) == 2
    (line,) = server.lines
    wording(line.removesuffix("\n"))


def test_wrong_tokens_are_refused_by_the_program(program, tmp_path):
    """The files' tokens, and no others; none of them is ever shown."""
    (tmp_path / "user").write_text("user-token-0123456789\n")
    (tmp_path / "admin").write_text("admin-token-0123456789\n")
    server = program(
        "--http", "127.0.0.1:0", "--token-file", tmp_path / "user", "--admin-token-file", tmp_path / "admin"
    )
    for token, use, admin in [
        (None, 401, 401),
        ("user-token-012345678", 401, 401),
        ("user-token-0123456789", 200, 403),
        ("admin-token-0123456789", 200, 200),
    ]:
        authorization = None if token is None else f"Bearer {token}"
        answers = [server.ask("GET", path, authorization=authorization) for path in ("/v1/models", "/admin/aliases")]
        assert [answer[0] for answer in answers] == [use, admin]
        assert "0123456789" not in str(answers)
    assert server.ask("GET", "/health")[0] == 200
