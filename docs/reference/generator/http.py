"""http.md: paths, fields and errors of the HTTP gateway, from its code."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Iterator
from typing import Any

from generator.text import code, page, table
from modelwright.grpc_server.gateway import app, errors
from modelwright.grpc_server.gateway import openai_request as request

_INTRODUCTION = """
`modelwright serve --http HOST:PORT` serves the OpenAI-compatible API, with the same models and limits as gRPC. The
official clients work with `base_url` set to `http://HOST:PORT/v1`; the API key is the server's token, or any text if
the server needs none. A model's id is an address: `NAME`, `NAME@3` or `@ALIAS`. [How to serve](../howto/serving.md).

Every answer has a field `modelwright` with the `name`, `version`, `digest`, `alias` and `generation` of the model that
answered.
"""

_ALIASES = """
`PUT /admin/aliases/{alias}` takes `{"target": ADDRESS, "persist": true, "etag": "…"}`; only `target` is needed. With
`persist` the registry's alias moves too. If you send the alias's etag, in the body or in the header `If-Match`, the
switch fails with 412 if the alias has moved since you read it. `If-None-Match: *` requires that the
alias does not exist yet.
"""

_STREAMS = """
With `"stream": true` the answer comes as server-sent events; the last one is `data: [DONE]`. An error within a stream
is an event with an error object. A model's thinking is in `reasoning_content`, in the message or in the pieces of a
stream.
"""

_FIELDS = """
A field that is not listed here or below is refused by name with status 400; it is never ignored. In a chat,
`max_completion_tokens` and `max_tokens` mean the same.
"""

_HARMLESS = "These are accepted with values that change nothing, because clients send them; other values are refused."

_ERRORS = """
An error is OpenAI's object, `{"error": {"message", "type", "param", "code"}}`; `code` is for programs. If a retry can
help, the header `Retry-After` has the seconds to wait.
"""

_READERS = {"value", "text", "required_text", "boolean", "integer", "number", "seed", "texts", "has"}


def http() -> str:
    """The page."""
    paths = [(code(path), what) for path, what in app.PATHS.items()]
    return page(
        "# HTTP API",
        _INTRODUCTION,
        table(("path", "what it does"), paths),
        "## Fields of a request",
        _FIELDS,
        table(
            ("path", "fields"),
            [_fields("chat/completions", request.read_chat), _fields("completions", request.read_completion)],
        ),
        _HARMLESS,
        table(
            ("path", "fields"),
            [
                _harmless("chat/completions", request.CHAT_HARMLESS),
                _harmless("completions", request.COMPLETION_HARMLESS),
            ],
        ),
        f"A request gets at most {request.MOST_ANSWERS} answers, counting all prompts and `n`.",
        "## Streams",
        _STREAMS,
        "## Aliases",
        _ALIASES,
        "## Errors",
        _ERRORS,
        table(("status", "`type`", "gRPC status"), _statuses()),
    )


def _fields(path: str, reader: Any) -> tuple[str, str]:
    functions = [request.read_model, request.read_sampling, request.read_count, request.read_stream, reader]
    names = {name for function in functions for name in _read(function)}
    names |= {"max_tokens"} | ({"max_completion_tokens"} if reader is request.read_chat else {"logprobs"})
    return code(f"/v1/{path}"), ", ".join(map(code, sorted(names)))


def _read(function: Any) -> Iterator[str]:
    """The names that a function reads from the body."""
    for node in ast.walk(ast.parse(inspect.getsource(function))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _READERS:
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and ast.unparse(node.func.value) == "fields":
                yield str(first.value)


def _harmless(path: str, names: Iterable[str]) -> tuple[str, str]:
    return code(f"/v1/{path}"), ", ".join(map(code, sorted(names)))


def _statuses() -> Iterator[tuple[str, str, str]]:
    for status, (number, kind) in sorted(errors._STATUS.items(), key=lambda one: one[1]):  # noqa: SLF001 - as above
        yield str(number), code(kind), code(status.name)
    yield "413", code("invalid_request_error"), "`RESOURCE_EXHAUSTED`, if the body is too large"
    yield str(errors._INTERNAL[0]), code(errors._INTERNAL[1]), "`INTERNAL`, and everything else"  # noqa: SLF001 - as above
