"""Prepared tokens as people read them: the text of a row, part by part, with what of it is learnt.

It is read from the tokens and their tokenizer, not from the examples: what is shown is what the model will see.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from attrs import frozen

from modelwright.core.api.tokens import TokenFolder, TokenRow
from modelwright.core.chat.renderer import Renderer
from modelwright.core.stages.prepare.examples import written_rows

TRAIN, HOLDOUT = "train", "holdout"
# What decoders write for the bytes of a character that is not whole.
HALF = "\ufffd"


@frozen
class Part:
    """A stretch of a row's text, all of it learnt or none of it."""

    text: str
    trained: bool


@frozen(kw_only=True)
class Look:
    """A row of tokens.

    Attributes:
        id: its example's.
        source: where that came from, as `file:line`.
        tokens: how many there are.
        trained: how many of them are learnt.
        parts: its text from left to right, special tokens as they are spelt; learnt and not learnt in turn.
    """

    id: str
    source: str
    tokens: int
    trained: int
    parts: tuple[Part, ...]


def look(folder: Path, count: int, *, skip: int = 0, split: str = TRAIN) -> list[Look]:
    """The rows `skip` to `skip + count` of a prepared folder, or those that there are.

    Args:
        folder: what the prepare stage wrote.
        count: the most rows.
        skip: rows before the first.
        split: `TRAIN` or `HOLDOUT`.
    """
    renderer = Renderer.from_folder(folder / "tokenizer")
    rows = list(_rows(folder / split, skip, skip + count))
    sources = _sources(folder, {row.id for row in rows})
    return [
        Look(
            id=row.id,
            source=sources.get(row.id, ""),
            tokens=len(row.input_ids),
            trained=int(row.trained.sum()),
            parts=tuple(_parts(renderer, row)),
        )
        for row in rows
    ]


def _rows(folder: Path, start: int, stop: int) -> Iterator[TokenRow]:
    first = 0
    for shard in TokenFolder.each_shard(folder):
        if first >= stop:
            return
        last = first + len(shard)
        yield from (shard[row - first] for row in range(max(start, first), min(stop, last)))
        first = last


def _sources(folder: Path, ids: set[str]) -> Mapping[str, str]:
    """Where these examples came from."""
    found: dict[str, str] = {}
    for row in written_rows(folder / "examples"):
        if row["id"] in ids:
            found.setdefault(row["id"], row["source"])
            if len(found) == len(ids):
                break
    return found


def _parts(renderer: Renderer, row: TokenRow) -> Iterator[Part]:
    """Each part is what its tokens add to the text before: decoders treat the beginning of a text in their own way."""
    ids = [int(token) for token in row.input_ids]
    shown, end = 0, 0
    for trained, group in itertools.groupby(row.trained.tolist()):
        end += len(list(group))
        text = renderer.spell(ids[:end])
        if end < len(ids):
            text = text.rstrip(HALF)  # a character that the next token completes is shown there
        yield Part(text[shown:], bool(trained))
        shown = len(text)


def page(title: str, looks: Iterable[Look]) -> str:
    """A page of HTML, whole in itself, on which what is learnt is coloured."""
    rows = "\n".join(_article(one) for one in looks)
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title>
<style>
:root {{ color-scheme: light dark; --page: #fff; --ink: #6b7078; --learnt: #0b3d1e; --ground: #c9f2d6; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --page: #16181c; --ink: #9aa0a8; --learnt: #d5f7e0; --ground: #1d5233; }}
}}
body {{ background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }}
body {{ margin: 2rem auto; max-width: 52rem; padding: 0 1rem; }}
h1 {{ font-size: 1.2rem; }}
article {{ border: 1px solid color-mix(in srgb, var(--ink) 35%, transparent); }}
article {{ border-radius: 6px; margin: 1rem 0; padding: 0.8rem 1rem; }}
header {{ font-size: 0.85rem; margin-bottom: 0.6rem; }}
pre {{ font: 14px/1.5 ui-monospace, monospace; margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; }}
mark {{ background: var(--ground); border-radius: 2px; color: var(--learnt); }}
</style>
<h1>{html.escape(title)}</h1>
<p>What the model will see. <mark>Marked</mark>: the tokens that it learns to write.</p>
{rows}
</html>
"""


def _article(one: Look) -> str:
    text = "".join(
        f"<mark>{html.escape(part.text)}</mark>" if part.trained else html.escape(part.text) for part in one.parts
    )
    header = f"{html.escape(one.source or one.id)} · {one.tokens:,} tokens, {one.trained:,} learnt"
    return f"<article><header>{header}</header><pre>{text}</pre></article>"
