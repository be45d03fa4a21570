"""Bytes at the gRPC port that are not gRPC or HTTP/2, or nearly are: nothing comes down, nothing is held."""

import contextlib
import gzip
import importlib.util
import os
import socket
import ssl
from pathlib import Path

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelwright.grpc_server.client import Client, ServerError
from modelwright.v1 import inference_pb2


def load(name):
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"modelwright_tests_sweep_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


helpers = load("grpc_serving")
http2 = helpers.load("http2.py")
running, client = helpers.running, helpers.client
shelf, serve, connect, tls = helpers.shelf, helpers.serve, helpers.connect, helpers.tls
GENERATE, LIMIT = helpers.GENERATE, helpers.LIMIT

HELLO = http2.HELLO
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


# What gRPC's own statuses are here: https://grpc.io/docs/guides/status-codes/
OK, INVALID_ARGUMENT, RESOURCE_EXHAUSTED, INTERNAL = 0, 3, 8, 13

FRAMED = {
    "a good one": (http2.message(WISH), OK),
    # Where one message is expected, gRPC reads one and leaves the rest.
    "two messages": (http2.message(WISH) * 2, OK),
    "compressed, it says": (http2.message(WISH, flag=1), INTERNAL),
    "a flag of no meaning": (http2.message(WISH, flag=7), INVALID_ARGUMENT),
    "shorter than it says": (http2.message(WISH, length=len(WISH) + 5), INVALID_ARGUMENT),
    "4 GB, it says": (http2.message(WISH, length=2**32 - 1), RESOURCE_EXHAUSTED),
    "half a length": (b"\0\0", INVALID_ARGUMENT),
    "no message": (b"", INVALID_ARGUMENT),
    "noise": (http2.message(os.urandom(200)), INVALID_ARGUMENT),
}


@pytest.mark.parametrize(("data", "status"), FRAMED.values(), ids=FRAMED)
def test_messages_that_are_framed_wrongly_get_a_status(client, running, data, status):
    """Anything that gRPC itself finds is reported, and the stream ends; a good one is answered."""
    answer = http2.talk(running.target, HELLO, http2.headers(GENERATE), http2.frame(http2.DATA, data, **STREAM))
    assert http2.status(answer) == status, answer
    assert (b"math@1:hi" in answer) == (status == OK)


ODD_HEADERS = [
    ({"grpc_encoding": "gzip"}, OK),  # of which no message makes use
    ({"grpc_encoding": "nope"}, INTERNAL),
    ({"grpc_timeout": "99999999999H"}, OK),
    ({"grpc_timeout": "-1S"}, INTERNAL),
    ({"content_type": "text/html"}, OK),
    ({"authorization": "Bearer \x01"}, OK),  # to a server that asks for no token
    ({"grpc_status_details_bin": "!!!"}, INTERNAL),
]


@pytest.mark.parametrize(("fields", "status"), ODD_HEADERS)
def test_odd_headers_get_an_answer_or_a_status(client, running, fields, status):
    """What gRPC cannot read is reported; what nobody needs is left alone."""
    body = http2.frame(http2.DATA, http2.message(WISH), **STREAM)
    answer = http2.talk(running.target, HELLO, http2.headers(GENERATE, **fields), body)
    assert http2.status(answer) == status, answer
    assert (b"math@1:hi" in answer) == (status == OK)


@pytest.mark.parametrize(
    ("data", "status"),
    [(b"no gzip at all", INTERNAL), (gzip.compress(WISH)[:-9], INTERNAL), (gzip.compress(WISH), OK)],
    ids=["none", "cut short", "gzip"],
)
def test_a_message_that_says_gzip_and_is_none_gets_a_status(client, running, data, status):
    """And one that is, is read."""
    body = http2.frame(http2.DATA, http2.message(data, flag=1), **STREAM)
    answer = http2.talk(running.target, HELLO, http2.headers(GENERATE, grpc_encoding="gzip"), body)
    assert http2.status(answer) == status, answer
    assert (b"math@1:hi" in answer) == (status == OK)


def test_a_compressed_message_that_grows_beyond_the_limit_is_refused(client):
    """What counts is how long it is in the end."""
    with Client(client.target, timeout=20) as other, pytest.raises(grpc.RpcError) as caught:
        other._channel.unary_unary(GENERATE)(b"\0" * (300 * 1024 * 1024), timeout=60, compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_too_much_is_reported_in_words_of_the_client(client):
    """Also where gRPC refuses before the server sees anything."""
    for size in (LIMIT + 10, LIMIT * 100):
        with pytest.raises(ServerError, match=r"accepts.*: send less") as caught:
            client.generate("x" * size, model="math")
        assert caught.value.code == "RESOURCE_EXHAUSTED"


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
