"""A YAML file: what it says by YAML 1.2's core schema (`no` is a string, `2e-5` a number, a date a string), with lines.

ruamel.yaml composes the text into nodes that know their tags and places. The values are made here: a library's could be
any Python object, would follow YAML 1.1 where a directive asks for it, and would grow without bound by aliases.
"""

from __future__ import annotations

import bisect
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from attrs import define, field
from ruamel.yaml import YAML
from ruamel.yaml.composer import MaxDepthExceededError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.tag import Tag

from modelwright.core.config.errors import DEEPEST, TOO_DEEP, NotValidError, shown

if TYPE_CHECKING:
    from modelwright.core.config.errors import KeyPath

# Values that aliases may expand to, all together.
_MOST = 100_000
_MERGE = "<<"
_TAG = "tag:yaml.org,2002:"
# What a tag may say, by the kind of its node; all others are refused, those of Python objects among them.
_TAGS = {ScalarNode: f"{_TAG}str", SequenceNode: f"{_TAG}seq", MappingNode: f"{_TAG}map"}
# The tag of a scalar that is neither quoted nor tagged: its text decides.
_PLAIN = Tag(suffix="plain")

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
    """The values of a document; None if there is nothing in it.

    Raises:
        NotValidError: it is not YAML, or YAML that says more than a TOML file could.
    """
    reader = _Reader(text=text)
    root = reader.compose()
    value = None if root is None else reader.value(root, ())
    if value is None:
        return None
    if not isinstance(value, dict):
        line = reader.place(root.start_mark)[0]
        raise NotValidError(f"the file must be a table of keys (key: value), not {shown(value)}", line=line)
    return value


def lines(text: str) -> dict[KeyPath, int]:
    """The line, from 1, of each key path in a valid document: of a key, or of an array's entry where it is written."""
    reader = _Reader(text=text)
    root = reader.compose()
    if root is not None:
        reader.value(root, ())
    return reader.lines


class _Resolver(VersionedResolver):
    """Decides nothing about plain scalars, so that the composed nodes show which tags were written."""

    def resolve(self, kind: Any, _value: Any, implicit: Any) -> Tag:
        return _PLAIN if kind is ScalarNode and implicit[0] else Tag(suffix=_TAGS[kind])


@define(kw_only=True)
class _Reader:
    """Makes values of nodes, and notes the line of each."""

    text: str
    lines: dict[KeyPath, int] = field(factory=lambda: {(): 1})
    _ends: list[int] = field(init=False)
    _inside: list[Any] = field(factory=list)
    # The pairs of each table by its node's id, so that merging is not exponential work; None while it goes on.
    _known: dict[int, dict[str, tuple[Any, Any]] | None] = field(factory=dict)
    _count: int = 0

    def __attrs_post_init__(self) -> None:
        self._ends = [position for position, character in enumerate(self.text) if character == "\n"]

    def compose(self) -> Any:
        """The root node; None if there is none."""
        yaml = YAML(typ="safe", pure=True)
        yaml.max_depth = DEEPEST + 1
        yaml.Resolver = _Resolver
        try:
            with warnings.catch_warnings(action="ignore"):  # an anchor may be defined again
                return yaml.compose(self.text)
        except MaxDepthExceededError as error:
            self._invalid(TOO_DEEP, error.problem_mark)
        except MarkedYAMLError as error:
            self._invalid(_reason(error), error.problem_mark or error.context_mark)
        except YAMLError as error:
            raise _unreadable(error, self.text) from None
        except (ValueError, OverflowError, RecursionError) as error:
            raise NotValidError(f"cannot be read as YAML: {error}") from None

    def value(self, node: Any, path: KeyPath) -> Any:
        """The plain value of a node; each use of an alias is a copy."""
        tag = str(node.ctag)
        if node.ctag is not _PLAIN and tag not in ("!", _TAGS[type(node)]):
            message = f"the tag {tag.replace(_TAG, '!!')[:60]} is not supported: write the plain value"
            self._invalid(message, node.start_mark)
        self._count += 1
        if self._count > max(_MOST, len(self.text)):
            self._invalid(f"aliases expand this to more than {_MOST} values", self._inside[:2][-1].start_mark)
        if isinstance(node, ScalarNode):
            return self._scalar(node)
        if any(node is one for one in self._inside):
            self._contains_itself(node)
        if len(self._inside) >= DEEPEST:
            self._invalid(TOO_DEEP, self._inside[1].start_mark)
        self._inside.append(node)
        made: Any = self._array(node, path) if isinstance(node, SequenceNode) else self._table(node, path)
        self._inside.pop()
        return made

    def _array(self, node: Any, path: KeyPath) -> list[Any]:
        made = []
        for index, part in enumerate(node.value):
            here = (*path, index)
            self.lines[here] = self.place(part.start_mark)[0]
            made.append(self.value(part, here))
        return made

    def _table(self, node: Any, path: KeyPath) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key, (mark, part) in self._pairs(node).items():
            here = (*path, key)
            self.lines[here] = self.place(mark)[0]
            made[key] = self.value(part, here)
        return made

    def _pairs(self, node: Any) -> dict[str, tuple[Any, Any]]:
        """By key: where it is written, and the node of its value. `<<: *anchor` adds what the table itself lacks."""
        if id(node) in self._known:
            known = self._known[id(node)]
            return self._contains_itself(node) if known is None else known
        self._known[id(node)] = None
        pairs: dict[str, tuple[Any, Any]] = {}
        for key_node, part in node.value:
            key = self._scalar(key_node) if isinstance(key_node, ScalarNode) else None
            if not isinstance(key, str):
                hint = f", not {shown(key)}: write it in quotes" if isinstance(key_node, ScalarNode) else ""
                self._invalid(f"a key must be a string{hint}", key_node.start_mark)
            if key in pairs:
                self._invalid("duplicate key: remove one", key_node.start_mark)
            pairs[key] = (key_node.start_mark, part)
        if _MERGE in pairs:
            mark, merged = pairs.pop(_MERGE)
            for source in merged.value if isinstance(merged, SequenceNode) else [merged]:
                if not isinstance(source, MappingNode):
                    self._invalid(f"{_MERGE} must name tables", mark)
                pairs = self._pairs(source) | pairs
        self._known[id(node)] = pairs
        return pairs

    def _scalar(self, node: Any) -> Any:
        text = str(node.value)
        try:
            # JSON is YAML, and writes what is beyond 16 bits as two escapes.
            text = text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            self._invalid("an escape such as \\ud800 is half of a surrogate pair: write both halves", node.start_mark)
        if node.ctag is not _PLAIN:
            return text
        if text in _NAMED:
            return _NAMED[text]
        for pattern, number in _NUMBERS:
            if pattern.fullmatch(text):
                try:
                    return number(text)
                except ValueError as error:
                    self._invalid(str(error).partition(";")[0], node.start_mark)
        return text

    def place(self, mark: Any) -> tuple[int, int]:
        """Line and column, from 1; ruamel.yaml counts characters as line ends that no editor does."""
        index = min(mark.index, len(self.text))
        line = bisect.bisect_left(self._ends, index)
        begin = self._ends[line - 1] + 1 if line else 0
        return line + 1, index - begin + 1

    def _contains_itself(self, node: Any) -> NoReturn:
        self._invalid(f"the anchor &{node.anchor} contains itself", node.start_mark)

    def _invalid(self, message: str, mark: Any) -> NoReturn:
        line, column = self.place(mark)
        raise NotValidError(f"not valid YAML: {message}", line=line, column=column) from None


def _unreadable(error: Any, text: str) -> NotValidError:
    """The reader's errors: characters that no YAML may have."""
    position, character = getattr(error, "position", None), getattr(error, "character", None)
    line = None if position is None else text.count("\n", 0, position) + 1
    if isinstance(character, int):
        return NotValidError(f"not valid YAML: the character U+{character:04X} is not allowed", line=line)
    return NotValidError(f"not valid YAML: {str(error).partition(chr(10))[0]}", line=line)


def _reason(error: Any) -> str:
    reason = " ".join(str(part) for part in (error.context, error.problem) if part)
    if "undefined alias" in reason:
        return f"there is no anchor before this alias: {reason.rpartition(' ')[2]}"
    if "single document" in reason:
        return "a second document begins here (---): write one only"
    if "'\\t'" in reason:
        reason += " (indent with spaces)"
    return reason or "it cannot be read"
