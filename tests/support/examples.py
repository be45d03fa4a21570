"""How many examples a property test tries."""

from __future__ import annotations

import hypothesis


def examples(full: int) -> int:
    """`full` in `make test-all`, where the default is 100; in `make test` as much fewer as the default there."""
    return max(1, full * hypothesis.settings().max_examples // 100)
