"""Markdown, and docstrings in Google's style taken apart."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import field, frozen

_SECTION = re.compile(r"(Attributes|Args|Returns|Raises|Example|Source|Sources):\s*(.*)")
_ENTRY = re.compile(r"(\*{0,2}\w[\w.]*): (.*)")


@frozen(kw_only=True)
class Doc:
    """A docstring.

    Attributes:
        text: its paragraphs, in Markdown.
        entries: by section ("Attributes", "Args", "Raises"), then name: what is said of it.
        example: the code of its example.
    """

    text: str = ""
    entries: Mapping[str, Mapping[str, str]] = field(factory=dict)
    example: str = ""

    @property
    def summary(self) -> str:
        """The first paragraph."""
        return self.text.partition("\n\n")[0]


def read_doc(thing: Any) -> Doc:
    """The docstring of a class, function or module."""
    lines = (inspect.getdoc(thing) or "").splitlines()
    text: list[str] = []
    parts: dict[str, list[str]] = {}
    section: str | None = None
    for line in lines:
        match = _SECTION.fullmatch(line)
        if match:
            section = match[1]
            parts[section] = [match[2]] if match[2] else []
        elif section and line and not line.startswith(" "):
            section = None
            text.append(line)
        else:
            (parts[section] if section else text).append(line)
    entries = {name: _entries(_shown(inspect.cleandoc("\n".join(["", *part])))) for name, part in parts.items()}
    example = inspect.cleandoc("\n".join(["", *parts.get("Example", [])]))
    return Doc(text=_shown("\n".join(text).strip()), entries=entries, example=example)


def _shown(text: str) -> str:
    """What Markdown would take for HTML is escaped, but in code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else part.replace("<", "\\<") for part in parts)


def _entries(text: str) -> dict[str, str]:
    entries: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        match = _ENTRY.fullmatch(line)
        if match:
            name = match[1]
            entries[name] = match[2]
        elif name:
            entries[name] = f"{entries[name]} {line.strip()}".strip()
    return entries


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the cells are Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def code(text: str) -> str:
    """Unchanged text; empty stays empty."""
    fence = "``" if "`" in text else "`"
    return f"{fence}{text}{fence}" if text else ""


def plain(text: str) -> str:
    """Text that is not Markdown, shown unchanged."""
    return re.sub(r"([\\`*<>\[\]|])", r"\\\1", text)


def block(text: str, language: str = "text") -> str:
    """A block of code that is shown, not run."""
    return f"```{language}\n{text.rstrip()}\n```"


def page(*parts: str) -> str:
    """Parts of a page, those that are not empty, an empty line between."""
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def sentence(text: str) -> str:
    """With a capital letter, and a full stop where it has no end."""
    text = text[:1].upper() + text[1:]
    return text if not text or text.endswith((".", "?", "!", ":", "…")) else f"{text}."
