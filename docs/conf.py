"""The site: Sphinx over the Markdown that GitHub shows as it is. Nothing is fetched while it is built or read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pygments.lexers.data import JsonLexer

HERE = Path(__file__).parent

project = "Modelwright"
author = "The Modelwright authors"
html_title = "Modelwright"

extensions = ["myst_parser"]
exclude_patterns = ["_build"]
# Links to `page.md#a-heading` work as on GitHub.
myst_heading_anchors = 4

html_theme = "furo"
html_copy_source = False
html_show_sphinx = False

# `- [title](page.md)` in index.md, below the heading of its part.
_HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
_ENTRY = re.compile(r"^- \[[^\]]+\]\(([^)#:]+)\.md\)", re.MULTILINE)


def contents(text: str) -> str:
    """The side bar, as the tables of contents that Sphinx wants: the lists of index.md, part by part."""
    first, *parts = _HEADING.split(text)
    if not parts:  # a list without headings
        parts = ["", first]
    made = []
    for title, part in zip(parts[::2], parts[1::2], strict=True):
        pages = "\n".join(_ENTRY.findall(part))
        if pages:
            caption = f":caption: {title}\n" if title else ""
            made.append(f"```{{toctree}}\n:hidden:\n{caption}\n{pages}\n```\n")
    return "\n".join(made)


def setup(app: Any) -> None:
    """Append them where Sphinx reads an index.md: in the file itself GitHub would show them as code."""

    def read(_app: Any, name: str, source: list[str]) -> None:
        if name in ("index", "decisions/index"):
            source[0] += "\n" + contents(source[0])

    app.connect("source-read", read)
    app.add_lexer("jsonl", JsonLexer)
