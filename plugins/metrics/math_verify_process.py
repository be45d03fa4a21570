"""Math-Verify's process as the metric sees it: started on first need, killed and replaced when it takes too long."""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from typing import IO, Any

from attrs import frozen

from modelwright.core.api import ModelwrightError

WORKER = "modelwright.plugins.metrics.math_verify_worker"
_START_LIMIT = 120.0  # seconds; importing sympy takes one, on a busy cluster's file system many


@frozen
class Comparison:
    """What came of one comparison.

    Attributes:
        equal: whether the answer is the reference.
        reason: how that is known.
    """

    equal: bool
    reason: str


class _TimeLimitError(Exception):
    """No line came in time."""


class _CrashError(Exception):
    """The process ended."""


class Comparer:
    """Compares answers by Math-Verify in a worker process; safe to use from several threads, one at a time.

    Computer algebra on what a model wrote may run for ever or take the process down; here both cost one worker. The
    worker ends by `close`, with this object, and when this process dies for any reason.

    Args:
        time_limit: seconds for one comparison; a worker's start does not count.
    """

    def __init__(self, time_limit: float) -> None:
        self.time_limit = time_limit
        self._lock = threading.Lock()
        self._worker: _Worker | None = None

    def compare(self, reference: str, answer: str) -> Comparison:
        """Whether `answer` is mathematically `reference`.

        Raises:
            ModelwrightError: the worker cannot be started.
        """
        with self._lock:
            if self._worker is None:
                self._worker = _Worker()
            request = {"reference": reference, "answer": answer, "time_limit": self.time_limit}
            try:
                reply = self._worker.ask(request, self.time_limit)
            except _TimeLimitError:
                self._drop()
                return Comparison(equal=False, reason=f"Math-Verify reached the time limit of {self.time_limit:g} s")
            except _CrashError as error:
                self._drop()
                return Comparison(equal=False, reason=f"Math-Verify's process ended: {error}")
            except BaseException:
                # The answer to this question is still to come; nobody may take it for that to the next one.
                self._drop()
                raise
            return Comparison(equal=reply["equal"], reason=reply["reason"])

    def close(self) -> None:
        """End the worker; the next comparison starts another."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._worker is not None:
            self._worker.end()
            self._worker = None


class _Worker:
    """One worker process and the pipes to it."""

    def __init__(self) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", WORKER],  # -P: nothing in the working directory shadows a module
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
        )
        self._received = b""
        self.end = weakref.finalize(self, _end, self._process, self._errors)
        try:
            self._line(_START_LIMIT)
        except (_TimeLimitError, _CrashError) as error:
            self.end()
            raise ModelwrightError(f"Math-Verify's process ({WORKER}) did not start: {error}") from error

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def ask(self, request: dict[str, Any], limit: float) -> Any:
        """The reply to one request.

        Raises:
            _TimeLimitError: none came within `limit` seconds.
            _CrashError: the process ended.
        """
        assert self._process.stdin is not None
        try:
            # A request is far smaller than a pipe's buffer and the worker is idle, so this does not block.
            self._process.stdin.write(json.dumps(request).encode("ascii") + b"\n")
        except BrokenPipeError:
            raise _CrashError(self._last_words()) from None
        return json.loads(self._line(limit))

    def _line(self, limit: float) -> bytes:
        assert self._process.stdout is not None
        deadline = time.monotonic() + limit
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._received:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise _TimeLimitError(f"no answer within {limit:g} s")
                piece = self._process.stdout.read(65_536)
                if not piece:
                    raise _CrashError(self._last_words())
                self._received += piece
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _last_words(self) -> str:
        """The exit status and the last line of the standard error, for a message."""
        status = self._process.wait(10)
        self._errors.seek(0)
        lines = self._errors.read()[-2_000:].decode("utf-8", "replace").strip().splitlines()
        return f"exit status {status}" + (f", {lines[-1][:200]}" if lines else "")


def _end(process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, errors):
        if pipe is not None:
            pipe.close()
