r"""Math-Verify in a process of its own: `python -m modelwright.plugins.metrics.math_verify_worker`.

It reads one JSON object a line from standard input, `{"reference": …, "answer": …, "time_limit": seconds}`, and writes
one a line to standard output, `{"equal": bool, "reason": str}`; before the first it writes `{"ready": true}`. It ends
with its input.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

_MEMORY = 4 * 2**30  # bytes of address space: what an answer may make the algebra allocate
_GRACE = 2.0  # seconds after the time limit; by then the parent has killed this process, or it is dead

Compare = Callable[[str, str], tuple[bool, str]]


def load() -> Compare:
    """Import Math-Verify and give the comparison, warmed up."""
    import math_verify
    from math_verify import LatexExtractionConfig

    # It warns that its own timeouts are off. They use SIGALRM, which cannot interrupt arithmetic on huge integers; the
    # parent's limit can.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    config = [LatexExtractionConfig(boxed_match_priority=0)]

    def parse(answer: str) -> list[Any]:
        parsed: list[Any] = math_verify.parse(
            rf"\boxed{{{answer}}}", extraction_config=config, parsing_timeout=None, raise_on_error=True
        )
        return parsed

    def compare(reference: str, answer: str) -> tuple[bool, str]:
        try:
            expected, written = parse(reference), parse(answer)
            equal = math_verify.verify(expected, written, timeout_seconds=None, raise_on_error=True)
        except Exception as error:  # noqa: BLE001 - it raises anything on what models write; the reply says what
            return False, f"Math-Verify cannot compare them ({type(error).__name__})"
        return bool(equal), "by Math-Verify"

    compare(r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}")
    return compare


def main() -> None:
    """Answer requests until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    # macOS refuses this limit; there the time limit alone holds.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    # What libraries print must not get between the replies.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="ascii")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    compare = load()
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        # Should the parent die during a comparison without end, the alarm ends this process: by its default action,
        # for which no Python code need run.
        signal.setitimer(signal.ITIMER_REAL, math.ceil(request["time_limit"]) + _GRACE)
        equal, reason = compare(request["reference"], request["answer"])
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps({"equal": equal, "reason": reason}), file=replies, flush=True)


if __name__ == "__main__":
    main()
