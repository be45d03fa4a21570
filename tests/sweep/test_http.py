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


# What many lines say of the server.
ADDRESS = "expected NAME (its newest version), NAME@VERSION such as math@3, or @ALIAS such as @production"
SERVES = "(it serves: @assistant, math@1, slow@1)"
THERE = (
    "what is there: GET /v1/models, GET /v1/models/{model}, POST /v1/chat/completions, POST /v1/completions, "
    "GET /health, GET /admin/aliases, GET /admin/aliases/{alias}, PUT /admin/aliases/{alias}"
)
# Python says it in other words since 3.13.
TRAILING = (
    "Illegal trailing comma before end of object (line 1, column 17)"
    if sys.version_info >= (3, 13)
    else "Expecting property name enclosed in double quotes (line 1, column 18)"
)

# The bytes of a body

NO_JSON = [
    (b"", "the body is not JSON: Expecting value (line 1, column 1)"),
    (b"hello", "the body is not JSON: Expecting value (line 1, column 1)"),
    (b'{"model": "math",}', f"the body is not JSON: {TRAILING}"),
    (b'{"model": "math"}\n\n  {}', "the body is not JSON: Extra data (line 3, column 3)"),
    (b'{"model": "math"', "the body is not JSON: Expecting ',' delimiter (line 1, column 17)"),
    (b'{"model": "ma', "the body is not JSON: Unterminated string starting at (line 1, column 11)"),
    (b'{"model": "a\x00b"}', "the body is not JSON: Invalid control character at (line 1, column 13)"),
    (b'{"model": "\\x"}', "the body is not JSON: Invalid \\escape (line 1, column 12)"),
    (
        b"{'model': 'math'}",
        "the body is not JSON: Expecting property name enclosed in double quotes (line 1, column 2)",
    ),
    (b'{"model": "\xff"}', "the body is not UTF-8: byte 12 is 0xff"),
    ('{"model": "math"}'.encode("utf-16"), "the body is not UTF-8: byte 1 is 0xff"),
    (
        '{"model": "math"}'.encode("utf-16-le"),
        "the body is not JSON: Expecting property name enclosed in double quotes (line 1, column 2)",
    ),
    (b'\xef\xbb\xbf{"model": "math"}', "the body begins with a byte order mark: leave it out"),
    (b"[]", 'the body is an array: expected an object, such as {"model": …}'),
    (b"null", 'the body is null: expected an object, such as {"model": …}'),
    (b"3", 'the body is a number: expected an object, such as {"model": …}'),
    (b'{"n": 1, "model": "math", "n": 2}', 'the body has "n" twice in one object: say it once'),
    (b'{"metadata": {"a": 1, "a": 1}}', 'the body has "a" twice in one object: say it once'),
    (b'{"model": "math",\n "temperature": NaN}', "the body is not JSON: NaN is no number of it (line 2, column 17)"),
    (b'{"temperature": -Infinity}', "the body is not JSON: -Infinity is no number of it (line 1, column 17)"),
    (b"[" * 65, "the body nests more than 64 levels deep (line 1, column 65)"),
    (b'{"a":' * 3000, "the body nests more than 64 levels deep (line 1, column 321)"),
    (
        b'{"messages": [{"content": "x\\ud800"}]}',
        "messages[0].content has half a surrogate pair (\\ud800) at character 2: it is no text",
    ),
    (b'{"\\udfff": 1}', "a name in the body has half a surrogate pair (\\udfff) at character 1: it is no text"),
]


@pytest.mark.parametrize(("body", "line"), NO_JSON)
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_body_that_is_no_json_is_400_and_says_where(web, path, body, line):
    """What is wrong with it, and the place."""
    status, message = refused(web.ask("POST", path, body))
    assert (status, message) == (400, line)


def test_a_number_of_too_many_digits_is_400(web):
    """As Python counts them, which reads no more of them than it thinks safe."""
    status, message = refused(web.ask("POST", TEXT, b'{"seed": ' + b"1" * 5000 + b"}"))
    assert status == 400
    assert message.startswith("the body has a number that is too long")


@pytest.mark.parametrize(
    ("headers", "status", "line"),
    [
        ({"content_type": None}, 415, "the header Content-Type is missing: expected application/json"),
        ({"content_type": "text/plain"}, 415, "the header Content-Type is 'text/plain': expected application/json"),
        (
            {"content_type": "application/x-www-form-urlencoded"},
            415,
            "the header Content-Type is 'application/x-www-form-urlencoded': expected application/json",
        ),
        (
            {"content_type": "application/json; charset=latin-1"},
            415,
            "the header Content-Type says charset=latin-1: JSON is sent in UTF-8",
        ),
        ({"content_encoding": "gzip"}, 415, "the header Content-Encoding is 'gzip': send the body as it is"),
        ({"content_type": "Application/JSON; charset=UTF-8"}, 200, None),
        ({"content_type": 'application/json;charset="utf-8"'}, 200, None),
    ],
)
def test_headers_that_say_it_is_something_else_are_415(web, headers, status, line):
    """So no web page can send a request without asking first, either."""
    answer = web.ask("POST", TEXT, {"model": "math", "prompt": "x"}, **headers)
    assert answer[0] == status
    assert line is None or refused(answer)[1] == line


def test_a_body_that_is_too_large_is_413_before_it_is_read(web):
    """By its header, though 10 GB of it never come; and where no header tells, as soon as it is."""
    line = "and this server takes 65536: send less"
    head = f"POST {TEXT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode()
    said = web.raw(head + b"Content-Length: 10000000000\r\nExpect: 100-continue\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 413")
    assert line in said.decode()
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    said = web.raw(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 3 + b"0\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 413")
    assert "the body has more bytes" in said.decode()
    status, message = refused(web.ask("POST", TEXT, b" " * 65537))
    assert (status, message) == (413, f"the body has 65537 bytes, {line}")
    assert web.ask("POST", TEXT, b" " * 65536)[0] == 400


# What a body says

ONE = [{"role": "user", "content": "x"}]
FIELDS = [
    (CHAT, {"model": None}, 400, "model is empty: name what to ask (it serves: @assistant, math@1, slow@1)"),
    (CHAT, {"model": 3}, 400, "model is a number: expected a text"),
    (
        CHAT,
        {"model": "../etc/passwd"},
        400,
        f"model is wrong: '../etc/passwd' is no model address: no model can have that name; {ADDRESS}",
    ),
    (CHAT, {"model": "math@0"}, 400, f"model is wrong: 'math@0' is no model address: '0' is no version; {ADDRESS}"),
    (
        CHAT,
        {"model": "@7"},
        400,
        f"model is wrong: '@7' is no model address: an alias may not be all digits; {ADDRESS}",
    ),
    (
        CHAT,
        {"model": "a" * 300},
        400,
        f"model is wrong: '{'a' * 300}' is no model address: no model can have that name; {ADDRESS}",
    ),
    (CHAT, {"model": "A" * 60_000}, 400, f"model is wrong: '{'A' * 980}…"),
    (CHAT, {"model": "gpt-9"}, 404, f"this server does not serve the model 'gpt-9' {SERVES}"),
    (CHAT, {"model": "math@2"}, 404, f"this server does not serve the model 'math@2' {SERVES}"),
    (CHAT, {"messages": None}, 400, 'messages is missing: expected [{"role": "user", "content": "…"}]'),
    (CHAT, {"messages": []}, 400, "messages is empty: expected at least one turn"),
    (CHAT, {"messages": "hi"}, 400, "messages is a text: expected an array"),
    (CHAT, {"messages": ["hi"]}, 400, "messages[0] is a text: expected an object"),
    (
        CHAT,
        {"messages": [{"content": "x"}]},
        400,
        "messages[0].role is missing: expected system, developer, user or assistant",
    ),
    (
        CHAT,
        {"messages": [{"role": "boss", "content": "x"}]},
        400,
        "messages[0].role is 'boss': expected system, developer, user or assistant",
    ),
    (
        CHAT,
        {"messages": [{"role": "tool", "content": "x"}]},
        400,
        "messages[0].role is tool, and tools are not supported by this server: leave the turn out",
    ),
    (CHAT, {"messages": [{"role": "user"}]}, 400, "messages[0].content is missing: expected a text"),
    (CHAT, {"messages": [{"role": "user", "content": ""}]}, 400, "messages[0].content is empty"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": 3}]},
        400,
        "messages[0].content is a number: expected a text or an array of parts of text",
    ),
    (
        CHAT,
        {"messages": [*ONE, {"role": "assistant", "content": "x"}]},
        400,
        "messages[1].role is assistant, and the last turn is to be answered by it",
    ),
    (
        CHAT,
        {"messages": [{**ONE[0], "name": "ann"}]},
        400,
        "messages[0].name is not supported by this version: leave it out",
    ),
    (
        CHAT,
        {"messages": [{**ONE[0], "contnet": "x"}]},
        400,
        "messages[0].contnet is no field that this server knows: did you mean content?",
    ),
    (
        CHAT,
        {"messages": [{**ONE[0], "reasoning_content": "x"}]},
        400,
        "messages[0].reasoning_content is no field that this server knows: leave it out",
    ),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        400,
        "messages[0].content[0].type is 'image_url': this server reads text only; leave the part out",
    ),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"text": "x"}]}]},
        400,
        'messages[0].content[0].type is missing: expected "text"',
    ),
    (
        CHAT,
        {"messages": [{"role": "user", "content": ["x"]}]},
        400,
        "messages[0].content[0] is a text: expected an object",
    ),
    (CHAT, {"max_tokens": 0}, 400, "max_tokens is 0: expected 1 or more"),
    (CHAT, {"max_completion_tokens": 0}, 400, "max_completion_tokens is 0: expected 1 or more"),
    (
        CHAT,
        {"max_tokens": 5, "max_completion_tokens": 5},
        400,
        "max_completion_tokens and max_tokens are both set: they say the same, leave max_tokens out",
    ),
    (CHAT, {"max_tokens": 2.5}, 400, "max_tokens is a number: expected a whole number"),
    (CHAT, {"max_tokens": True}, 400, "max_tokens is true: expected a whole number"),
    (CHAT, {"max_tokens": 2**31}, 400, "max_tokens is 2147483648: expected a whole number of at most 2147483647"),
    (CHAT, {"temperature": "hot"}, 400, "temperature is a text: expected a number"),
    (CHAT, {"temperature": 10**400}, 400, "temperature is too large for a number"),
    (CHAT, {"top_p": 0}, 400, "top_p is 0.0: expected more than 0 and at most 1"),
    (CHAT, {"seed": 2**63}, 400, "seed is 9223372036854775808: expected a whole number of at most 9223372036854775807"),
    (CHAT, {"seed": -1}, 400, "seed is -1: expected 0 or more"),
    (CHAT, {"stop": [""]}, 400, "stop[0] is empty: every text ends with it"),
    (CHAT, {"stop": [3]}, 400, "stop[0] is a number: expected a text"),
    (CHAT, {"stop": ["x"] * 33}, 400, "stop has 33 texts: expected 32 at most"),
    (CHAT, {"stop": {"a": 1}}, 400, "stop is an object: expected a text or an array of texts"),
    (CHAT, {"n": 0}, 400, "n is 0: expected 1 or more"),
    (CHAT, {"n": 1000}, 400, "n is 1000: this server gives 16 answers to a request at most"),
    (CHAT, {"stream": "yes"}, 400, "stream is a text: expected true or false"),
    (
        CHAT,
        {"stream_options": {"include_usage": True}},
        400,
        'stream_options is set without "stream": true: leave it out',
    ),
    (
        CHAT,
        {"stream": True, "stream_options": {"usage": 1}},
        400,
        "stream_options.usage is no field that this server knows: leave it out",
    ),
    (
        CHAT,
        {"tools": [{"type": "function"}]},
        400,
        "tools is not supported by this server: tools are not supported: leave it out",
    ),
    (
        CHAT,
        {"tool_choice": "required"},
        400,
        "tool_choice is not supported by this server: tools are not supported: leave it out",
    ),
    (
        CHAT,
        {"response_format": {"type": "json_object"}},
        400,
        'response_format is not supported by this server: leave it out, or say {"type": "text"}',
    ),
    (
        CHAT,
        {"frequency_penalty": 0.5},
        400,
        "frequency_penalty is not supported by this server: leave it out, or say 0",
    ),
    (
        CHAT,
        {"frequency_penalty": False},
        400,
        "frequency_penalty is not supported by this server: leave it out, or say 0",
    ),
    (CHAT, {"logit_bias": {"5": 1}}, 400, "logit_bias is not supported by this server: leave it out"),
    (CHAT, {"store": True}, 400, "store is not supported by this server: this server keeps no answers: leave it out"),
    (
        CHAT,
        {"logprobs": True, "top_logprobs": 5},
        400,
        (
            "top_logprobs is not supported by this server: only the log-probability of the token that was chosen can "
            "be had: leave it out"
        ),
    ),
    (
        CHAT,
        {"reasoning_effort": "high"},
        400,
        "reasoning_effort is not supported by this server: how long the model thinks is its own affair: leave it out",
    ),
    (CHAT, {"temprature": 0}, 400, "temprature is no field that this server knows: did you mean temperature?"),
    (CHAT, {"x" * 60_000: 0}, 400, f'"{"x" * 59}\\u2026" is no field that this server knows: leave it out'),
    (TEXT, {"prompt": None}, 400, "prompt is missing: expected a text, or an array of texts"),
    (TEXT, {"prompt": ""}, 400, "prompt is empty"),
    (TEXT, {"prompt": []}, 400, "prompt is empty: expected a text, or an array of texts"),
    (TEXT, {"prompt": [1, 2, 3]}, 400, "prompt is an array of token ids: this server takes texts only"),
    (TEXT, {"prompt": [[1, 2], [3]]}, 400, "prompt is an array of token ids: this server takes texts only"),
    (TEXT, {"prompt": ["x", None]}, 400, "prompt[1] is null: expected a text"),
    (TEXT, {"prompt": ["x"] * 17}, 400, "prompt has 17 texts: this server takes 16 at once"),
    (
        TEXT,
        {"prompt": ["x", "y"], "n": 9},
        400,
        "n asks for 18 answers to 2 prompts: this server gives 16 answers to a request at most",
    ),
    (
        TEXT,
        {"prompt": "x" * 3000},
        400,
        "the prompt has 3000 tokens, and the context of math@1 holds 2048, the answer included: shorten the prompt",
    ),
    (TEXT, {"echo": True}, 400, "echo is not supported by this server: put the prompt before the answer yourself"),
    (TEXT, {"suffix": "x"}, 400, "suffix is not supported by this server: leave it out"),
    (
        TEXT,
        {"best_of": 3},
        400,
        "best_of is not supported by this server: leave it out, or ask for n answers and choose",
    ),
    (
        TEXT,
        {"logprobs": 3},
        400,
        "logprobs is 3: only the log-probability of the token that was chosen can be had: say 0",
    ),
    (TEXT, {"messages": ONE}, 400, "messages is no field that this server knows: leave it out"),
]


@pytest.mark.parametrize(("path", "changes", "status", "line"), FIELDS)
def test_a_field_that_cannot_be_is_refused_by_name(web, path, changes, status, line):
    """Nothing is silently ignored."""
    body = {"model": "math", "messages": ONE} if path == CHAT else {"model": "math", "prompt": "x"}
    answer = web.ask("POST", path, {**body, **changes})
    got, message = refused(answer)
    assert (got, message) == (status, line)
    assert len(message) < 1000


# Paths, methods, headers


@pytest.mark.parametrize(
    ("method", "path", "status", "line"),
    [
        ("GET", "/v2/models", 404, f"nothing is at /v2/models; {THERE}"),
        ("GET", "/v1/models/", 404, f"model is empty: name what to ask {SERVES}"),
        (
            "GET",
            "/v1/models/a%2Fb",
            404,
            f"model is wrong: 'a/b' is no model address: no model can have that name; {ADDRESS}",
        ),
        (
            "GET",
            "/v1/models/..%2f..%2fetc%2fpasswd",
            404,
            f"model is wrong: '../../etc/passwd' is no model address: no model can have that name; {ADDRESS}",
        ),
        (
            "GET",
            "/v1/models/../../etc/passwd",
            404,
            f"model is wrong: '../../etc/passwd' is no model address: no model can have that name; {ADDRESS}",
        ),
        (
            "GET",
            "/v1/models/" + "a" * 300,
            404,
            f"model is wrong: '{'a' * 300}' is no model address: no model can have that name; {ADDRESS}",
        ),
        (
            "GET",
            "/v1/models/%00",
            404,
            f"model is wrong: '\\x00' is no model address: no model can have that name; {ADDRESS}",
        ),
        (
            "GET",
            "/v1/models/%ff",
            404,
            f"model is wrong: '�' is no model address: no model can have that name; {ADDRESS}",
        ),
        ("GET", "/v1/models/math%402", 404, f"this server does not serve the model 'math@2' {SERVES}"),
        ("GET", "/v1/models?limit=3", 400, "the address has a query (?…), and this server takes none: leave it out"),
        ("GET", "/" + "a" * 3000, 404, f"nothing is at /{'a' * 199}; {THERE}"),
        ("GET", CHAT, 405, f"GET is not allowed at {CHAT}: expected POST"),
        ("DELETE", "/v1/models/math", 405, "DELETE is not allowed at /v1/models/math: expected GET, HEAD"),
        (
            "POST",
            "/admin/aliases/assistant",
            405,
            "POST is not allowed at /admin/aliases/assistant: expected GET, HEAD, PUT",
        ),
        ("OPTIONS", CHAT, 405, "OPTIONS is not allowed at /v1/chat/completions: expected POST"),
    ],
)
def test_a_path_or_method_that_is_not_there_is_told_what_is(web, method, path, status, line):
    """404 lists the paths, 405 the methods."""
    answer = web.ask(method, path)
    got, message = refused(answer)
    assert (got, message) == (status, line)
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
def test_what_is_no_http_is_refused_and_the_connection_closed(web, garbage, refusals):
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
        told = [choice["message"]["content"] if path == CHAT else choice["text"] for choice in answer[2]["choices"]]
        assert told
        assert all(isinstance(text, str) for text in told)


@FUZZ
@given(data=st.binary(min_size=1, max_size=200))
def test_any_bytes_at_the_port_leave_the_server_as_it_was(web, data):
    """Whatever stands before and in the headers: what has an end is refused, what has none may go unanswered."""
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
