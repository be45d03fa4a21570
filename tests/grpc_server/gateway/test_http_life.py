"""Clients that leave, and a server that ends."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from modelwright.grpc_server.gateway import body, connection


@pytest.fixture
def slow(shelf, serve_http):
    """A server whose answers take 0.05 s a token."""
    shelf.add("slow", seconds_per_token=0.05, context=512)
    return serve_http("slow")


BODY = {"model": "slow", "prompt": "x" * 100}


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot_within_a_second(slow, journal, wait_until, stream):
    """In the middle of a stream, or while it waits for the whole answer."""
    sock = slow.raw(slow.post_bytes("/v1/completions", {**BODY, "stream": stream}), wait=False)
    wait_until(lambda: slow.active == 1)
    if stream:
        assert sock.recv(100).startswith(b"HTTP/1.1 200")
    sock.close()
    wait_until(lambda: slow.active == 0, seconds=1)
    wait_until(lambda: ("cancel", "slow@1") in journal, seconds=1)
    assert ("finish", "slow@1", "stop") not in journal[2:]


def test_a_client_that_leaves_while_it_sends_is_forgotten(slow, wait_until):
    """Half a body is not a request."""
    sock = slow.raw(slow.post_bytes("/v1/completions", BODY)[:-20], wait=False)
    wait_until(lambda: not slow.http._state.idle.is_set())
    sock.close()
    wait_until(slow.http._state.idle.is_set, seconds=1)


def test_a_client_that_sends_slowly_holds_up_nobody(slow):
    """It has no place until its request is whole."""
    with slow.raw(slow.post_bytes("/v1/completions", BODY)[:-20], wait=False):
        assert slow.active == 0
        assert slow.ask("POST", "/v1/completions", {"model": "slow", "prompt": "x", "max_tokens": 1})[0] == 200


@pytest.fixture
def impatient(monkeypatch):
    """Half a second is long."""
    monkeypatch.setattr(connection, "READING_PATIENCE", 0.5)


@pytest.fixture
def unread(shelf, serve_http, wait_until):
    """A server, and a client of it that does not read: its stream has come to a halt."""
    shelf.add("big", context=120_000)
    web = serve_http("big", limit=10**6)
    body = {"model": "big", "prompt": "x" * 50_000, "stream": True, "max_tokens": 50_000, "logprobs": 0}
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", web.port))
        sock.sendall(web.post_bytes("/v1/completions", body))
        wait_until(lambda: [c for c in web.http._server.server_state.connections if c.flow.write_paused])
        yield web


def test_a_client_that_does_not_read_holds_up_nobody(unread):
    """Not even the end of the server."""
    assert unread.ask("GET", "/health")[0] == 200
    assert unread.active == 1
    begin = time.monotonic()
    unread.stop()
    assert time.monotonic() - begin < 8


def test_a_client_that_does_not_read_for_long_loses_its_place(impatient, unread, wait_until):
    """A place is for those who wait for an answer."""
    wait_until(lambda: unread.active == 0, seconds=5)


def test_a_large_body_is_read_beside_the_others(slow, monkeypatch):
    """One of many thousand parts takes a second to read, and nobody waits for it."""
    parse, reading, go = body.parse_object, threading.Event(), threading.Event()

    def slow_parse(data):
        reading.set()
        assert go.wait(10)
        return parse(data)

    monkeypatch.setattr(body, "QUICK_BYTES", 1000)
    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(body, "parse_object", slow_parse)
        large = pool.submit(slow.ask, "POST", "/v1/completions", {"model": "slow", "prompt": "x" * 1000})
        assert reading.wait(10)
        assert slow.ask("GET", "/health")[0] == 200
        go.set()
        assert large.result(timeout=10)[2]["error"]["code"] == "context_length_exceeded"


def events(data):
    """The events of a raw answer, chunked."""
    return [json.loads(line[6:]) for line in data.decode().splitlines() if line.startswith("data: {")]


def test_at_the_end_running_answers_finish_and_new_requests_are_refused(slow, wait_until, chat):
    """Health says 503, others learn when to come back, and nothing that runs is dropped."""
    said = []
    body = {"model": "slow", "prompt": "one two three", "stream": True}
    reader = threading.Thread(
        target=lambda: said.append(slow.raw(slow.post_bytes("/v1/completions", body, "Connection: close")))
    )
    reader.start()
    wait_until(lambda: slow.active == 1)
    assert slow.ask("GET", "/health")[::2] == (200, {"status": "serving"})
    stopping = threading.Thread(target=slow.stop, args=(10,))
    stopping.start()
    wait_until(lambda: slow.http._state.draining)
    status, headers, answer = slow.ask("GET", "/health")
    assert (status, answer, headers["retry-after"]) == (503, {"status": "draining"}, "1")
    status, headers, answer = slow.ask("POST", "/v1/chat/completions", chat())
    assert (status, headers["retry-after"]) == (503, "1")
    assert answer["error"]["message"] == "the server is shutting down: try again later"
    reader.join()
    stopping.join()
    assert "".join(event["choices"][0]["text"] for event in events(said[0])) == "slow@1:one two three"
    assert b"data: [DONE]\n\n" in said[0]


@pytest.mark.parametrize("stream", [True, False])
def test_what_still_runs_when_the_grace_is_over_gets_the_reason(slow, wait_until, stream):
    """A stream ends with an error event and without [DONE]; a whole answer is a 503."""
    said = []
    body = slow.post_bytes("/v1/completions", {**BODY, "stream": stream})
    reader = threading.Thread(target=lambda: said.append(slow.raw(body)))
    reader.start()
    wait_until(lambda: slow.active == 1)
    begin = time.monotonic()
    slow.stop(0.2)
    assert time.monotonic() - begin < 5
    reader.join()
    assert b"[DONE]" not in said[0]
    if stream:
        error = events(said[0])[-1]["error"]
        assert (error["type"], error["code"]) == ("server_error", "shutting_down")
    else:
        assert said[0].startswith(b"HTTP/1.1 503")
        assert b"retry-after: 1" in said[0].lower()


def test_idle_connections_do_not_hold_up_the_end(slow):
    """One that said nothing, one in the middle of its headers, one that waits for its next request."""
    open_ones = [slow.raw(data, wait=False) for data in (b"", b"GET /health HTTP/1.1\r\nHo")]
    alive = slow.raw(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", wait=False)
    assert alive.recv(100).startswith(b"HTTP/1.1 200")
    begin = time.monotonic()
    slow.stop(20)
    assert time.monotonic() - begin < 5
    for sock in [*open_ones, alive]:
        sock.close()


def test_many_answers_at_once(slow):
    """40 answers of 0.4 s each take far less than 16 s."""
    said, begin = [], time.monotonic()
    ask = lambda number: said.append(slow.ask("POST", "/v1/completions", {"model": "slow", "prompt": str(number)})[2])  # noqa: E731
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer["choices"][0]["text"] for answer in said) == sorted(f"slow@1:{n}" for n in range(40))
    assert time.monotonic() - begin < 8
