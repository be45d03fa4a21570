"""Ids of parametrized tests: their inputs, short enough to read."""

from __future__ import annotations

import json
from typing import Any

LONGEST = 90


def shown(value: Any) -> str:
    """A value as JSON, cut off where it is long."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
