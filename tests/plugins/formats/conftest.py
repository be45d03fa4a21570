from __future__ import annotations

import json
from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).parents[4] / "shared" / "data"


@pytest.fixture
def shared_rows():
    """The rows of a file of the data at hand; the test skips where it is not there."""

    def read(name: str) -> list[dict]:
        file = SHARED_DATA / name
        if not file.is_file():
            pytest.skip(f"{file} is not there: it is not part of the repository")
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    return read
