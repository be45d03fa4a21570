"""What a YAML text says, by YAML 1.2's core schema: `no` is a string, `2e-5` a number, a date a string.

ruamel.yaml reads the text into events; the values are made here, because a library's would be any Python object, would
not know their lines, and would grow without bound by aliases.
"""

from __future__ import annotations

import bisect
import functools
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from attrs import define, field, frozen

from modelwright.core.config.errors import shown
from modelwright.core.config.files import DEEPEST, NotValidError

if TYPE_CHECKING:
    from modelwright.core.config.errors import KeyPath

# Values that aliases may come to, all together.
_MOST = 100_000
_MERGE = "<<"
_TAG = "tag:yaml.org,2002:"
# What a tag may say, by the kind of its node; all others are refused, those of Python objects among them.
_TAGS = {"scalar": f"{_TAG}str", "sequence": f"{_TAG}seq", "mapping": f"{_TAG}map"}

_NAMED = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
    **{f"{sign}{word}": float(f"{sign}inf") for sign in ("", "+", "-") for word in (".inf", ".Inf", ".INF")},
}
_NUMBERS: tuple[tuple[re.Pattern[str], Callable[[str], Any]], ...] = (
    (re.compile(r"[-+]?[0-9]+"), int),
    (re.compile(r"0o[0-7]+"), lambda text: int(text, 8)),
    (re.compile(r"0x[0-9a-fA-F]+"), lambda text: int(text, 16)),
    (re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"), float),
)


def parse(text: str) -> dict[str, Any] | None:
    """The values of a document; None where there is nothing in it.

    Raises:
        NotValidError: it is no YAML, or YAML that says more than a TOML file could.
    """
    root = _root(text)
    if root is None:
        return None
    value = root.value()
    if value is None:
        return None
    if not isinstance(value, dict):
        raise NotValidError(f"the file must be a table of keys (key: value), not {shown(value)}", line=root.line)
    return value


def lines(text: str) -> dict[KeyPath, int]:
    """The line, from 1, of each key path in a valid document: of a key where it stands, of an entry where it begins."""
    root = _root(text)
    return {(): 1} | dict(root.places() if root else ())


@define
class _Node:
    """A value with its line; the same node wherever an alias names it.

    Attributes:
        line: where it begins, from 1.
        kind: "scalar", "sequence" or "mapping".
        scalar: the value of a scalar.
        parts: the line of the key or entry and the node of each value in it, by its key or index.
        size: how many values it comes to.
        depth: how deeply tables and arrays are nested in it.
    """

    line: int
    kind: str
    scalar: Any = None
    parts: dict[Any, tuple[int, _Node]] = field(factory=dict)
    size: int = 1
    depth: int = 0
    done: bool = True

    def value(self) -> Any:
        """The plain value; each use of an alias a copy."""
        if self.kind == "scalar":
            return self.scalar
        made = {key: node.value() for key, (_, node) in self.parts.items()}
        return made if self.kind == "mapping" else list(made.values())

    def places(self, path: KeyPath = ()) -> Iterator[tuple[KeyPath, int]]:
        """Every path in it with its line."""
        for key, (line, node) in self.parts.items():
            yield (*path, key), line
            yield from node.places((*path, key))


def _root(text: str) -> _Node | None:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    composer = _Composer(text=text)
    try:
        for event in YAML(typ="safe", pure=True).parse(text):
            composer.take(event)
    except MarkedYAMLError as error:
        composer.invalid(_reason(error), error.problem_mark or error.context_mark)
    except YAMLError as error:
        raise _unreadable(error, text) from None
    except (ValueError, OverflowError, RecursionError) as error:
        raise NotValidError(f"cannot be read as YAML: {error}") from None
    return composer.root


def _unreadable(error: Any, text: str) -> NotValidError:
    """The reader's errors: characters that no YAML may have."""
    position, character = getattr(error, "position", None), getattr(error, "character", None)
    line = None if position is None else text.count("\n", 0, position) + 1
    if isinstance(character, int):
        return NotValidError(f"not valid YAML: the character U+{character:04X} is not allowed", line=line)
    return NotValidError(f"not valid YAML: {str(error).partition(chr(10))[0]}", line=line)


def _reason(error: Any) -> str:
    reason = " ".join(str(part) for part in (error.context, error.problem) if part)
    if "'\\t'" in reason:
        reason += " (indent with spaces)"
    return reason or "it cannot be read"


@frozen(kw_only=True)
class _Open:
    """A table or array that has begun; `key` is a table's, waiting for its value, with its line."""

    node: _Node
    key: list[tuple[str, int]] = field(factory=list)


@define(kw_only=True)
class _Composer:
    """Makes nodes of events, without calling itself, however deeply they are nested."""

    text: str
    root: _Node | None = None
    _open: list[_Open] = field(factory=list)
    _anchors: dict[str, _Node] = field(factory=dict)
    _documents: int = 0

    def take(self, event: Any) -> None:
        """The next event."""
        match type(event).__name__:
            case "DocumentStartEvent":
                self._documents += 1
                if self._documents > 1:
                    self.invalid("a second document begins here (---): write one only", event.start_mark)
            case "ScalarEvent":
                self._put(self._begin(event, "scalar"), event)
            case "SequenceStartEvent" | "MappingStartEvent":
                node = self._begin(event, "sequence" if "Sequence" in type(event).__name__ else "mapping")
                node.done = False
                self._refuse_as_key(event)
                self._open.append(_Open(node=node))
                if len(self._open) > DEEPEST:
                    self._too_deep(event)
            case "SequenceEndEvent" | "MappingEndEvent":
                node = self._open.pop().node
                self._measure(node, event)
                node.done = True
                self._put(node, event)
            case "AliasEvent":
                self._refuse_as_key(event)
                self._put(self._aliased(event), event)

    def _begin(self, event: Any, kind: str) -> _Node:
        tag = None if event.tag is None else str(event.tag)
        if tag not in (None, "!", _TAGS[kind]):
            self.invalid(f"the tag {tag.replace(_TAG, '!!')[:60]} is not read: write the plain value", event.start_mark)
        node = _Node(self._place(event.start_mark)[0], kind)
        if kind == "scalar":
            node.scalar = self._scalar(event, plain=event.style in (None, "") and tag is None)
        if event.anchor is not None:
            self._anchors[str(event.anchor)] = node
        return node

    def _scalar(self, event: Any, *, plain: bool) -> Any:
        text = str(event.value)
        try:
            # JSON is YAML, and writes what is beyond 16 bits as two escapes.
            text = text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            self.invalid("an escape such as \\ud800 is half a character", event.start_mark)
        if not plain:
            return text
        if text in _NAMED:
            return _NAMED[text]
        for pattern, number in _NUMBERS:
            if pattern.fullmatch(text):
                try:
                    return number(text)
                except ValueError as error:
                    self.invalid(str(error).partition(";")[0], event.start_mark)
        return text

    def _aliased(self, event: Any) -> _Node:
        node = self._anchors.get(str(event.anchor))
        if node is None:
            self.invalid(f"there is no anchor &{event.anchor} before this alias", event.start_mark)
        if not node.done:
            self.invalid(f"the alias *{event.anchor} stands in what it names", event.start_mark)
        return node

    def _put(self, node: _Node, event: Any) -> None:
        """Put a finished value where it belongs: the root, an array's end, or under the key that waits."""
        if not self._open:
            self.root = node
            return
        holder = self._open[-1]
        line = self._place(event.start_mark)[0]
        if holder.node.kind == "sequence":
            # A table or array ends elsewhere than it begins, and an alias stands elsewhere than what it names.
            begins = line if type(event).__name__ == "AliasEvent" else node.line
            holder.node.parts[len(holder.node.parts)] = (begins, node)
        elif not holder.key:
            holder.key.append((self._key(node, event), line))
        else:
            key, line = holder.key.pop()
            holder.node.parts[key] = (line, node)

    def _key(self, node: _Node, event: Any) -> str:
        holder = self._open[-1].node
        if not isinstance(node.scalar, str):
            self.invalid(f"a key must be a string, not {shown(node.scalar)}: write it in quotes", event.start_mark)
        if node.scalar in holder.parts:
            self.invalid("this key was given before", event.start_mark)
        return node.scalar

    def _refuse_as_key(self, event: Any) -> None:
        if self._open and self._open[-1].node.kind == "mapping" and not self._open[-1].key:
            self.invalid("a key must be a string", event.start_mark)

    def _measure(self, node: _Node, event: Any) -> None:
        if node.kind == "mapping" and _MERGE in node.parts:
            self._merge(node)
        parts = [part for _, part in node.parts.values()]
        node.size = 1 + sum(part.size for part in parts)
        node.depth = 1 + max((part.depth for part in parts), default=0)
        if node.size > max(_MOST, len(self.text)):
            self.invalid(f"aliases make more than {_MOST} values of this", event.start_mark)
        if node.depth > DEEPEST:
            self._too_deep(event)

    def _merge(self, node: _Node) -> None:
        """`<<: *anchor`, or an array of such: what the table itself does not say."""
        line, merged = node.parts.pop(_MERGE)
        sources = [part for _, part in merged.parts.values()] if merged.kind == "sequence" else [merged]
        for source in sources:
            if source.kind != "mapping":
                raise NotValidError(f"not valid YAML: {_MERGE} must name tables", line=line)
            for key, part in source.parts.items():
                node.parts.setdefault(key, part)

    def _too_deep(self, event: Any) -> NoReturn:
        self.invalid(f"tables and arrays are nested more than {DEEPEST} deep", event.start_mark)

    def invalid(self, message: str, mark: Any) -> NoReturn:
        """Refuse what is at `mark`."""
        line, column = self._place(mark)
        raise NotValidError(f"not valid YAML: {message}", line=line, column=column) from None

    def _place(self, mark: Any) -> tuple[int, int]:
        """Line and column, from 1; ruamel.yaml counts characters as line ends that no editor does."""
        index = min(mark.index, len(self.text))
        line = bisect.bisect_left(self._ends, index)
        begin = self._ends[line - 1] + 1 if line else 0
        return line + 1, index - begin + 1

    @functools.cached_property
    def _ends(self) -> list[int]:
        return [position for position, character in enumerate(self.text) if character == "\n"]
