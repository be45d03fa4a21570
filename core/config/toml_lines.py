"""The line of each key in a TOML file, found by tree-sitter; imported only if something is wrong."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

import tomli

if TYPE_CHECKING:
    from collections.abc import Iterator

    import tree_sitter

    from modelwright.core.config.errors import KeyPath

# Escapes of TOML 1.1 that tomli takes and the grammar does not know, with older ones of the same length.
_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_OLDER = {rb"\e": rb"\t", rb"\x": rb"\\"}

_KEYS = {"bare_key", "quoted_key", "dotted_key"}


@functools.cache
def _parser() -> tree_sitter.Parser:
    import tree_sitter
    import tree_sitter_toml

    return tree_sitter.Parser(tree_sitter.Language(tree_sitter_toml.language()))


def lines(text: str) -> dict[KeyPath, int]:
    """The line, from 1, of each key path in a valid TOML document.

    A table has the line of its own header, or else of the first key or header that mentions it; an array's entry has
    the line where it begins. What tree-sitter cannot parse has no line, and `()` has line 1.
    """
    found = _Lines()
    content = text.encode("utf-8", "surrogatepass")
    content = _ESCAPE.sub(lambda escape: _OLDER.get(escape[0], escape[0]), content)
    for node in _parser().parse(content).root_node.named_children:
        match node.type:
            case "table":
                found.table(node)
            case "table_array_element":
                found.entry(node)
            case _:
                found.pairs([node], ())
    return found.lines


class _Lines:
    """Fills in `lines` in the order of the file."""

    def __init__(self) -> None:
        self.lines: dict[KeyPath, int] = {(): 1}
        self._counts: dict[KeyPath, int] = {}

    def table(self, node: tree_sitter.Node) -> None:
        """`[a.b]` and its pairs."""
        head, *body = _content(node)
        path = self._header(_keys(head))
        self._mention(path, _row(head))
        self.lines[path] = _row(head)
        self.pairs(body, path)

    def entry(self, node: tree_sitter.Node) -> None:
        """`[[a.b]]` and its pairs."""
        head, *body = _content(node)
        path = self._header(_keys(head))
        count = self._counts.get(path, 0)
        self._counts[path] = count + 1
        self._mention(path, _row(head))
        self.lines[*path, count] = _row(head)
        self.pairs(body, (*path, count))

    def _header(self, keys: list[str]) -> KeyPath:
        """A header's path: inside an array of tables it continues from the last entry."""
        path: KeyPath = ()
        for key in keys:
            if path in self._counts:
                path = (*path, self._counts[path] - 1)
            path = (*path, key)
        return path

    def pairs(self, nodes: list[tree_sitter.Node], path: KeyPath) -> None:
        """Pairs, and the tables and arrays in their values; with a stack, because values may be nested deeply."""
        stack = [(node, path) for node in reversed(nodes)]
        while stack:
            node, path = stack.pop()
            key, value = _pair(node)
            if key is not None:
                path = (*path, *_keys(key))
                self._mention(path, _row(key))
            if value is None:
                continue
            if value.type == "inline_table":
                stack += [(child, path) for child in reversed(_content(value))]
            elif value.type == "array":
                entries = [((*path, index), child) for index, child in enumerate(_content(value))]
                for inner, child in entries:
                    self._mention(inner, _row(child))
                stack += [(child, inner) for inner, child in reversed(entries)]

    def _mention(self, path: KeyPath, line: int) -> None:
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                break
            self.lines[path[:length]] = line


def _pair(node: tree_sitter.Node) -> tuple[tree_sitter.Node | None, tree_sitter.Node | None]:
    """A node's key and value: a pair has both, an array's entry is a value, and a broken pair may keep its key."""
    if node.type in {"inline_table", "array"}:
        return None, node
    if node.type in {"pair", "ERROR"}:
        content = [child for child in node.named_children if child.type != "comment"]
        if content and content[0].type in _KEYS:
            return content[0], content[1] if node.type == "pair" and len(content) > 1 else None
    return None, None


def _content(node: tree_sitter.Node) -> list[tree_sitter.Node]:
    return [child for child in node.named_children if child.type != "comment"]


def _row(node: tree_sitter.Node) -> int:
    return node.start_point[0] + 1


def _keys(node: tree_sitter.Node) -> list[str]:
    return [_unquoted(part) for part in _parts(node)]


def _parts(node: tree_sitter.Node) -> Iterator[tree_sitter.Node]:
    """The parts of a key in order; tree-sitter nests `a.b.c` as `(a.b).c`."""
    stack = [node]
    while stack:
        part = stack.pop()
        if part.type == "dotted_key":
            stack += reversed(part.named_children)
        else:
            yield part


def _unquoted(node: tree_sitter.Node) -> str:
    text = (node.text or b"").decode("utf-8")
    if node.type == "bare_key":
        return text
    try:
        return next(iter(tomli.loads(f"{text} = 0")))
    except tomli.TOMLDecodeError:
        # Part of what tree-sitter could not parse; it names no path of the document.
        return text
