"""Bad input at the HTTP port: each case has its status and its line, and the server goes on answering."""

import http.client
import importlib.util
import json
import re
import socket
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

GATEWAY = Path(__file__).parent.parent / "grpc_server" / "gateway"


def import_web():
    """The helpers of the gateway's own tests."""
    if "modelwright_tests_web" not in sys.modules:
        spec = importlib.util.spec_from_file_location("modelwright_tests_web", GATEWAY / "web.py")
        module = sys.modules["modelwright_tests_web"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["modelwright_tests_web"]


helpers = import_web()
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    """A server that takes 64 KiB: `math@1`, also `@assistant`, and `slow@1`."""
    shelf = helpers.Shelf(tmp_path_factory.mktemp("models"))
    shelf.add("math", context=2048)
    shelf.add("slow", context=2048, seconds_per_token=0.02)
    shelf.point("assistant", "math", 1)
    web = helpers.Web(shelf, "math", "slow")
    yield web
    web.stop()


@pytest.fixture(autouse=True)
def still_answers(web):
    """After every case the server serves as before, and holds nothing of what was refused."""
    yield
    assert web.ask("POST", TEXT, {"model": "math", "prompt": "x"})[2]["choices"][0]["text"] == "math@1:x"
    helpers.wait_until(lambda: web.active == 0)


def refused(answer):
    """What an error says, having the shape that every error has."""
    status, _, body = answer
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert "\n" not in body["error"]["message"]
    return status, body["error"]["message"]


# Python says it in other words since 3.13.
TRAILING = (
    "Illegal trailing comma before end of object (line 1, column 17)"
    if sys.version_info >= (3, 13)
    else "Expecting property name enclosed in double quotes (line 1, column 18)"
)

# The bytes of a body

NO_JSON = [
    b"",
    b"hello",
    b'{"model": "math",}',
    b'{"model": "math"}\n\n  {}',
    b'{"model": "math"',
    b'{"model": "ma',
    b'{"model": "a\x00b"}',
    b'{"model": "\\x"}',
    b"{'model': 'math'}",
    b'{"model": "\xff"}',
    '{"model": "math"}'.encode("utf-16"),
    '{"model": "math"}'.encode("utf-16-le"),
    b'\xef\xbb\xbf{"model": "math"}',
    b"[]",
    b"null",
    b"3",
    b'{"n": 1, "model": "math", "n": 2}',
    b'{"metadata": {"a": 1, "a": 1}}',
    b'{"model": "math",\n "temperature": NaN}',
    b'{"temperature": -Infinity}',
    b"[" * 65,
    b'{"a":' * 3000,
    b'{"messages": [{"content": "x\\ud800"}]}',
    b'{"\\udfff": 1}',
]


@pytest.mark.parametrize("body", NO_JSON, ids=lambda value: ascii(value)[:60])
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_body_that_is_not_json_is_400_and_says_where(web, path, body, wording):
    """What is wrong with it, and the place."""
    status, message = refused(web.ask("POST", path, body))
    assert status == 400
    wording(message, json=TRAILING)


def test_a_number_of_too_many_digits_is_400(web):
    """As Python counts them, which reads no more of them than it thinks safe."""
    status, message = refused(web.ask("POST", TEXT, b'{"seed": ' + b"1" * 5000 + b"}"))
    assert status == 400
    assert message.startswith("the body has a number that is too long")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content_type": None}, 415),
        ({"content_type": "text/plain"}, 415),
        ({"content_type": "application/x-www-form-urlencoded"}, 415),
        ({"content_type": "application/json; charset=latin-1"}, 415),
        ({"content_encoding": "gzip"}, 415),
        ({"content_type": "Application/JSON; charset=UTF-8"}, 200),
        ({"content_type": 'application/json;charset="utf-8"'}, 200),
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_headers_that_say_it_is_something_else_are_415(web, headers, status, wording):
    """So no web page can send a request without asking first, either."""
    answer = web.ask("POST", TEXT, {"model": "math", "prompt": "x"}, **headers)
    assert answer[0] == status
    if status != 200:
        wording(refused(answer)[1])


def test_a_body_that_is_too_large_is_413_before_it_is_read(web, wording):
    """By its header, though 10 GB of it never come; and where no header tells, as soon as it is."""
    head = f"POST {TEXT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode()
    said = web.raw(head + b"Content-Length: 10000000000\r\nExpect: 100-continue\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 413")
    wording(json.loads(said.partition(b"\r\n\r\n")[2])["error"]["message"])
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    said = web.raw(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 3 + b"0\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 413")
    wording(json.loads(said.partition(b"\r\n\r\n")[2])["error"]["message"])
    status, message = refused(web.ask("POST", TEXT, b" " * 65537))
    assert status == 413
    wording(message)
    assert web.ask("POST", TEXT, b" " * 65536)[0] == 400


# What a body says

ONE = [{"role": "user", "content": "x"}]
FIELDS = [
    (CHAT, {"model": None}, 400),
    (CHAT, {"model": 3}, 400),
    (CHAT, {"model": "../etc/passwd"}, 400),
    (CHAT, {"model": "math@0"}, 400),
    (CHAT, {"model": "@7"}, 400),
    (CHAT, {"model": "a" * 300}, 400),
    (CHAT, {"model": "A" * 60_000}, 400),
    (CHAT, {"model": "gpt-9"}, 404),
    (CHAT, {"model": "math@2"}, 404),
    (CHAT, {"messages": None}, 400),
    (CHAT, {"messages": []}, 400),
    (CHAT, {"messages": "hi"}, 400),
    (CHAT, {"messages": ["hi"]}, 400),
    (CHAT, {"messages": [{"content": "x"}]}, 400),
    (CHAT, {"messages": [{"role": "boss", "content": "x"}]}, 400),
    (CHAT, {"messages": [{"role": "tool", "content": "x"}]}, 400),
    (CHAT, {"messages": [{"role": "user"}]}, 400),
    (CHAT, {"messages": [{"role": "user", "content": ""}]}, 400),
    (CHAT, {"messages": [{"role": "user", "content": 3}]}, 400),
    (CHAT, {"messages": [*ONE, {"role": "assistant", "content": "x"}]}, 400),
    (CHAT, {"messages": [{**ONE[0], "name": "ann"}]}, 400),
    (CHAT, {"messages": [{**ONE[0], "contnet": "x"}]}, 400),
    (CHAT, {"messages": [{**ONE[0], "reasoning_content": "x"}]}, 400),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, 400),
    (CHAT, {"messages": [{"role": "user", "content": [{"text": "x"}]}]}, 400),
    (CHAT, {"messages": [{"role": "user", "content": ["x"]}]}, 400),
    (CHAT, {"max_tokens": 0}, 400),
    (CHAT, {"max_completion_tokens": 0}, 400),
    (CHAT, {"max_tokens": 5, "max_completion_tokens": 5}, 400),
    (CHAT, {"max_tokens": 2.5}, 400),
    (CHAT, {"max_tokens": True}, 400),
    (CHAT, {"max_tokens": 2**31}, 400),
    (CHAT, {"temperature": "hot"}, 400),
    (CHAT, {"temperature": 10**400}, 400),
    (CHAT, {"top_p": 0}, 400),
    (CHAT, {"seed": 2**63}, 400),
    (CHAT, {"seed": -1}, 400),
    (CHAT, {"stop": [""]}, 400),
    (CHAT, {"stop": [3]}, 400),
    (CHAT, {"stop": ["x"] * 33}, 400),
    (CHAT, {"stop": {"a": 1}}, 400),
    (CHAT, {"n": 0}, 400),
    (CHAT, {"n": 1000}, 400),
    (CHAT, {"stream": "yes"}, 400),
    (CHAT, {"stream_options": {"include_usage": True}}, 400),
    (CHAT, {"stream": True, "stream_options": {"usage": 1}}, 400),
    (CHAT, {"tools": [{"type": "function"}]}, 400),
    (CHAT, {"tool_choice": "required"}, 400),
    (CHAT, {"response_format": {"type": "json_object"}}, 400),
    (CHAT, {"frequency_penalty": 0.5}, 400),
    (CHAT, {"frequency_penalty": False}, 400),
    (CHAT, {"logit_bias": {"5": 1}}, 400),
    (CHAT, {"store": True}, 400),
    (CHAT, {"logprobs": True, "top_logprobs": 5}, 400),
    (CHAT, {"reasoning_effort": "high"}, 400),
    (CHAT, {"temprature": 0}, 400),
    (CHAT, {"x" * 60_000: 0}, 400),
    (TEXT, {"prompt": None}, 400),
    (TEXT, {"prompt": ""}, 400),
    (TEXT, {"prompt": []}, 400),
    (TEXT, {"prompt": [1, 2, 3]}, 400),
    (TEXT, {"prompt": [[1, 2], [3]]}, 400),
    (TEXT, {"prompt": ["x", None]}, 400),
    (TEXT, {"prompt": ["x"] * 17}, 400),
    (TEXT, {"prompt": ["x", "y"], "n": 9}, 400),
    (TEXT, {"prompt": "x" * 3000}, 400),
    (TEXT, {"echo": True}, 400),
    (TEXT, {"suffix": "x"}, 400),
    (TEXT, {"best_of": 3}, 400),
    (TEXT, {"logprobs": 3}, 400),
    (TEXT, {"messages": ONE}, 400),
]


@pytest.mark.parametrize(
    ("path", "changes", "status"),
    FIELDS,
    ids=lambda value: ascii(value)[:60],
)
def test_a_field_that_cannot_be_is_refused_by_name(web, path, changes, status, wording):
    """Nothing is silently ignored."""
    body = {"model": "math", "messages": ONE} if path == CHAT else {"model": "math", "prompt": "x"}
    answer = web.ask("POST", path, {**body, **changes})
    got, message = refused(answer)
    assert got == status
    wording(message)
    assert len(message) < 1000


# Paths, methods, headers


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/v1/models/a%2Fb", 404),
        ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/v1/models/../../etc/passwd", 404),
        ("GET", "/v1/models/" + "a" * 300, 404),
        ("GET", "/v1/models/%00", 404),
        ("GET", "/v1/models/%ff", 404),
        ("GET", "/v1/models/math%402", 404),
        ("GET", "/v1/models?limit=3", 400),
        ("GET", "/" + "a" * 3000, 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models/math", 405),
        ("POST", "/admin/aliases/assistant", 405),
        ("OPTIONS", CHAT, 405),
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_an_unknown_path_or_method_gets_the_ones_that_exist(web, method, path, status, wording):
    """404 lists the paths, 405 the methods."""
    answer = web.ask(method, path)
    got, message = refused(answer)
    assert got == status
    wording(message)
    if status == 405:
        assert message.endswith(answer[1]["allow"])


def test_a_name_that_is_percent_encoded_is_found(web):
    """As clients write it in a path."""
    assert web.ask("GET", "/v1/models/math%401")[2]["id"] == "math@1"
    assert web.ask("GET", "/v1/models/%40assistant")[2]["id"] == "@assistant"


def statuses(said):
    """Those of the answers in all that came back on a connection."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", said)]


def until_closed(web, data):
    """All that comes back for bytes after which the client has no more to say."""
    with web.raw(data, wait=False) as sock:
        sock.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: sock.recv(65536), b""))


SMUGGLED = b"GET /admin/aliases HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "headers",
    [
        [b"Content-Length: 2", b"Content-Length: 40"],
        [b"Content-Length: 2, 40"],
        [b"Content-Length: +2"],
        [b"Content-Length: -1"],
        [b"Content-Length: 2", b"Transfer-Encoding: chunked"],
        [b"Transfer-Encoding: chunked, identity"],
        [b"Transfer-Encoding: xchunked"],
        [b"Content-Length : 2"],
        [b"Content-Length: 2", b" Folded: 40"],
        [b"Bad Name: x"],
        [b"X: a\x00b"],
    ],
)
def test_a_message_that_two_readers_could_end_in_two_places_is_refused(web, headers):
    """And the connection is closed, so that nothing behind it is taken for a request."""
    head = [b"POST /v1/completions HTTP/1.1", b"Host: x", b"Content-Type: application/json", *headers]
    said = web.raw(b"\r\n".join(head) + b"\r\n\r\n{}\r\n0\r\n\r\n" + SMUGGLED)
    assert statuses(said) == [400], said
    assert b"Invalid HTTP request received." in said


@pytest.mark.parametrize(
    ("garbage", "refusals"),
    [
        (b"\x00" * 100, [400]),
        (b"\x16\x03\x01\x02\x00\x01", [400]),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [404, 400]),
        (b"GET\r\n\r\n", [400]),
        (b"GET / HTTP/x\r\n\r\n", [400]),
        (b"GET /health HTTP/1.1\r\n\r\n", [400]),
        (b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n", [400]),
    ],
)
def test_invalid_http_is_refused_and_the_connection_closed(web, garbage, refusals):
    """A TLS handshake, gRPC, rubbish."""
    said = until_closed(web, garbage)
    assert statuses(said) == refusals
    assert b"Invalid HTTP request received." in said


FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(body=st.binary(max_size=300), path=st.sampled_from([CHAT, TEXT]))
def test_any_bytes_as_a_body_get_an_error_in_the_usual_shape(web, body, path):
    """Never a 500."""
    assert refused(web.ask("POST", path, body))[0] == 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KNOWN = [
    "messages",
    "prompt",
    "n",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "top_p",
    "logprobs",
    "metadata",
    "tools",
]


@FUZZ
@given(
    fields=st.dictionaries(st.sampled_from(KNOWN) | st.text(max_size=8), JSON, max_size=4),
    path=st.sampled_from([CHAT, TEXT]),
)
def test_any_json_as_a_body_gets_an_answer_or_an_error_in_the_usual_shape(web, fields, path):
    """Never a 500."""
    answer = web.ask("POST", path, json.dumps({"model": "math", "max_tokens": 2, **fields}).encode())
    if answer[0] != 200:
        assert refused(answer)[0] in {400, 404}
    elif fields.get("stream"):
        assert answer[2].endswith("data: [DONE]\n\n")
    else:
        texts = [choice["message"]["content"] if path == CHAT else choice["text"] for choice in answer[2]["choices"]]
        assert texts
        assert all(isinstance(text, str) for text in texts)


@FUZZ
@given(data=st.binary(min_size=1, max_size=200))
def test_any_bytes_at_the_port_leave_the_server_as_it_was(web, data):
    """For anything before and in the headers: what has an end is refused, what has none may go unanswered."""
    said = until_closed(web, data)
    assert all(400 <= status < 500 for status in statuses(said)), said
    assert bool(statuses(said)) == bool(said)
    said = until_closed(web, b"POST /v1/completions HTTP/1.1\r\n" + data + b"\r\n\r\n")
    assert statuses(said), said
    assert all(400 <= status < 500 for status in statuses(said)), said


# Connections


def test_a_client_that_disconnects_in_mid_stream_frees_its_slot_within_a_second(web):
    """Its request is cancelled in the engine."""
    body = {"model": "slow", "prompt": "x" * 500, "stream": True}
    socks = [web.raw(web.post_bytes(TEXT, body), wait=False) for _ in range(5)]
    for sock in socks:
        assert sock.recv(64).startswith(b"HTTP/1.1 200")
    assert web.active == 5
    for sock in socks:
        sock.close()
    helpers.wait_until(lambda: web.active == 0, seconds=1)


def test_the_next_request_of_a_connection_is_answered_after_a_refusal(web):
    """An error ends a request, not the connection."""
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=10)
    for body, status in [
        (b"no json", 400),
        (b'{"model": "nobody", "prompt": "x"}', 404),
        (b'{"model": "math", "prompt": "x"}', 200),
    ] * 2:
        connection.request("POST", TEXT, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert (response.status, bool(response.read())) == (status, True)
    connection.close()
