"""protocol.md: services, methods, messages and enums, with the comments of the .proto files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from attrs import define, field

from generator.text import code, page, sentence, table

PROTOS = Path(__file__).parents[3] / "protos" / "modelwright" / "v1"

_INTRODUCTION = """
The package `modelwright.v1`, from [protos/modelwright/v1](../../protos/modelwright/v1/inference.proto). Any gRPC client
can use it; the server has reflection (`grpc.reflection.v1`) and the standard health service (`grpc.health.v1`), whose
status is `NOT_SERVING` while the server drains.

If the server needs a token, send it in the metadata as `authorization: Bearer TOKEN`. Errors are `google.rpc.Status`
with an `ErrorInfo`, whose reason is a name of [`ErrorReason`](#errorreason) without its prefix, and a `RetryInfo` if
a retry can help.
"""

_OPENS = re.compile(r"(service|message|enum|oneof) (\w+) \{(\})?")
_RPC = re.compile(r"rpc (\w+)\((.+)\) returns \((.+)\);")
_FIELD = re.compile(r"(optional |repeated )?([\w.]+) (\w+) = (\d+)(?: \[.*\])?;")
_VALUE = re.compile(r"(\w+) = (\d+);")


@define
class _Part:
    """A service, message, enum or oneof: its comment, and its members as (name, type, comment)."""

    kind: str
    name: str
    comment: str
    members: list[tuple[str, str, str]] = field(factory=list)


def protocol() -> str:
    """The page."""
    parts = [part for path in _files() for part in _parts(path.read_text(encoding="utf-8"))]
    return page(
        "# Protocol",
        _INTRODUCTION,
        *(_service(part) for part in parts if part.kind == "service"),
        "## Messages",
        *(_message(part) for part in parts if part.kind == "message"),
        "## Enums",
        *(_enum(part) for part in parts if part.kind == "enum"),
    )


def _files() -> list[Path]:
    return sorted(PROTOS.glob("*.proto"), key=lambda path: (path.stem == "common", path.stem))


def _parts(text: str) -> Iterator[_Part]:
    """Read a file line by line; the house's protos have a comment before everything, and a thing a line."""
    comment: list[str] = []
    stack: list[_Part] = []
    choice = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("//"):
            comment.append(line.removeprefix("//").strip())
            continue
        said, comment = " ".join(comment), []
        opens = _OPENS.fullmatch(line)
        if opens and opens[1] == "oneof":
            choice = opens[2]
            stack.append(_Part("oneof", opens[2], said))
        elif opens:
            stack.append(_Part(opens[1], opens[2], said))
        if line == "}" or (opens and opens[3]):
            closed = stack.pop()
            if closed.kind == "oneof":
                choice = ""
            else:
                yield closed
            continue
        holder = next((part for part in reversed(stack) if part.kind != "oneof"), None)
        member = _member(line, said, choice)
        if holder is not None and member is not None:
            holder.members.append(member)


def _member(line: str, comment: str, choice: str) -> tuple[str, str, str] | None:
    if match := _RPC.fullmatch(line):
        return match[1], f"{match[2]} → {match[3]}", comment
    if match := _FIELD.fullmatch(line):
        one_of = f"one of `{choice}`, " if choice else ""
        return match[3], f"{one_of}{(match[1] or '')}{match[2]}", comment
    if match := _VALUE.fullmatch(line):
        return match[1], match[2], comment
    return None


def _service(part: _Part) -> str:
    rows = []
    for name, types, comment in part.members:
        sent, given = types.split(" → ")
        arrow = f"{_linked(sent)} → {'stream of ' if given.startswith('stream ') else ''}{_linked(given.split()[-1])}"
        rows.append((code(name), arrow, comment))
    return page(f"## {code(part.name)}", part.comment, table(("method", "request → response", "what it does"), rows))


def _linked(name: str) -> str:
    return f"[`{name}`](#{name.lower()})"


def _message(part: _Part) -> str:
    rows = [(code(name), _typed(kind), comment) for name, kind, comment in part.members]
    fields = table(("field", "type", "meaning"), rows) if rows else "No fields."
    return page(f"### {code(part.name)}", sentence(part.comment), fields)


def _typed(kind: str) -> str:
    prefix, _, name = kind.rpartition(" ")
    local = name[:1].isupper()
    return f"{prefix} {_linked(name) if local else code(name)}".strip()


def _enum(part: _Part) -> str:
    rows = [(code(name), number, comment) for name, number, comment in part.members]
    return page(f"### {code(part.name)}", sentence(part.comment), table(("value", "number", "meaning"), rows))
