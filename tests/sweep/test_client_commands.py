"""`generate` and `chat` at their edges: streams that fail, addresses that are none, ports that speak something else."""

import contextlib
import importlib.util
import io
import os
import pty
import select
import socket
import subprocess
import sys
import threading
from concurrent import futures
from pathlib import Path

import click
import grpc
import pytest

from modelwright import AsyncClient, Client
from modelwright.core.cli import OutputError, guarded_output, main
from modelwright.grpc_server.client import ServerError


def load(name):
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"modelwright_tests_sweep_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


helpers = load("grpc_serving")
running, tls = helpers.running, helpers.tls
shelf, serve = helpers.shelf, helpers.serve
COMMANDS = {"generate": ("generate", "hi"), "chat": ("chat", "--message", "hi")}
BOTH = pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)


def run(*arguments, closed=False, environment=(), **streams):
    """A command in a process of its own: (exit code, standard output, standard error)."""
    command = [sys.executable, "-m", "modelwright.core", *map(str, arguments)]
    if closed:
        command = ["bash", "-c", 'exec "$@" <&-', "bash", *command]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    if "input" not in streams:
        streams.setdefault("stdin", subprocess.DEVNULL)
    done = subprocess.run(command, timeout=60, check=False, env={**os.environ, **dict(environment)}, **streams)
    return done.returncode, (done.stdout or b"").decode(), done.stderr.decode()


@pytest.fixture
def to_server(running):
    """What names the server and the model that answers."""
    return ("--server", running.target, "--model", "math")


# What is written

WRITERS = {
    **COMMANDS,
    "generate --json": ("generate", "--json", "hi"),
    "generate --no-stream": ("generate", "--no-stream", "hi"),
    "plugins list": ("plugins", "list"),
    "plugins list --json": ("plugins", "list", "--json"),
    "models list": ("models", "list"),
    "help": ("--help",),
    "version": ("--version",),
}


def with_server(command, to_server):
    return (*command, *to_server) if command[0] in ("generate", "chat") else command


@pytest.mark.parametrize("command", WRITERS.values(), ids=WRITERS)
def test_a_reader_who_leaves_ends_a_command_without_a_word(command, to_server):
    """As in `modelwright models list | head -1`: nobody is left to tell, and nothing failed."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        assert run(*with_server(command, to_server), stdout=pipe) == (0, "", "")


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("command", WRITERS.values(), ids=WRITERS)
def test_output_that_cannot_be_written_is_one_clear_line(command, to_server, unbuffered, wording):
    """It says that standard output is at fault, and of nothing else."""
    with Path("/dev/full").open("wb") as full:
        given = run(*with_server(command, to_server), stdout=full, environment={"PYTHONUNBUFFERED": unbuffered})
    assert given[:2] == (1, "")
    wording(given[2].removesuffix("\n"))


def test_a_full_disk_elsewhere_is_not_blamed_on_standard_output():
    """Only what standard output itself says is its own."""
    full = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OSError, match="No space left"), guarded_output():
        os.write(full, b"x")
    os.close(full)


def test_a_letter_that_the_output_cannot_write_is_one_clear_line(monkeypatch, wording):
    """With the way out."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="latin-1"))
    with pytest.raises(OutputError) as caught, guarded_output():
        click.echo("a \u2603")
    wording(caught.value)


# Numbers and texts

HIGHEST, HIGHEST_SEED = 2**31 - 1, 2**63 - 1
WRONG_OPTIONS = [
    ("--max-tokens", "0"),
    ("--max-tokens", "-1"),
    ("--max-tokens", str(2**31)),
    ("--max-tokens", "nan"),
    ("--temperature", "nan"),
    ("--temperature", "inf"),
    ("--temperature", "1e999"),
    ("--temperature", "-0.1"),
    ("--top-p", "nan"),
    ("--top-p", "0"),
    ("--top-p", "inf"),
    ("--top-k", "-1"),
    ("--top-k", str(2**31)),
    ("--seed", "-1"),
    ("--seed", str(2**63)),
    ("--stop", ""),
    ("--stop", "caf\udce9"),
    ("--model", "caf\udce9"),
]


@BOTH
@pytest.mark.parametrize(
    ("flag", "value"),
    WRONG_OPTIONS,
    ids=lambda value: ascii(value)[:60],
)
def test_an_impossible_request_is_reported_by_its_flag_though_no_server_runs(capsys, command, flag, value, wording):
    """Without any server."""
    code, output, error = in_this_process(capsys, *command, flag, value)
    assert (code, output) == (2, "")
    wording(error)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [(["generate"], "[PROMPT]"), (["chat", "--message"], "--message"), (["chat", "--system"], "--system")],
)
def test_an_argument_that_is_not_utf8_is_reported_by_its_name(capsys, arguments, name, wording):
    """Before anything is sent."""
    code, output, error = in_this_process(capsys, *arguments, "caf\udce9")
    assert (code, output) == (2, "")
    assert name in error
    wording(error)


def in_this_process(capsys, *arguments):
    """(exit code, standard output, the last line of standard error)."""
    with pytest.raises(SystemExit) as end:
        main(list(map(str, arguments)))
    output, error = capsys.readouterr()
    return end.value.code, output, error.splitlines()[-1]


# Standard input


@pytest.mark.parametrize(
    "command",
    [["generate", "-"], ["generate"], ["chat"]],
    ids=" ".join,
)
def test_a_closed_standard_input_is_one_clear_line(to_server, command, wording):
    """Not a traceback."""
    code, output, error = run(*command, *to_server, closed=True)
    assert (code, output) == (2, "")
    wording(error.removesuffix("\n"))


def test_a_closed_standard_input_is_allowed_if_nothing_is_read(to_server):
    """As when a service manager starts it."""
    assert run("generate", "hi", *to_server, closed=True) == (0, "math@1:hi\n", "")


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_a_prompt_that_is_not_utf8_is_one_clear_line(to_server, locale, wording):
    """With the place of the first byte that is not; in any locale."""
    environment = {"LC_ALL": locale, "PYTHONUTF8": "0"}
    code, output, error = run("generate", "-", *to_server, input=b"caf\xe9", environment=environment)
    assert (code, output) == (2, "")
    wording(error.removesuffix("\n"))


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_a_line_of_a_chat_that_is_not_utf8_is_reported_and_the_chat_goes_on(to_server, locale, wording):
    """The exit code says that not every line was answered."""
    environment = {"LC_ALL": locale, "PYTHONUTF8": "0"}
    code, output, error = run("chat", *to_server, input=b"caf\xe9\r\ntwo\r\n", environment=environment)
    assert (code, output) == (1, "math@1:user\ntwo\nassistant\n\n")
    wording(error.removesuffix("\n"))


def test_a_line_that_is_not_utf8_on_a_terminal_is_reported_and_the_chat_goes_on(to_server):
    """Where the line editor does not drop such bytes itself, as it does in a UTF-8 locale; the exit code is 0."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "modelwright.core", "chat", *to_server]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "TERM": "dumb"}
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        read_until(master, b"you> ")
        os.write(master, b"caf\xe9\n")
        shown = read_until(master, b"you> ")
        os.write(master, b"two\n")
        answered = read_until(master, b"you> ")
        os.write(master, b"\x04")
        assert process.wait(timeout=20) == 0
    os.close(master)
    assert b"it is left out of the conversation\r\n" in shown
    assert shown.count(b"error: this line is not ") == 1
    assert b"math@1:user\r\ntwo\r\nassistant\r\n\r\n" in answered


def read_until(descriptor, text):
    seen = b""
    while text not in seen:
        ready, _, _ = select.select([descriptor], [], [], 20)
        assert ready, seen
        seen += os.read(descriptor, 4096)
    return seen


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_standard_input_that_cannot_be_read_is_one_clear_line(to_server, command, tmp_path, wording):
    """Such as one that is open for writing only."""
    with (tmp_path / "file").open("wb") as file:
        given = run(command, *to_server, stdin=file)
    assert given[:2] == (1, "")
    wording(given[2].removesuffix("\n"))


# Where the server is

NOWHERE = [
    *("", " ", "nowhere", "127.0.0.1", "127.0.0.1:", ":50051", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:102293"),
    *("127.0.0.1:x", "127.0.0.1:-1", "127.0.0.1:٣", " 127.0.0.1:50051", "127.0.0.1:50051 ", "127.0.0.1:50051\n"),
    *("http://127.0.0.1:50051", "127.0.0.1:50051/x", "me@127.0.0.1:50051", "a,b:50051", "::1:50051", "[::1]"),
    *("[127.0.0.1]:50051", "[zz]:50051", "unix:/tmp/socket", "dns:///localhost:50051", "caf\udce9:50051"),
]


@BOTH
@pytest.mark.parametrize("target", NOWHERE, ids=ascii)
def test_a_missing_target_is_reported_with_what_is_expected(capsys, command, target, wording):
    """A port beyond 65535 is not taken for another one."""
    code, output, error = in_this_process(capsys, *command, "--server", target)
    assert (code, output) == (2, "")
    wording(error)


@pytest.mark.parametrize("target", NOWHERE, ids=ascii)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_client_refuses_what_is_nowhere_when_it_is_made(kind, target, wording):
    """By the argument's name."""
    with pytest.raises(ValueError, match="HOST:PORT") as caught:
        kind(target)
    wording(caught.value)


def test_a_host_by_the_name_of_a_scheme_is_a_host():
    """By itself gRPC would take `unix:50051` for a file."""
    with Client("unix:50051", timeout=20) as client, pytest.raises(ServerError) as caught:
        client.models()
    assert caught.value.message.startswith("no server answers at unix:50051 (")
    assert "No such file" not in caught.value.message


def test_the_names_of_this_machine_lead_to_the_server(running):
    """As a name, and in IPv4."""
    port = running.target.rpartition(":")[2]
    for host in ("localhost", "127.0.0.1"):
        with Client(f"{host}:{port}", timeout=20) as client:
            assert client.generate("hi", model="math").text == "math@1:hi"


# What answers there


@contextlib.contextmanager
def talker(first=b"", answer=b""):
    """A port that says `first` to who connects and `answer` to what they say, and then waits for them to leave."""

    def talk(connection):
        with connection, contextlib.suppress(OSError):
            connection.sendall(first)
            connection.recv(65536)
            connection.sendall(answer)
            while connection.recv(65536):
                pass

    def accept():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=talk, args=(port.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as port:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"127.0.0.1:{port.getsockname()[1]}"
        port.shutdown(socket.SHUT_RDWR)
    thread.join(timeout=10)


STRANGERS = {
    "HTTP": {"answer": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"},
    "SSH": {"first": b"SSH-2.0-OpenSSH_9.6\r\n"},
    "silence": {},
}


@pytest.mark.parametrize(
    "words",
    # gRPC waits twenty seconds for a port that says nothing.
    [pytest.param(words, marks=pytest.mark.long if not words else (), id=name) for name, words in STRANGERS.items()],
)
def test_both_commands_report_a_port_of_something_else_alike(words, wording):
    """The error does not advise to start a server where something answers; gRPC's own words follow in parentheses."""
    with talker(**words) as target, futures.ThreadPoolExecutor() as pool:
        # At once: gRPC gives a port that says nothing twenty seconds.
        done = list(pool.map(lambda command: run(*command, "--server", target), COMMANDS.values()))
    for code, output, error in done:
        assert (code, output) == (1, "")
        shown, _, details = error.partition(" (")
        wording(shown, target=target)
        assert details.endswith(")\n")


@BOTH
def test_a_grpc_server_of_something_else_is_reported(command, wording):
    """It speaks gRPC, and does not know what it is asked."""
    server = grpc.server(futures.ThreadPoolExecutor())
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        code, output, error = run(*command, "--server", target)
    finally:
        server.stop(None).wait()
    assert (code, output) == (1, "")
    wording(error.removesuffix("\n"), target=target)


@BOTH
def test_the_administrators_port_says_that_it_takes_no_requests_for_models(shelf, serve, command, wording):
    """It knows what is served, and asks no model."""
    shelf.add("math")
    target = serve("math", admin=helpers.serving.Address(host="127.0.0.1", port=0)).bound.admin
    code, output, error = run(*command, "--server", target)
    assert (code, output) == (1, "")
    wording(error.removesuffix("\n"), target=target)


@BOTH
def test_where_nothing_listens_there_is_how_to_start_a_server(command, wording):
    """And only there."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        target = f"127.0.0.1:{free.getsockname()[1]}"
    code, output, error = run(*command, "--server", target)
    assert (code, output) == (1, "")
    words, details, advice = error.partition(" (")[0], error.partition(" (")[2], error.rpartition(")")[2]
    assert target in words
    assert details
    wording(words + advice.removesuffix("\n"), target=target)


# What is shown to the server


@pytest.fixture
def files(tmp_path, monkeypatch, tls):
    """The working directory, with a token, a certificate and its key, links to them, and a pipe nobody writes into."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "token").touch(mode=0o600)
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "ca.pem").write_bytes(tls.certificate.read_bytes())
    (tmp_path / "key.pem").write_bytes(tls.key.read_bytes())
    (tmp_path / "link").symlink_to("token")
    os.mkfifo(tmp_path / "pipe", 0o600)
    return tmp_path


UNFIT = [
    ["--token-file", "pipe"],
    ["--tls-ca", "pipe"],
    ["--token-file", "/dev/zero"],
    ["--tls-ca", "/dev/zero"],
    ["--token-file", "."],
    ["--tls-ca", "."],
    ["--tls-ca", "nothing"],
    ["--tls-ca", "key.pem"],
    ["--token-file", "token", "--server", "example.org:1"],
]


@BOTH
@pytest.mark.parametrize(
    "options",
    UNFIT,
    ids=lambda value: ascii(value)[:60],
)
def test_what_cannot_be_shown_is_reported_by_its_flag(capsys, files, command, options, wording):
    """At once, also where reading would wait for somebody to write."""
    code, output, error = in_this_process(capsys, *command, "--model", "math", *options)
    assert (code, output) == (2, "")
    wording(error)


def test_a_token_and_an_authority_are_read_from_links_and_from_what_the_shell_opened(files, shelf, serve, tls):
    """`/dev/stdin` as a file or a pipe, and `<(COMMAND)`."""
    shelf.add("math")
    target = serve("math", tls=tls, token="secret").target
    ask = ("generate", "hi", "--server", target)
    fine = (0, "math@1:hi\n", "")
    assert run(*ask, "--tls-ca", "ca.pem", "--token-file", "link") == fine
    assert run(*ask, "--tls-ca", "ca.pem", "--token-file", "/dev/stdin", input=b"secret\n") == fine
    assert run(*ask, "--tls-ca", "/dev/stdin", "--token-file", "token", input=Path("ca.pem").read_bytes()) == fine
    with Path("token").open("rb") as file:
        assert run(*ask, "--tls-ca", "ca.pem", "--token-file", "/dev/stdin", stdin=file) == fine
    with subprocess.Popen(["cat", "token"], stdout=subprocess.PIPE) as cat:
        number = cat.stdout.fileno()
        given = run(*ask, "--tls-ca", "ca.pem", "--token-file", f"/dev/fd/{number}", pass_fds=[number])
    assert given == fine


def test_python_names_the_arguments_as_python_has_them(files, wording):
    """Not by flags that it does not have."""
    with pytest.raises(ValueError, match="unencrypted") as caught:
        Client("example.org:1", token="secret")
    wording(caught.value)
    with pytest.raises(ValueError, match="certificate") as caught:
        Client(tls_ca="key.pem")
    wording(caught.value)
    with pytest.raises(OSError, match="not a regular file"):
        Client(tls_ca="pipe")
