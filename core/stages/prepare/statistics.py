"""What a prepared folder holds, in numbers: lengths, sources, and what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen

from modelwright.core.api.files import read_json
from modelwright.core.api.tokens import TokenFolder
from modelwright.core.stages.prepare.examples import written_rows
from modelwright.core.stages.prepare.preview import TRAIN

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
