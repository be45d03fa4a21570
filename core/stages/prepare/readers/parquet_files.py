"""Rows of Parquet files, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from modelwright.core.api.errors import ModelwrightError
from modelwright.core.stages.prepare.readers.columnar import batch_rows, one_line
from modelwright.core.stages.prepare.readers.packing import pyarrow_module
from modelwright.core.stages.prepare.readers.row import Columns, Row, shown_path

ROWS_IN_BATCH = 256
BUFFER = 2**20  # bytes that are read ahead of each column, instead of a whole row group


def parquet_rows(file: Path, columns: Columns) -> Iterator[Row]:
    """The rows of a Parquet file. Row groups are streamed, so that memory grows with neither them nor the file.

    Raises:
        ModelwrightError: it is no Parquet file, or is cut short.
        MissingDependencyError: pyarrow is not installed.
    """
    parquet = pyarrow_module(file, "pyarrow.parquet")
    errors = (pyarrow_module(file, "pyarrow").ArrowException, OSError)
    try:
        opened = parquet.ParquetFile(str(file), buffer_size=BUFFER, pre_buffer=False)
    except errors as error:
        raise ModelwrightError(f"{shown_path(file)}: not a Parquet file, or cut short: {one_line(error)}") from error
    with opened:
        batches = opened.iter_batches(batch_size=ROWS_IN_BATCH)
        yield from batch_rows(file, columns, opened.schema_arrow, batches, errors)
