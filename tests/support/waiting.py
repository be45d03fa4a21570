"""Waiting for what another process does, however busy the machine is."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import TypeVar

Given = TypeVar("Given")


def until(
    condition: Callable[[], Given],
    process: subprocess.Popen | None = None,
    *,
    seconds: float = 180.0,
    every: float = 0.02,
    said: Callable[[], object] = str,
) -> Given:
    """Call the condition until it gives something true, and give that.

    The bound only ends a test that would wait for ever: it is not what a test measures. A `process` that ends before is
    a failure, too; `said` tells what there is to know then.
    """
    give_up = time.monotonic() + seconds
    while not (given := condition()):
        assert process is None or process.poll() is None, f"it has ended with {process.returncode}: {said()}"
        assert time.monotonic() < give_up, f"it does not happen: {said()}"
        time.sleep(every)
    return given
