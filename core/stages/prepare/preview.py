"""Prepared tokens as people read them: the text of a row, part by part, with what of it is learnt.

It is read from the tokens and their tokenizer, not from the examples: what is shown is what the model will see.
"""

from __future__ import annotations

import html
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen

from modelwright.core.api.files import read_json
from modelwright.core.api.tokens import TokenFolder, TokenRow
from modelwright.core.chat.renderer import Renderer
from modelwright.core.stages.prepare.examples import written_rows

TRAIN, HOLDOUT = "train", "holdout"
# What decoders write for the bytes of a character that is not whole.
HALF = "\ufffd"


@frozen
class TextPart:
    """A stretch of a row's text, all of it learnt or none of it."""

    text: str
    trained: bool


@frozen(kw_only=True)
class PreviewRow:
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
    parts: tuple[TextPart, ...]


def preview(folder: Path, count: int, *, skip: int = 0, split: str = TRAIN) -> list[PreviewRow]:
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
        PreviewRow(
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


def _parts(renderer: Renderer, row: TokenRow) -> Iterator[TextPart]:
    """Each part is what its tokens add to the text before: decoders treat the beginning of a text in their own way."""
    ids = [int(token) for token in row.input_ids]
    shown, end = 0, 0
    for trained, group in itertools.groupby(row.trained.tolist()):
        end += len(list(group))
        text = renderer.spell(ids[:end])
        if end < len(ids):
            text = text.rstrip(HALF)  # a character that the next token completes is shown there
        yield TextPart(text[shown:], bool(trained))
        shown = len(text)


def html_page(title: str, rows: Iterable[PreviewRow]) -> str:
    """A page of HTML, whole in itself, on which what is learnt is coloured."""
    articles = "\n".join(map(_article, rows))
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
{articles}
</html>
"""


def _article(one: PreviewRow) -> str:
    text = "".join(
        f"<mark>{html.escape(part.text)}</mark>" if part.trained else html.escape(part.text) for part in one.parts
    )
    header = f"{html.escape(one.source or one.id)} · {one.tokens:,} tokens, {one.trained:,} learnt"
    return f"<article><header>{header}</header><pre>{text}</pre></article>"


# Powers of two: lengths spread over several of them, and `max_length` usually is one.
SMALLEST_BIN = 16


@frozen(kw_only=True)
class Statistics:
    """Numbers about a prepared folder.

    Attributes:
        report: what the prepare stage counted (report.json).
        lengths: of the training rows in tokens: "min", "median", "p90", "p99" and "max"; empty without rows.
        histogram: how many rows have at most so many tokens, and more than the key before.
        sources: examples by the file that they came from, before rows that are too long or held out are taken away.
    """

    report: Mapping[str, Any]
    lengths: Mapping[str, int]
    histogram: Mapping[int, int]
    sources: Mapping[str, int]


def statistics(folder: Path) -> Statistics:
    """Count what is in a folder that the prepare stage wrote."""
    lengths = TokenFolder(folder / TRAIN).lengths()
    sources: Counter[str] = Counter()
    for row in written_rows(folder / "examples"):
        sources[row["source"].rpartition(":")[0]] += 1
    return Statistics(
        report=read_json(folder / "report.json"),
        lengths=_quantiles(lengths),
        histogram=_histogram(lengths),
        sources=dict(sources.most_common()),
    )


def _quantiles(lengths: np.ndarray[Any, np.dtype[np.int32]]) -> dict[str, int]:
    if not len(lengths):
        return {}
    shares = {"min": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    # "higher": a length that a row has, not one between two.
    return {name: int(np.quantile(lengths, share, method="higher")) for name, share in shares.items()}


def _histogram(lengths: np.ndarray[Any, np.dtype[np.int32]]) -> dict[int, int]:
    longest = int(lengths.max(initial=0))
    edges = [SMALLEST_BIN]
    while edges[-1] < longest:
        edges.append(2 * edges[-1])
    counts = np.bincount(np.searchsorted(edges, lengths), minlength=len(edges))
    return {edge: int(count) for edge, count in zip(edges, counts, strict=True)}
