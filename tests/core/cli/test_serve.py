"""`modelwright serve` in a process of its own, as a person runs it."""

import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from modelwright import Client
from modelwright.grpc_server.client import ServerError


def test_serve_says_what_it_serves_and_what_to_type_next(serve):
    """A table of the models, the port that was chosen, and two commands that work as printed."""
    serving = serve("math")
    assert re.search(r"math@1 +@assistant +[0-9a-f]{12} +128 +echo", serving.output)
    port = serving.target.removeprefix("127.0.0.1:")
    assert int(port) > 0
    commands = [line.strip() for line in serving.output.splitlines() if line.startswith("  modelwright")]
    assert [command.split()[1] for command in commands] == ["chat", "generate"]
    shown = subprocess.run(
        ["bash", "-c", f'modelwright() {{ {sys.executable} -m modelwright.core "$@"; }}; {commands[1]}'],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert shown.stdout == "math@1:How much is 2 + 3?\n"
    assert shown.stderr == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_running_answers_finish_and_ends_with_0(serve, shelf, number):
    """Nothing is printed about it either."""
    shelf.add("slow", seconds_per_token=0.05)
    serving = serve("slow")
    with Client(serving.target) as client:
        stream = client.stream("still here", model="slow")
        serving.process.send_signal(number)
        assert stream.generation().text == "slow@1:still here"
    rest, errors = serving.process.communicate(timeout=20)
    assert (serving.process.returncode, rest, errors) == (0, "", "")


def test_a_port_in_use_is_one_clear_line(shelf, modelwright, wording):
    """Before any model is loaded."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = modelwright("serve", "math", "--engine", "echo", "--listen", f"127.0.0.1:{port}")
    assert result.returncode == 1
    wording(result.stderr.removesuffix("\n"), port=port)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["math", "--listen", "0.0.0.0:0"], 2),
        (["math", "--listen", "here"], 2),
        (["gsm8k"], 1),
        (["@production"], 1),
        (["math@newest"], 2),
        (["math", "--engine", "ecco"], 2),
        (["broken"], 1),
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_what_cannot_be_served_is_one_clear_line(shelf, here, arguments, code, wording):
    """With the exit code that says whose mistake it was."""
    shelf.add("broken", broken=True)
    given, error = here("serve", "--engine", "echo", "--listen", "127.0.0.1:0", *arguments)
    assert given == code
    wording(error.removesuffix("\n"))


def test_a_missing_package_is_named_with_the_extra_that_has_it(shelf, modelwright, tmp_path, monkeypatch):
    """A service that installed the client alone learns what serving takes."""
    (tmp_path / "site" / "grpc_health.py").write_text("raise ModuleNotFoundError(name='grpc_health')\n")
    result = modelwright("serve", "math", "--engine", "echo")
    assert result.returncode == 2
    assert "serving needs the package 'grpc_health'" in result.stderr
    assert "pip install 'modelwright[serve]'" in result.stderr


def test_help_of_the_client_commands_imports_no_grpc(modelwright):
    """Help is quick; only a command that talks to a server, or is one, imports gRPC."""
    program = (
        "import sys; from modelwright.core.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'grpc', 'google.protobuf', 'torch', 'transformers'} & set(sys.modules); assert not heavy, heavy"
    )
    for command in ([], ["serve"], ["generate"], ["chat"]):
        result = subprocess.run(
            [sys.executable, "-c", program, *command, "--help"], capture_output=True, text=True, timeout=60, check=False
        )
        assert result.returncode == 0, result.stderr
        assert "Usage: modelwright" in result.stdout


def test_a_server_under_load_switches_and_stops_without_losing_a_request(serve, shelf):
    """From another process: every answer is whole and names the digest that made it, to the last one."""
    shelf.add("math", seconds_per_token=0.002)
    digests = {f"math@{number}": shelf.registry.get("math", number).digest for number in (1, 2)}
    serving = serve("@assistant", "math@2")
    wrong, answered, stopping = [], [], threading.Event()

    def ask():
        with Client(serving.target) as client:
            while not stopping.is_set():
                answer = client.generate("question", model="@assistant")
                answered.append(answer.served.address)
                if answer.text != f"{answer.served.address}:question" or (
                    answer.served.digest != digests[answer.served.address]
                ):
                    wrong.append(answer)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    with Client(serving.target) as client:
        for turn in range(10):
            client.set_alias("assistant", f"math@{2 - turn % 2}", persist=True)
            time.sleep(0.05)
    stopping.set()
    for thread in threads:
        thread.join(timeout=20)
    assert wrong == []
    assert set(answered) == set(digests)
    assert shelf.registry.resolve("assistant").version == 1
    assert serving.end()[0] == 0


def token_file(path, token="secret", mode=0o600):
    path.write_text(f"{token}\n")
    path.chmod(mode)
    return path


def test_serve_says_where_else_it_answers_and_what_a_client_must_show(serve, tls, tmp_path):
    """The administrators' port, the HTTP API, and commands with the flags that they need."""
    serving = serve(
        *("math", "--admin", "127.0.0.1:0", "--http", "127.0.0.1:0", "--tls-cert", tls.certificate),
        *("--tls-key", tls.key, "--token-file", token_file(tmp_path / "token")),
    )
    admin = re.search(r"^admin calls: (127\.0\.0\.1:\d+)$", serving.output, re.MULTILINE)[1]
    assert re.search(r"^HTTP: https://127\.0\.0\.1:\d+/v1$", serving.output, re.MULTILINE)
    assert f"chat --model @assistant --server {serving.target} --tls-ca FILE --token-file FILE" in serving.output
    with Client(serving.target, token="secret", tls_ca=tls.certificate) as client:
        assert client.generate("hi").text == "math@1:hi"
        with pytest.raises(ServerError, match="use the admin port"):
            client.set_alias("assistant", "math")
    with Client(admin, token="secret", tls_ca=tls.certificate) as client:
        assert client.set_alias("other", "math").address == "math@1"
    assert serving.end() == (0, "", "")


def test_while_it_ends_streams_finish_and_health_says_that_it_does_not_serve(serve, shelf):
    """New requests learn when to come back; the exit code is 0."""
    shelf.add("slow", seconds_per_token=0.1)
    serving = serve("slow")
    with Client(serving.target) as client:
        health = health_pb2_grpc.HealthStub(client._channel)
        stream = client.stream("still here", model="slow")
        watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=20)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        serving.process.send_signal(signal.SIGTERM)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(ServerError) as caught:
            client.generate("x", model="slow")
        assert (caught.value.code, caught.value.reason, caught.value.retry_after) == ("UNAVAILABLE", "SHUTTING_DOWN", 1)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == 2
        assert stream.generation().text == "slow@1:still here"
    rest, errors = serving.process.communicate(timeout=20)
    assert (serving.process.returncode, rest, errors) == (0, "", "")


def test_models_are_loaded_by_the_engines_that_the_plugins_have(serve, shelf):
    """A name that no plugin has is refused with those that there are."""
    shelf.add("general")
    with Client(serve("math").target) as client:
        assert client.load_model("general", engine="echo").engine == "echo"
        with pytest.raises(ServerError, match="there is no engine 'ecco', did you mean 'echo'"):
            client.load_model("general", engine="ecco")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--http", "0.0.0.0:0"],
        ["--admin", "0.0.0.0:0"],
        ["--tls-cert", "x.pem"],
        ["--tls-key", "x.pem"],
        ["--tls-cert", "x.pem", "--tls-key", "y.pem"],
        ["--token-file", "nothing"],
        ["--token-file", "/"],
        ["--token-file", "empty"],
        ["--admin-token-file", "spaces"],
        ["--token-file", "binary"],
        ["--token-file", "long"],
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_files_and_addresses_that_are_wrong_are_one_clear_line(shelf, here, arguments, wording, tmp_path, monkeypatch):
    """Before any model is loaded, and it is the command line's mistake."""
    monkeypatch.chdir(tmp_path)
    token_file(tmp_path / "empty", "")
    token_file(tmp_path / "spaces", "two words")
    token_file(tmp_path / "long", "x" * 5000)
    (tmp_path / "binary").write_bytes(b"\x00\xff\n")
    code, error = here("serve", "--engine", "echo", "math", "--listen", "127.0.0.1:0", *arguments)
    assert code == 2
    wording(error.removesuffix("\n"))


def test_a_token_that_may_not_be_read_is_one_clear_line(shelf, here, tmp_path, permissions_count):
    """As the system says it."""
    code, error = here("serve", "math", "--token-file", token_file(tmp_path / "token", mode=0o000))
    assert code == 2
    assert "cannot be read: permission denied" in error


def test_a_token_that_others_can_read_is_warned_of(serve, tmp_path):
    """It is taken: some systems mount secrets so."""
    serving = serve("math", "--token-file", token_file(tmp_path / "token", mode=0o644))
    with Client(serving.target, token="secret") as client:
        assert client.generate("hi").text == "math@1:hi"
    code, _, errors = serving.end()
    assert code == 0
    assert errors == f"warning: other users of this machine can read {tmp_path}/token: chmod 600 {tmp_path}/token\n"
