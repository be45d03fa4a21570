"""Examples to token files: what the model will see, and the proof of what is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from attrs import define, field

from modelwright.core.api.errors import MissingDependencyError, RowError
from modelwright.core.api.records import Example
from modelwright.core.chat import Rendered, Renderer

ROWS_IN_BATCH = 1000


class TokenWriter:
    """Writes the Arrow file that `modelwright.TokenFile` reads, a batch at a time."""

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow as pa
        except ImportError as error:
            raise MissingDependencyError(
                f"preparing data needs pyarrow: pip install 'modelwright[train]' ({error})"
            ) from error
        self._pa: Any = pa
        self._schema = pa.schema(
            [("id", pa.string()), ("input_ids", pa.list_(pa.int32())), ("trained", pa.list_(pa.bool_()))]
        )
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._sink, self._schema)
        self._rows: list[tuple[str, Rendered]] = []

    def add(self, example_id: str, rendered: Rendered) -> None:
        """Write one row."""
        self._rows.append((example_id, rendered))
        if len(self._rows) == ROWS_IN_BATCH:
            self._flush()

    def _flush(self) -> None:
        columns = [
            [example_id for example_id, _ in self._rows],
            [rendered.ids for _, rendered in self._rows],
            [rendered.trained for _, rendered in self._rows],
        ]
        arrays = [self._pa.array(column, type=kind.type) for column, kind in zip(columns, self._schema, strict=True)]
        self._writer.write_batch(self._pa.record_batch(arrays, schema=self._schema))
        self._rows = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None and self._rows:
            self._flush()
        self._writer.close()
        self._sink.close()


@define
class TokenReport:
    """What became of the examples.

    Attributes:
        rows: token rows written for training.
        holdout_rows: token rows held out.
        tokens: of the training rows.
        trained: how many of those are learnt.
        longest: the longest training row, in tokens.
        too_long: examples dropped for `max_length`.
        undrawn: examples that the weight of their source left out.
        anomalies: what is wrong with the labels, by name, with the number of examples.
        shown: for each anomaly, the first example that has it, as `file:line`.
        spans: trained tokens by the role of their message ("text" without turns) and the kind of span.
    """

    rows: int = 0
    holdout_rows: int = 0
    tokens: int = 0
    trained: int = 0
    longest: int = 0
    too_long: int = 0
    undrawn: int = 0
    anomalies: Counter[str] = field(factory=Counter)
    shown: dict[str, str] = field(factory=dict)
    spans: Counter[tuple[str, str]] = field(factory=Counter)

    def to_plain(self) -> dict[str, Any]:
        """As JSON values."""
        by_role: dict[str, dict[str, int]] = {}
        for (role, kind), tokens in self.spans.items():
            by_role.setdefault(role, {})[kind] = tokens
        return {
            "rows": self.rows,
            "holdout_rows": self.holdout_rows,
            "tokens": self.tokens,
            "trained_tokens": self.trained,
            "trained_by_role": by_role,
            "longest": self.longest,
            "too_long": self.too_long,
            "undrawn": self.undrawn,
            "anomalies": dict(self.anomalies),
        }


def write_tokens(
    examples: Iterable[tuple[Example, int]],
    renderer: Renderer,
    *,
    folder: Path,
    max_length: int,
    turns: Literal["all", "last", "split"],
    held_out: Callable[[Example], bool],
    reject: Callable[[Example, str], None],
    drop: Callable[[Example, str], None],
) -> TokenReport:
    """Render every example into `train.arrow` and `holdout.arrow` in `folder`.

    Args:
        examples: what to render, and how often each is trained on; asked for one at a time.
        renderer: the one renderer.
        folder: where the files go.
        max_length: longer renderings are dropped and counted.
        turns: which assistant turns are trained.
        held_out: whether an example is kept from training.
        reject: told of an example that the template refuses, and why.
        drop: told of a rendering that is longer than `max_length`: cutting it would cut the answer.
    """
    report = TokenReport()
    with TokenWriter(folder / "train.arrow") as train, TokenWriter(folder / "holdout.arrow") as holdout:
        for example, times in examples:
            if not times:
                report.undrawn += 1
                continue
            try:
                rendered_turns = renderer.train(example, turns)
            except RowError as error:
                reject(example, str(error))
                continue
            for rendered in rendered_turns:
                if len(rendered.ids) > max_length:
                    drop(example, f"{len(rendered.ids):,} tokens, and [data.tokens] max_length is {max_length:,}")
                if not _admitted(example, rendered, report, max_length):
                    continue
                if held_out(example):
                    report.holdout_rows += 1
                    holdout.add(example.id, rendered)
                else:
                    for _ in range(times):
                        _count(example, rendered, report)
                        train.add(example.id, rendered)
    return report


def _admitted(example: Example, rendered: Rendered, report: TokenReport, max_length: int) -> bool:
    for name in rendered.anomalies:
        report.anomalies[name] += 1
        report.shown.setdefault(name, example.source)
    if len(rendered.ids) > max_length:
        report.too_long += 1
        return False
    return any(rendered.trained[1:])  # a row that teaches nothing is no training row; its anomaly is counted above


def _count(example: Example, rendered: Rendered, report: TokenReport) -> None:
    report.rows += 1
    report.tokens += len(rendered.ids)
    report.trained += sum(rendered.trained)
    report.longest = max(report.longest, len(rendered.ids))
    for span in rendered.spans:
        role = "text" if example.text is not None else example.messages[span.message].role
        report.spans[role, span.kind] += span.end - span.start
