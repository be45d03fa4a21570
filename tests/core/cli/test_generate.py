"""`modelwright generate` and `modelwright chat`, as a person runs them against a server."""

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time

import pytest

from modelwright.core.cli import main


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
    assert refused.stderr.startswith("error: sampling.temperature is not supported by the engine 'echo'")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--max-tokens", str(2**31), "hi"], "--max-tokens"),
        (["--seed", str(2**63), "hi"], "--seed"),
        ([b"caf\xe9".decode("utf-8", "surrogateescape")], "[PROMPT]"),
    ],
)
def test_what_no_message_can_hold_is_reported_by_its_name(capsys, arguments, name):
    """A number with too many digits, an argument that is not UTF-8."""
    with pytest.raises(SystemExit) as end:
        main(["generate", "--model", "math", *arguments])
    assert end.value.code == 2
    assert f"Error: Invalid value for '{name}': " in capsys.readouterr().err


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
    terminal.read_until("Chatting with slow@1")
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


@pytest.mark.parametrize("arguments", [[], ["--message", "hi"]])
def test_chat_with_a_model_that_is_not_there_says_so_before_anyone_types(serve, modelwright, arguments):
    """Also where nothing comes from standard input."""
    result = modelwright("chat", "--server", serve("math").target, "--model", "nope", *arguments, input="")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "error: this server does not serve the model 'nope' (it serves: @assistant, math@1)\n"


def test_thinking_is_left_out_of_a_pipe_and_shown_dimmed_on_a_terminal(serve, shelf, modelwright):
    """Or as the options say; it is not part of the conversation that follows."""
    shelf.add("thinker", mark="<think>Let me see.</think>It is")
    target = serve("thinker").target
    command = ("chat", "--server", target, "--message", "4?")
    answer = "It is:user\n4?\nassistant\n\n"
    assert modelwright(*command).stdout == answer
    assert modelwright(*command, "--show-thinking").stdout == f"Let me see.\n\n{answer}"
    talk = modelwright("chat", "--server", target, "--show-thinking", input="4?\n5?\n")
    assert talk.stdout.count("Let me see.") == 2
    terminal = Terminal(*command)
    shown = terminal.read_until("assistant")
    assert "\x1b[2m" in shown
    assert "Let me see." in shown.replace("\x1b[2m", "").replace("\x1b[0m", "")
    assert terminal.process.wait(timeout=20) == 0
    os.close(terminal.master)
    terminal = Terminal(*command, "--hide-thinking")
    assert "see" not in terminal.read_until("assistant")
    terminal.process.wait(timeout=20)
    os.close(terminal.master)


@pytest.fixture
def token(tmp_path):
    path = tmp_path / "token"
    path.write_text("  secret \nthe rest is a note\n")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("command", [["generate", "hi"], ["chat", "--message", "hi"]])
def test_a_token_and_an_authority_are_shown_from_files(serve, modelwright, tls, token, tmp_path, command, wording):
    """One line says what is missing, or wrong."""
    serving = serve("math", "--tls-cert", tls.certificate, "--tls-key", tls.key, "--token-file", token)
    command = [*command, "--server", serving.target]
    result = modelwright(*command, "--tls-ca", tls.certificate, "--token-file", token)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("math@1:")
    wrong = tmp_path / "wrong"
    wrong.write_text("public")
    wrong.chmod(0o600)
    for options in (
        ["--tls-ca", tls.certificate],
        ["--tls-ca", tls.certificate, "--token-file", wrong],
        ["--token-file", token],
        ["--tls"],
    ):
        result = modelwright(*command, *options)
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr.count("\n") == 1
        wording(result.stderr.partition(" (")[0].removesuffix("\n"), target=serving.target)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--token-file", "nothing"],
        ["--tls-ca", "nothing"],
        ["--tls-ca", "token"],
        ["--server", "models.example:1", "--token-file", "token"],
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_what_a_client_cannot_show_is_one_clear_line(here, token, tmp_path, monkeypatch, arguments, wording):
    """Before anything is sent."""
    monkeypatch.chdir(tmp_path)
    code, error = here("generate", "--model", "math", "hi", *arguments)
    assert code == 2
    wording(error.removesuffix("\n"))
