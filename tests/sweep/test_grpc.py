"""Bad input at the gRPC port, and what happens at its edges: each is told, nothing is lost, the server goes on."""

import contextlib
import importlib.util
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelwright import ModelwrightError, UsageError
from modelwright.grpc_server.client import Client, ServerError
from modelwright.grpc_server.listening import Address
from modelwright.v1 import common_pb2, inference_pb2, model_pb2


def load(name, path):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


serving = load("serving", "../grpc_server/conftest.py")
http2 = load("http2", "http2.py")
shelf, serve, connect, tls, journal = serving.shelf, serving.serve, serving.connect, serving.tls, serving.journal
HERE = Address(host="127.0.0.1", port=0)
LIMIT = 64 * 1024
SERVICES = [
    inference_pb2.DESCRIPTOR.services_by_name["InferenceService"],
    model_pb2.DESCRIPTOR.services_by_name["ModelService"],
]
METHODS = [method for service in SERVICES for method in service.methods if method.name != "Score"]
GENERATE = "/modelwright.v1.InferenceService/Generate"


def wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A server for the whole module: `math@1`, `slow@1`, and messages of at most 64 KiB."""
    shelf = serving.Shelf(tmp_path_factory.mktemp("models"))
    shelf.add("math")
    shelf.add("slow", seconds_per_token=0.02)
    running = serving.Running(shelf, ["math", "slow"], max_message_bytes=LIMIT)
    yield running
    running.stop()


@pytest.fixture
def client(running):
    """After every case the server serves as before, and holds nothing of what was refused."""
    with Client(running.target, timeout=20) as client:
        yield client
        assert client.generate("hi", model="math").text == "math@1:hi"
        wait_until(lambda: not any(model.active_requests for model in client.models()), 1)
        assert [model.address for model in client.models()] == ["math@1", "slow@1"]
        assert running.table.changes.watchers == 0


# What the caller says

ADDRESSES = [
    ("", "is empty"),
    ("../math", "no model can have that name"),
    ("a/b", "no model can have that name"),
    ("/etc/passwd", "no model can have that name"),
    (".", "no model can have that name"),
    ("..", "no model can have that name"),
    ("math@", "'' is no version"),
    ("math@0", "'0' is no version"),
    ("math@-1", "'-1' is no version"),
    ("math@1.0", "'1.0' is no version"),
    ("math@99999999999999999999", "is no version"),
    ("math@1@2", "'1@2' is no version"),
    ("@", "'' is no alias's name"),
    ("@a/b", "'a/b' is no alias's name"),
    ("@7", "an alias may not be all digits"),
    ("Math", "no model can have that name"),
    ("math ", "no model can have that name"),
    ("math\n", "no model can have that name"),
    ("math\0", "no model can have that name"),
    ("\0", "no model can have that name"),
    ("mäth", "no model can have that name"),
    ("x" * 300, "no model can have that name"),
    ("x" * 300 + "!", "no model can have that name"),
    ("math; drop table models", "no model can have that name"),
]


@pytest.mark.parametrize(("address", "sentence"), ADDRESSES)
def test_what_is_no_address_is_an_invalid_argument_wherever_it_stands(client, address, sentence):
    """In a request for a model, in the model service, and as the target of an alias."""
    calls = {
        "model": [client.generate, client.stream, client.chat, client.tokenize],
        "address": [client.get_model, client.load_model, client.unload_model],
        "target": [lambda target: client.set_alias("assistant", target)],
    }
    for field, methods in calls.items():
        for method in methods:
            with pytest.raises(ServerError) as caught:
                method("hi", model=address) if field == "model" else method(address)
            assert (caught.value.code, caught.value.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
            assert caught.value.metadata == {"field": field}
            assert sentence in caught.value.message or len(address) > 250
            assert "\0" not in repr(caught.value.message).replace("\\x00", "")


@pytest.mark.parametrize("name", ["a.b-c_d", "math..", "m" * 100])
def test_a_name_that_could_be_and_is_not_there_is_not_found(client, name):
    """Dots and length are no crime; nothing of it is taken for a path."""
    for call in (client.get_model, client.load_model, client.unload_model, lambda name: client.set_alias("x", name)):
        with pytest.raises(ServerError) as caught:
            call(name)
        assert (caught.value.code, caught.value.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")
        assert len(caught.value.message.encode()) <= 1000


@pytest.mark.parametrize(
    "alias", ["", "a/b", "../x", "@x", "A", "7", "x\0", "x" * 300 + "/", "é", " x", "x\n", "-x", ".x"]
)
def test_what_is_no_alias_is_an_invalid_argument(client, alias):
    """The field is named, and no route is made."""
    with pytest.raises(ServerError, match="alias is wrong: ") as caught:
        client.set_alias(alias, "math")
    assert (caught.value.code, caught.value.metadata) == ("INVALID_ARGUMENT", {"field": "alias"})
    assert client.aliases() == []


@pytest.mark.parametrize("engine", ["", "nope", "torch/../x", "e" * 300, "\0"])
def test_an_engine_that_is_not_there_is_an_invalid_argument(client, engine):
    """This server has one alone."""
    with pytest.raises(ServerError, match="engine is ") as caught:
        client.load_model("math", engine=engine)
    assert (caught.value.code, caught.value.metadata) == ("INVALID_ARGUMENT", {"field": "engine"})


def test_a_lone_surrogate_never_leaves_the_client(client):
    """No message can hold one: it is a ValueError there, of every method."""
    bad = "a\ud800"
    calls = [
        lambda: client.generate(bad, model="math"),
        lambda: client.generate("x", model=bad),
        lambda: client.generate("x", model="math", stop=bad),
        lambda: client.chat(bad, model="math"),
        lambda: client.chat([{"role": "user", "content": "x", "name": bad}], model="math"),
        lambda: client.tokenize(bad, model="math"),
        lambda: client.get_model(bad),
        lambda: client.load_model(bad),
        lambda: client.load_model("math", engine=bad),
        lambda: client.unload_model(bad),
        lambda: client.set_alias(bad, "math"),
        lambda: client.set_alias("x", bad),
        lambda: client.set_alias("x", "math", etag=bad),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"(?i)surrogate|utf-8"):
            call()


@pytest.mark.parametrize("text", ["\0", "a\0b", "\ufeffx", "\u2028", "\u202e", "e\u0301", "😀", "\x1b[2J", "\r\n", " "])
def test_odd_text_is_a_prompt_like_any_other(client, text):
    """It reaches the model byte for byte, in text and in messages: these models have a token for each byte."""
    size = len(text.encode())
    assert len(client.tokenize(text, model="math").token_ids) == size
    turns = [[{"role": "user", "content": content}] for content in ("x", text)]
    plain, odd = (len(client.tokenize(turn, model="math").token_ids) for turn in turns)
    assert odd - plain == size - 1
    assert client.generate(text, model="math", max_tokens=1).usage.prompt_tokens == size


# Bytes that are no message, at every method


def call_with(client, method, data):
    """Send bytes to a method; gives the first response, or the status as a dictionary."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    try:
        if not method.server_streaming:
            return client._channel.unary_unary(path)(data, timeout=20)
        call = client._channel.unary_stream(path)(data, timeout=20)
        first = next(call)
        call.cancel()
    except grpc.RpcError as error:
        return status_of(error)
    return first


def status_of(error):
    """What a status of ours has: a code, a reason, the same sentence twice."""
    status = rpc_status.from_call(error)
    assert status is not None, error
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert info.domain == "modelwright"
    assert status.message == error.details()
    common_pb2.ErrorReason.Value(f"ERROR_REASON_{info.reason}")
    return {"code": error.code().name, "reason": info.reason}


REFUSED = {"INVALID_ARGUMENT", "NOT_FOUND", "ABORTED"}
FUZZ = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@FUZZ
@given(data=st.binary(min_size=1, max_size=300))
def test_bytes_of_any_kind_get_a_status_of_ours(client, method, data):
    """Never UNKNOWN, never INTERNAL, and never a change of what is served."""
    answer = call_with(client, method, data)
    assert isinstance(answer, bytes) or answer["code"] in REFUSED


def valid(method):
    """A request that could be meant, for every method, as bytes."""
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    address = st.sampled_from(["nope", "@nope", "math@7"]) | text
    sampling = st.builds(
        common_pb2.Sampling,
        max_tokens=st.integers(-(2**31), 2**31 - 1),
        temperature=st.floats(),
        top_p=st.floats(),
        top_k=st.integers(-(2**31), 2**31 - 1),
        seed=st.integers(-(2**63), 2**63 - 1),
        stop=st.lists(text, max_size=40),
    )
    message = st.builds(common_pb2.Message, role=st.integers(-5, 99), content=text, thinking=text, name=text)
    fields = {
        "model": address,
        "address": address,
        "target": address,
        "alias": text,
        "etag": text,
        "engine": text,
        "prompt": text,
        "text": text,
        "adapter": text,
        "sampling": sampling,
        "messages": st.lists(message, max_size=4),
    }
    kind = getattr(inference_pb2, method.input_type.name, None) or getattr(model_pb2, method.input_type.name)
    there = {name: strategy for name, strategy in fields.items() if name in kind.DESCRIPTOR.fields_by_name}
    return st.fixed_dictionaries({}, optional=there).map(lambda values: kind(**values).SerializeToString())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@FUZZ
@given(data=st.data())
def test_messages_with_odd_values_get_a_status_of_ours_or_an_answer(client, method, data):
    """Numbers at their ends, not-a-number, turns of no role, whole or with some bytes changed."""
    request = bytearray(data.draw(valid(method)))
    for _ in range(data.draw(st.integers(0, 3)) if request else 0):
        request[data.draw(st.integers(0, len(request) - 1))] = data.draw(st.integers(0, 255))
    answer = call_with(client, method, bytes(request))
    assert isinstance(answer, bytes) or answer["code"] in REFUSED


@pytest.mark.parametrize(
    "path",
    [
        "/modelwright.v1.InferenceService/Nope",
        "/modelwright.v1.InferenceService/",
        "/modelwright.v2.InferenceService/Generate",
        "/modelwright.v1.ModelService/SetAlias/",
        "/nope",
        "/",
        "//",
        "/grpc.health.v1.Health/Nope",
        "/../etc/passwd",
        "/" + "x" * 4000,
    ],
)
def test_methods_that_are_not_there_are_unimplemented(client, path):
    """As whole calls and as streams."""
    for kind in (client._channel.unary_unary, client._channel.unary_stream, client._channel.stream_stream):
        with pytest.raises(grpc.RpcError) as caught:
            list(kind(path)(b"" if "stream_stream" not in str(kind) else iter([b""]), timeout=10))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# Bytes that are no gRPC, no HTTP/2, or nearly

HELLO = http2.PREFACE + http2.frame(http2.SETTINGS)
WISH = inference_pb2.GenerateRequest(model="math", prompt="hi").SerializeToString()
STREAM = {"stream": 1, "flags": http2.END_STREAM}

RAW = {
    "nothing": [b""],
    "a byte": [b"\0"],
    "http/1": [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"],
    "a TLS hello": [bytes.fromhex("16030100c8010000c40303") + os.urandom(196)],
    "noise": [os.urandom(4096)],
    "half a preface": [http2.PREFACE[:10]],
    "a preface and noise": [http2.PREFACE, os.urandom(4096)],
    "a preface twice": [http2.PREFACE * 2],
    "settings and noise": [HELLO, os.urandom(4096)],
    "a frame longer than it says": [HELLO, http2.frame(http2.PING, b"x" * 100, length=8)],
    "a frame shorter than it says": [HELLO, http2.frame(http2.DATA, b"x", stream=1, length=2**24 - 1)],
    "a frame of no kind": [HELLO, http2.frame(200, b"x" * 50, stream=3)],
    "data on no stream": [HELLO, http2.frame(http2.DATA, b"x", stream=7)],
    "headers that are none": [HELLO, http2.frame(http2.HEADERS, b"\xff" * 40, flags=http2.END_HEADERS, stream=1)],
    "headers without an end": [HELLO, http2.headers(GENERATE, flags=0), http2.frame(http2.CONTINUATION, b"", stream=1)],
    "a flood of settings": [HELLO, http2.frame(http2.SETTINGS) * 2000],
    "a flood of pings": [HELLO, http2.frame(http2.PING, b"12345678") * 2000],
    "an even stream": [HELLO, http2.headers(GENERATE, stream=2)],
    "goodbye at once": [HELLO, http2.frame(http2.GOAWAY, b"\0" * 8)],
}


@pytest.mark.parametrize("parts", RAW.values(), ids=RAW)
def test_bytes_that_are_no_http2_bring_nothing_down(client, running, parts):
    """The connection is closed or left alone; others go on."""
    http2.talk(running.target, *parts, until=None)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.binary(max_size=400), max_size=3), begin=st.sampled_from([b"", http2.PREFACE, HELLO]))
def test_random_bytes_bring_nothing_down(client, running, parts, begin):
    """On a connection of their own, from the first byte on or after a good beginning."""
    _send(running.target, (begin, *parts))


FRAMED = {
    "a good one": [http2.frame(http2.DATA, http2.message(WISH), **STREAM)],
    "compressed, it says": [http2.frame(http2.DATA, http2.message(WISH, flag=1), **STREAM)],
    "a flag of no meaning": [http2.frame(http2.DATA, http2.message(WISH, flag=7), **STREAM)],
    "shorter than it says": [http2.frame(http2.DATA, http2.message(WISH, length=len(WISH) + 5), **STREAM)],
    "4 GB, it says": [http2.frame(http2.DATA, http2.message(WISH, length=2**32 - 1), **STREAM)],
    "half a length": [http2.frame(http2.DATA, b"\0\0", **STREAM)],
    "no message": [http2.frame(http2.DATA, b"", **STREAM)],
    "two messages": [http2.frame(http2.DATA, http2.message(WISH) * 2, **STREAM)],
    "noise": [http2.frame(http2.DATA, http2.message(os.urandom(200)), **STREAM)],
}


@pytest.mark.parametrize("parts", FRAMED.values(), ids=FRAMED)
def test_messages_that_are_framed_wrongly_get_a_status(client, running, parts):
    """Whatever gRPC itself finds is told, and the stream ends."""
    answer = http2.talk(running.target, HELLO, http2.headers(GENERATE), *parts)
    assert b"grpc-status" in answer or b"\0\0\x04\x03" in answer, answer


@pytest.mark.parametrize(
    "fields",
    [
        {"grpc_encoding": "gzip"},
        {"grpc_encoding": "nope"},
        {"grpc_timeout": "99999999999H"},
        {"grpc_timeout": "-1S"},
        {"content_type": "text/html"},
        {"authorization": "Bearer \x01"},
        {"grpc_status_details_bin": "!!!"},
    ],
)
def test_odd_headers_bring_nothing_down(client, running, fields):
    """They get a status, or the connection's end."""
    body = http2.frame(http2.DATA, http2.message(WISH), **STREAM)
    http2.talk(running.target, HELLO, http2.headers(GENERATE, **fields), body, until=None)


def test_a_message_that_says_gzip_and_is_none_gets_a_status(client, running):
    """And one that is, is read."""
    import gzip

    for data in (b"no gzip at all", gzip.compress(WISH)):
        body = http2.frame(http2.DATA, http2.message(data, flag=1), **STREAM)
        answer = http2.talk(running.target, HELLO, http2.headers(GENERATE, grpc_encoding="gzip"), body)
        assert b"grpc-status" in answer


def test_a_compressed_message_that_grows_beyond_the_limit_is_refused(client):
    """What counts is how long it is in the end."""
    with Client(client.target, timeout=20) as other, pytest.raises(grpc.RpcError) as caught:
        other._channel.unary_unary(GENERATE)(b"\0" * (300 * 1024 * 1024), timeout=60, compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_too_much_is_told_in_words_of_the_client(client):
    """Also where gRPC refuses before the server sees anything."""
    for size in (LIMIT + 10, LIMIT * 100):
        with pytest.raises(ServerError, match=r"takes.*: send less") as caught:
            client.generate("x" * size, model="math")
        assert caught.value.code == "RESOURCE_EXHAUSTED"


# Clients that leave

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
    """Whoever asks next has room."""
    with subprocess.Popen([sys.executable, "-c", LEAVER, running.target], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "running\n"
        assert client.get_model("slow").active_requests == 1
        process.send_signal(number)
        wait_until(lambda: client.get_model("slow").active_requests == 0, 1)


@pytest.mark.parametrize("way", ["close", "channel", "deadline", "forget"])
def test_a_client_that_leaves_in_mid_stream_frees_its_slot_within_a_second(client, running, way):
    """By closing the stream or the connection, by its deadline, by losing interest."""
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
        other.close()
    wait_until(lambda: client.get_model("slow").active_requests == 0, 1)
    other.close()


def test_a_connection_that_breaks_in_mid_stream_frees_its_slot(client, running):
    """Without a word, as when a cable is pulled after the last packet."""
    wish = inference_pb2.GenerateStreamRequest(model="slow", prompt="x" * 100).SerializeToString()
    path = "/modelwright.v1.InferenceService/GenerateStream"
    body = http2.frame(http2.DATA, http2.message(wish), **STREAM)
    answer = http2.talk(running.target, HELLO, http2.headers(path), body, until=b"slow")
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


# Ports


@pytest.mark.parametrize("flag", ["listen", "http", "admin"])
def test_a_port_in_use_is_one_clear_line_that_names_the_flag(shelf, serve, flag):
    """Before models are loaded; and what had been taken is given back."""
    shelf.add("math")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        sentence = f"cannot listen on 127.0.0.1:{port}: address already in use: .* choose another with --{flag}"
        with pytest.raises(ModelwrightError, match=sentence):
            serve("math", **{flag: Address(host="127.0.0.1", port=port)})


NOWHERE = [
    *("", " ", ":", "127.0.0.1", "127.0.0.1:", ":50051", "127.0.0.1:x", "127.0.0.1:-1", "127.0.0.1:65536"),
    *("127.0.0.1:1:2", "::1:5", "[::1]", "[zz]:5", "a b:5", "http://127.0.0.1:5", "127.0.0.1:5/x", "127.0.0.1:٣"),
    *("host\0:5", "127.0.0.1:5\n"),
]


@pytest.mark.parametrize("listen", NOWHERE)
def test_what_is_nowhere_to_listen_is_one_clear_line(listen):
    """With what is expected."""
    with pytest.raises(UsageError, match="is nowhere to listen: expected HOST:PORT"):
        Address.parse(listen)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "x" * 300, "256.1.1.1", "192.0.2.1"])
def test_a_host_that_is_not_here_is_one_clear_line(shelf, serve, host):
    """As the system says it."""
    shelf.add("math")
    with pytest.raises(ModelwrightError, match="cannot listen on "):
        serve("math", listen=Address(host=host, port=50999), insecure=True)


def test_two_servers_over_one_registry_have_routes_of_their_own(shelf, serve, connect):
    """A switch of one is none of the other; a persisted one moves the registry once, and the other is told."""
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


# TLS and tokens


def test_noise_at_an_encrypted_port_brings_nothing_down(shelf, serve, connect, tls):
    """Bytes before the handshake, and after it."""
    shelf.add("math")
    running = serve("math", tls=tls)
    for parts in RAW.values():
        _send(running.target, parts)
    context = ssl.create_default_context(cafile=tls.certificate)
    context.set_alpn_protocols(["h2"])
    port = int(running.target.rpartition(":")[2])
    for parts in RAW.values():
        with (
            socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as connection,
            contextlib.suppress(OSError),
        ):
            for part in parts:
                connection.sendall(part)
    assert connect(running, tls_ca=tls.certificate).generate("hi").text == "math@1:hi"


def _send(target, parts):
    with (
        socket.create_connection(("127.0.0.1", int(target.rpartition(":")[2])), timeout=5) as connection,
        contextlib.suppress(OSError),
    ):
        for part in parts:
            connection.sendall(part)


@FUZZ
@given(value=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60))
def test_no_guess_opens_a_server_with_a_token(guarded, value):
    """Whatever the header says."""
    call = guarded._channel.unary_unary("/modelwright.v1.ModelService/ListModels")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"", timeout=20, metadata=[("authorization", value)])
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    shelf = serving.Shelf(tmp_path_factory.mktemp("guarded"))
    shelf.add("math")
    running = serving.Running(shelf, ["math"], token="an-unguessable-token")
    with Client(running.target, timeout=20) as client:
        yield client
    running.stop()
