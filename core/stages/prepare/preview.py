"""Prepared data for people: rows as text with their trained parts, an HTML page of them, and statistics.

Rows are decoded from the tokens, not taken from the examples, so they show what the model will see.
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
# What decoders write for an incomplete character.
HALF = "\ufffd"


@frozen
class TextPart:
    """A part of the text of a row, either all trained or all untrained."""

    text: str
    trained: bool


@frozen(kw_only=True)
class PreviewRow:
    """A row of tokens as text.

    Attributes:
        id: the id of its example.
        source: where the example came from, as `file:line`.
        tokens: the number of tokens.
        trained: the number of trained tokens.
        parts: the text, with special tokens spelled out; trained and untrained parts alternate.
    """

    id: str
    source: str
    tokens: int
    trained: int
    parts: tuple[TextPart, ...]


def preview(folder: Path, count: int, *, skip: int = 0, split: str = TRAIN) -> list[PreviewRow]:
    """The rows `skip` to `skip + count` of a prepared folder; fewer if it ends before.

    Args:
        folder: the output of the prepare stage.
        count: maximum number of rows.
        skip: number of rows to skip.
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
    """The sources of these examples, by id."""
    found: dict[str, str] = {}
    for row in written_rows(folder / "examples"):
        if row["id"] in ids:
            found.setdefault(row["id"], row["source"])
            if len(found) == len(ids):
                break
    return found


def _parts(renderer: Renderer, row: TokenRow) -> Iterator[TextPart]:
    """The parts of a row. Each is what its tokens add to the text before: decoders treat beginnings specially."""
    ids = [int(token) for token in row.input_ids]
    shown, end = 0, 0
    for trained, group in itertools.groupby(row.trained.tolist()):
        end += len(list(group))
        text = renderer.spell(ids[:end])
        if end < len(ids):
            text = text.rstrip(HALF)  # an incomplete character is shown with the token that completes it
        yield TextPart(text[shown:], bool(trained))
        shown = len(text)


def html_page(title: str, rows: Iterable[PreviewRow]) -> str:
    """A self-contained HTML page on which the trained tokens are marked."""
    articles = "\n".join(map(_article, rows))
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title>
<style>
:root {{ color-scheme: light dark; --page: #fff; --ink: #6b7078; --trained: #0b3d1e; --ground: #c9f2d6; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --page: #16181c; --ink: #9aa0a8; --trained: #d5f7e0; --ground: #1d5233; }}
}}
body {{ background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }}
body {{ margin: 2rem auto; max-width: 52rem; padding: 0 1rem; }}
h1 {{ font-size: 1.2rem; }}
article {{ border: 1px solid color-mix(in srgb, var(--ink) 35%, transparent); }}
article {{ border-radius: 6px; margin: 1rem 0; padding: 0.8rem 1rem; }}
header {{ font-size: 0.85rem; margin-bottom: 0.6rem; }}
pre {{ font: 14px/1.5 ui-monospace, monospace; margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; }}
mark {{ background: var(--ground); border-radius: 2px; color: var(--trained); }}
</style>
<h1>{html.escape(title)}</h1>
<p>What the model will see. It is trained to write the <mark>marked</mark> tokens.</p>
{articles}
</html>
"""


def _article(one: PreviewRow) -> str:
    text = "".join(
        f"<mark>{html.escape(part.text)}</mark>" if part.trained else html.escape(part.text) for part in one.parts
    )
    header = f"{html.escape(one.source or one.id)} · {one.tokens:,} tokens, {one.trained:,} trained"
    return f"<article><header>{header}</header><pre>{text}</pre></article>"


# Bins are powers of two, because lengths vary widely and `max_length` usually is one.
SMALLEST_BIN = 16


@frozen(kw_only=True)
class Statistics:
    """Numbers about a prepared folder.

    Attributes:
        report: the counts of the prepare stage (report.json).
        lengths: "min", "median", "p90", "p99" and "max" of the training rows, in tokens; empty without rows.
        histogram: number of rows by length; each key is the upper bound of its bin, in tokens.
        sources: number of examples by file, including those that are too long or held out.
    """

    report: Mapping[str, Any]
    lengths: Mapping[str, int]
    histogram: Mapping[int, int]
    sources: Mapping[str, int]


def statistics(folder: Path) -> Statistics:
    """The statistics of a folder that the prepare stage wrote."""
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
    # "higher" gives the length of a row, not one between two.
    return {name: int(np.quantile(lengths, share, method="higher")) for name, share in shares.items()}


def _histogram(lengths: np.ndarray[Any, np.dtype[np.int32]]) -> dict[int, int]:
    longest = int(lengths.max(initial=0))
    edges = [SMALLEST_BIN]
    while edges[-1] < longest:
        edges.append(2 * edges[-1])
    counts = np.bincount(np.searchsorted(edges, lengths), minlength=len(edges))
    return {edge: int(count) for edge, count in zip(edges, counts, strict=True)}
