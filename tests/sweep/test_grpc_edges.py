"""The edges of a gRPC server: clients that leave in mid-stream, ports that are taken, two servers at once."""

import importlib.util
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from modelwright import ModelwrightError, UsageError
from modelwright.grpc_server.client import Client, ServerError
from modelwright.grpc_server.network.listening import Address
from modelwright.v1 import inference_pb2


def load(name):
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"modelwright_tests_sweep_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


helpers = load("grpc_serving")
http2 = helpers.load("http2.py")
wait_until = helpers.wait_until
running, client = helpers.running, helpers.client
shelf, serve, connect = helpers.shelf, helpers.serve, helpers.connect

LEAVER = """
import sys
from modelwright import Client
stream = Client(sys.argv[1]).stream("x" * 100, model="slow")
next(stream)
print("running", flush=True)
import time; time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_client_that_dies_in_mid_stream_frees_its_slot_within_a_second(client, running, number):
    """The next caller has room."""
    with subprocess.Popen([sys.executable, "-c", LEAVER, running.target], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "running\n"
        assert client.get_model("slow").active_requests == 1
        process.send_signal(number)
        wait_until(lambda: client.get_model("slow").active_requests == 0, 1)


@pytest.mark.parametrize("way", ["close", "channel", "deadline", "forget"])
def test_a_client_that_leaves_in_mid_stream_frees_its_slot_within_a_second(client, running, way):
    """By closing the stream or the connection, by its deadline, by letting go of the stream on an open connection."""
    other = Client(running.target, timeout=0.3 if way == "deadline" else 20)
    stream = other.stream("x" * 100, model="slow")
    next(stream)
    if way == "close":
        stream.close()
    elif way == "channel":
        other.close()
    elif way == "deadline":
        with pytest.raises(ServerError, match="did not answer in time"):
            stream.generation()
    else:
        del stream
        assert other.generate("hi", model="math").text == "math@1:hi"
    wait_until(lambda: client.get_model("slow").active_requests == 0, 1)
    other.close()


def test_a_connection_that_breaks_in_mid_stream_frees_its_slot(client, running):
    """Without a word, as when a cable is pulled after the last packet."""
    wish = inference_pb2.GenerateStreamRequest(model="slow", prompt="x" * 100).SerializeToString()
    path = "/modelwright.v1.InferenceService/GenerateStream"
    body = http2.frame(http2.DATA, http2.message(wish), stream=1, flags=http2.END_STREAM)
    answer = http2.talk(running.target, http2.HELLO, http2.headers(path), body, until=b"slow")
    assert b"slow" in answer
    wait_until(lambda: client.get_model("slow").active_requests == 0, 1)


def test_a_client_that_does_not_read_does_not_hold_up_others(shelf, serve, connect):
    """Its stream waits; the server answers, and ends in time."""
    shelf.add("wordy", context=100_000, mark="w" * 200)
    running = serve("wordy", grace=0.5)
    client = connect(running)
    streams = [client.stream("x" * 40_000, model="wordy", max_tokens=40_000) for _ in range(2)]
    assert client.generate("hi", model="wordy", max_tokens=3).text == "www"
    for stream in streams:
        stream.close()
    wait_until(lambda: running.table.models()[0].active == 0)


@pytest.mark.parametrize("flag", ["listen", "http", "admin"])
def test_a_port_in_use_is_one_clear_line_that_names_the_flag(shelf, serve, flag, wording):
    """Before models are loaded; and what had been taken is given back."""
    shelf.add("math")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ModelwrightError) as caught:
            serve("math", **{flag: Address(host="127.0.0.1", port=port)})
        wording(caught.value, port=port)


NOWHERE = [
    *("", " ", ":", "127.0.0.1", "127.0.0.1:", ":50051", "127.0.0.1:x", "127.0.0.1:-1", "127.0.0.1:65536"),
    *("127.0.0.1:1:2", "::1:5", "[::1]", "[zz]:5", "a b:5", "http://127.0.0.1:5", "127.0.0.1:5/x", "127.0.0.1:٣"),
    *("host\0:5", "127.0.0.1:5\n"),
]


@pytest.mark.parametrize("listen", NOWHERE, ids=ascii)
def test_what_is_nowhere_to_listen_is_one_clear_line(listen, wording):
    """With what is expected."""
    with pytest.raises(UsageError) as caught:
        Address.parse(listen)
    wording(caught.value)


ELSEWHERE = [
    # What is said of a name depends on whether there is somebody to ask.
    ("no.such.host.invalid", r"(name or service not known|temporary failure in name resolution)"),
    ("256.1.1.1", r"(name or service not known|temporary failure in name resolution)"),
    ("x" * 300, "not a valid host name"),
    ("a..b", "not a valid host name"),
    ("192.0.2.1", "cannot assign requested address"),
]


@pytest.mark.parametrize("flag", ["listen", "http", "admin"])
@pytest.mark.parametrize(("host", "reason"), ELSEWHERE)
def test_a_host_that_is_not_here_is_one_clear_line(shelf, serve, flag, host, reason):
    """As the system says it; nothing listens there that could be stopped."""
    shelf.add("math")
    with pytest.raises(ModelwrightError) as caught:
        serve("math", insecure=True, **{flag: Address(host=host, port=50999)})
    line = rf"cannot listen on {re.escape(host)}:50999: {reason}: choose another address with --{flag}"
    assert re.fullmatch(line, str(caught.value))


def test_two_servers_over_one_registry_have_routes_of_their_own(shelf, serve, connect):
    """A switch of one is none of the other; a persisted one moves the registry once, and the other gets an error."""
    shelf.add("a")
    shelf.add("b")
    shelf.point("assistant", "a", 1)
    one, two = (connect(serve("a", "b")) for _ in range(2))
    one.set_alias("assistant", "b")
    assert one.generate("x", model="@assistant").text == "b@1:x"
    assert two.generate("x", model="@assistant").text == "a@1:x"
    one.set_alias("assistant", "a", persist=True)
    two.set_alias("assistant", "b", persist=True)
    assert shelf.registry.resolve("assistant").name == "b"
    assert one.generate("x", model="@assistant").text == "a@1:x"
