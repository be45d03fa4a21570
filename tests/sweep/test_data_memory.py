"""The sweep of large data: the memory that reading takes is bounded for any size of a file, a line or a group."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

# Not getrusage, whose peak begins with that of the process that started this one.
PEAK = """
import re, sys
from pathlib import Path
from modelwright.core.config.data import SourceConfig
from modelwright.core.stages.prepare.sources import read_source
peaks = []
keep, *paths = sys.argv[1:]
for path in paths:
    rows = read_source(SourceConfig(path=path), seed=1)
    kept = list(rows) if keep else []
    count = len(kept) or sum(1 for _ in rows)
    peaks.append(1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]))
print(count, peaks[-1] - peaks[0])
"""


def _growth(small: Path, large: Path, *, keep: bool = False) -> tuple[int, int]:
    """Rows of the large file, and by how many bytes its reading raised the peak beyond a small one's.

    With `keep`, all rows are kept.
    """
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of a process's memory is read from /proc, which only Linux has")
    command = [sys.executable, "-c", PEAK, "keep" if keep else "", small, large]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows, grown = done.stdout.split()
    return int(rows), int(grown)


def test_a_line_without_end_is_not_kept(tmp_path):
    """Neither 50 MB of it nor the 400 MB that a few kilobytes of gzip become; 16 MiB of it are, once."""
    (tmp_path / "small.jsonl").write_text('{"prompt": "p", "completion": "c"}\n')
    (tmp_path / "a.jsonl").write_bytes(b"x" * 50_000_000)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"x" * 400_000_000, 1))
    for name in ("a.jsonl", "b.jsonl.gz"):
        rows, grown = _growth(tmp_path / "small.jsonl", tmp_path / name)
        assert rows == 1
        assert grown < 40e6


pytestmark = pytest.mark.long
ROWS, FLAT = 300_000, 50e6


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.csv.zst", "a.parquet"])
def test_memory_stays_flat_however_large_the_file(tmp_path, name):
    """Some 100 to 200 MB of rows, in a single row group where there are such."""

    def write(path, rows):
        texts = [f"{n} " * 50 for n in range(rows)]
        if name == "a.parquet":
            table = pa.table({"prompt": texts, "completion": texts})
            pq.write_table(table, path, row_group_size=rows, use_dictionary=False, compression="none")
            return
        line = '{{"prompt": "{0}", "completion": ""}}\n' if name == "a.jsonl" else "{0},\n"
        text = "prompt,completion\n" * (name != "a.jsonl") + "".join(map(line.format, texts))
        packed = name.endswith(".zst")
        path.write_bytes(pa.compress(text.encode(), codec="zstd", asbytes=True) if packed else text.encode())

    (tmp_path / "small").mkdir()
    write(tmp_path / "small" / name, 300)
    write(tmp_path / name, ROWS)
    rows, grown = _growth(tmp_path / "small" / name, tmp_path / name)
    assert rows == ROWS
    assert grown < FLAT
    if name == "a.jsonl":
        assert _growth(tmp_path / "small" / name, tmp_path / name, keep=True)[1] > 2 * FLAT, "the measure sees nothing"
