"""`modelwright serve`, `generate` and `chat`, each in a process of its own, as a person runs them."""

import contextlib
import importlib.util
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from modelwright import Client
from modelwright.core.cli import main

HERE = Path(__file__).parent
ENGINE = (HERE.parent.parent / "grpc_server" / "echo_engine.py").read_text().replace("echo_engine:", "echo_cli:")


def load_shelf(folder):
    """The server tests' registry of tiny models."""
    spec = importlib.util.spec_from_file_location("serving", HERE.parent.parent / "grpc_server" / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Shelf(folder)


@pytest.fixture
def shelf(tmp_path, install_plugin, monkeypatch):
    install_plugin("echo-cli", ENGINE)
    shelf = load_shelf(tmp_path / "models")
    monkeypatch.setenv("MODELWRIGHT_REGISTRY", shelf.url)
    shelf.add("math")
    shelf.point("assistant", "math", 1)
    return shelf


class Serving:
    """A `modelwright serve` in a process of its own."""

    def __init__(self, *arguments):
        command = [sys.executable, "-m", "modelwright.core", "serve", "--engine", "echo", "--listen", "127.0.0.1:0"]
        self.process = subprocess.Popen(
            [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
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
    with contextlib.ExitStack() as stack:

        def start(*arguments):
            serving = Serving(*arguments)
            stack.callback(serving.process.communicate)
            stack.callback(serving.process.kill)
            return serving

        yield start


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


@pytest.fixture
def here(capsys):
    """Runs a command in this process, for those that fail early; gives the exit code and the error."""

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main(list(arguments))
        output, error = capsys.readouterr()
        assert output == ""
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        return caught.value.code, error

    return run


def test_a_port_in_use_is_one_clear_line(shelf, modelwright):
    """Before any model is loaded."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = modelwright("serve", "math", "--engine", "echo", "--listen", f"127.0.0.1:{port}")
    assert result.returncode == 1
    assert result.stderr == (
        f"error: cannot listen on 127.0.0.1:{port}: address already in use: "
        "stop what listens there, or choose another with --listen\n"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["math", "--listen", "0.0.0.0:0"], 2, "--insecure"),
        (["math", "--listen", "here"], 2, "expected HOST:PORT"),
        (["gsm8k"], 1, "there is no model 'gsm8k'"),
        (["@production"], 1, "there is no alias '@production'"),
        (["math@newest"], 2, "is no model address"),
        (["math", "--engine", "ecco"], 2, "there is no engine 'ecco', did you mean 'echo'?"),
        (["broken"], 1, "broken@1 cannot be loaded by engine 'echo': RuntimeError: these weights are broken"),
    ],
)
def test_what_cannot_be_served_is_one_clear_line(shelf, here, arguments, code, sentence):
    """With the exit code that says whose mistake it was."""
    shelf.add("broken", broken=True)
    given, error = here("serve", "--engine", "echo", "--listen", "127.0.0.1:0", *arguments)
    assert given == code
    assert sentence in error


def test_a_missing_package_is_named_with_the_extra_that_has_it(shelf, modelwright, tmp_path, monkeypatch):
    """A service that installed the client alone learns what serving takes."""
    (tmp_path / "site" / "grpc_health.py").write_text("raise ModuleNotFoundError(name='grpc_health')\n")
    result = modelwright("serve", "math", "--engine", "echo")
    assert result.returncode == 2
    assert "serving needs the package 'grpc_health'" in result.stderr
    assert "pip install 'modelwright[serve]'" in result.stderr


def test_generate_prints_an_answer_piece_by_piece_whole_or_as_json(serve, modelwright):
    """From an argument or from standard input."""
    target = serve("math").target
    streamed = modelwright("generate", "--server", target, "hello")
    assert (streamed.returncode, streamed.stdout, streamed.stderr) == (0, "math@1:hello\n", "")
    whole = modelwright("generate", "--server", target, "--model", "@assistant", "--no-stream", "-", input="line\n")
    assert whole.stdout == "math@1:line\n"
    answer = json.loads(modelwright("generate", "--server", target, "--max-tokens", "4", "--json", "hello").stdout)
    assert (answer["text"], answer["finish"]) == ("math", "length")
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 4}
    assert (answer["served"]["name"], answer["served"]["version"]) == ("math", 1)
    assert len(answer["served"]["digest"]) == 64
    stopped = modelwright("generate", "--server", target, "--stop", "@", "--stop", "x", "hello")
    assert stopped.stdout == "math\n"
    refused = modelwright("generate", "--server", target, "--temperature", "0.5", "hello")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: sampling.temperature is beyond the engine 'echo'")


@pytest.mark.parametrize(
    "arguments",
    [["--max-tokens", str(2**31), "hi"], ["--seed", str(2**63), "hi"], [b"caf\xe9".decode("utf-8", "surrogateescape")]],
)
def test_what_no_message_can_hold_is_one_clear_line(here, arguments):
    """A number with too many digits, an argument that is not UTF-8."""
    code, error = here("generate", "--model", "math", *arguments)
    assert code == 2
    assert error.startswith("error: this cannot be asked: ")


def test_among_several_models_one_must_be_chosen(serve, shelf, here):
    """The choices are listed as they would be typed."""
    shelf.add("general")
    target = serve("math", "general").target
    for command in (["generate", "hello"], ["chat", "--message", "hello"]):
        code, error = here(*command, "--server", target)
        assert code == 1
        assert "name one of @assistant, general@1, math@1" in error


@pytest.mark.parametrize("command", [["generate", "hello"], ["chat", "--message", "hello"]])
def test_without_a_server_there_is_one_clear_line(here, command):
    """With how to start one."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        target = f"127.0.0.1:{free.getsockname()[1]}"
    code, error = here(*command, "--server", target)
    assert code == 1
    assert error.startswith(f"error: no server answers at {target}")
    assert "modelwright serve" in error


def test_chat_remembers_what_was_said(serve, shelf, modelwright):
    """Each line of standard input is a turn; the model sees all of them, the system's first."""
    shelf.add("math", context=1000, mark="math@1")
    target = serve("math").target
    result = modelwright("chat", "--server", target, "--system", "S", input="one\n\ntwo\n")
    first = "math@1:system\nS\nuser\none\nassistant\n"
    assert result.returncode == 0
    assert result.stdout.startswith(f"{first}\n")
    second = result.stdout.removeprefix(f"{first}\n")
    assert second.startswith(f"math@1:system\nS\nuser\none\nassistant\n{first.strip()}\nuser\ntwo")
    once = modelwright("chat", "--server", target, "--message", "one")
    assert once.stdout == "math@1:user\none\nassistant\n\n"


class Terminal:
    """A command on a terminal, at which a person types."""

    def __init__(self, *arguments):
        self.master, slave = pty.openpty()
        command = [sys.executable, "-m", "modelwright.core", *arguments]
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, close_fds=True, start_new_session=True
        )
        os.close(slave)
        self.seen = ""

    def read_until(self, text, seconds=20):
        end = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(0, end - time.monotonic()))
            assert ready, f"{text!r} did not appear in {self.seen!r}"
            self.seen += os.read(self.master, 4096).decode()
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text):
        os.write(self.master, text.encode())


def test_chat_on_a_terminal_goes_on_after_a_mistake_and_a_stopped_answer(serve, shelf):
    """A turn that is refused is taken back; Ctrl-C stops an answer and no more; Ctrl-D leaves."""
    shelf.add("slow", seconds_per_token=0.05)
    target = serve("slow").target
    terminal = Terminal("chat", "--server", target, "--max-tokens", "60")
    terminal.read_until("Talking with slow@1")
    terminal.read_until("you> ")
    terminal.type("x" * 120 + "\n")
    terminal.read_until("error: ")
    terminal.read_until("you> ")
    terminal.type("/new\n")
    terminal.read_until("you> ")
    terminal.type("tell me everything\n")
    terminal.read_until("slow@1:us")
    os.kill(terminal.process.pid, signal.SIGINT)
    terminal.read_until("you> ")
    terminal.type("\x04")
    assert terminal.process.wait(timeout=20) == 0
    os.close(terminal.master)


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
