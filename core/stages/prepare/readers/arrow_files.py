"""Rows of Arrow files, and where they lie in a data set that `datasets` has saved to disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.stages.prepare.readers.columnar import batch_rows, one_line
from modelwright.core.stages.prepare.readers.packing import pyarrow_module
from modelwright.core.stages.prepare.readers.row import Columns, Row, shown_path

# An Arrow file begins with this, a stream does not; `datasets` writes streams.
MAGIC = b"ARROW1"


def arrow_rows(file: Path, columns: Columns) -> Iterator[Row]:
    """The rows of an Arrow file or stream, read from a memory map.

    Raises:
        ModelwrightError: it is neither, or is cut short.
        MissingDependencyError: pyarrow is not installed.
    """
    arrow = pyarrow_module(file, "pyarrow")
    ipc = pyarrow_module(file, "pyarrow.ipc")
    errors = (arrow.ArrowException, OSError)
    try:
        with file.open("rb") as opened:
            is_file = opened.read(len(MAGIC)) == MAGIC
        source = arrow.memory_map(str(file))
        reader = ipc.open_file(source) if is_file else ipc.open_stream(source)
    except errors as error:
        raise ModelwrightError(f"{shown_path(file)}: not an Arrow file, or cut short: {one_line(error)}") from error
    with source:
        batches = (reader.get_batch(index) for index in range(reader.num_record_batches)) if is_file else iter(reader)
        yield from batch_rows(file, columns, reader.schema, batches, errors)


def saved_dataset(folder: Path) -> list[Path] | None:
    """The files of a data set that `Dataset.save_to_disk` wrote to `folder`, in order; None where it is none.

    Raises:
        UsageError: it holds several splits, of which one must be named; or what says its files cannot be read.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = _read(folder / "dataset_dict.json").get("splits", [])
        named = ", ".join(str(folder / split) for split in splits)
        raise UsageError(f"{shown_path(folder)}: a data set of several splits: name one of {named}")
    if not ((folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()):
        return None
    try:
        return [folder / each["filename"] for each in _read(folder / "state.json")["_data_files"]]
    except (KeyError, TypeError) as error:
        raise UsageError(f"{shown_path(folder / 'state.json')}: it does not say the data set's files") from error


def _read(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{shown_path(file)}: cannot be read: {one_line(error)}") from error
    return value if isinstance(value, dict) else {}
