"""The wording of messages, in one file: `tests/messages.txt` has a line for each, after the test that makes it.

A test calls the fixture `wording` with what a person would read. Otherwise it asserts facts only (an exit code, an
error's key, a file that is still there), so that rewording a message changes messages.txt alone:

    pytest --write-messages tests/core/config      # rewrites the lines of the tests that ran; read the diff

A test's name and the ids of its parameters are the key, so ids should be the inputs: `test_wrong_value[seed = 1.5]`.
"""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MESSAGES = Path(__file__).parent.parent / "messages.txt"
_ARROW = "  →  "
_TEMPORARY = re.compile(re.escape(tempfile.gettempdir()) + r"/pytest-of-\w+/pytest-\d+(/popen-gw\d+)?/[\w.-]+")
_WRITTEN = pytest.StashKey[dict[str, list[str]]]()


@functools.cache
def read_messages() -> dict[str, list[str]]:
    """The messages by test: `tests/file.py::test[id]` to the lines that it gave, in their order."""
    found: dict[str, list[str]] = {}
    module = ""
    for line in MESSAGES.read_text(encoding="utf-8").splitlines() if MESSAGES.exists() else ():
        if line.startswith("# "):
            module = line.removeprefix("# ")
        elif line:
            test, _, message = line.partition(_ARROW)
            found.setdefault(f"{module}::{test}", []).append(message)
    return found


def _write(messages: dict[str, list[str]]) -> None:
    lines: list[str] = []
    module = None
    for key in sorted(messages, key=lambda key: (key.partition("::")[0], key)):
        where, _, test = key.partition("::")
        if where != module:
            lines += ["", f"# {where}"] if lines else [f"# {where}"]
            module = where
        lines += [f"{test}{_ARROW}{message}" for message in messages[key]]
    MESSAGES.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _escaped(text: str) -> str:
    """On one line; what `str.splitlines` takes for an end of line is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text.replace("\\", "\\\\"))


class Wording:
    """Compares each message with the next line that messages.txt has for this test."""

    def __init__(self, key: str, tmp_path: Path, written: list[str] | None) -> None:
        self._key = key
        self._tmp_path = tmp_path
        self._expected = read_messages().get(key, [])
        self._written = written
        self._count = 0

    def __call__(self, message: object, **places: object) -> None:
        """Check a message; `places` are values that differ from run to run, shown as `<name>`."""
        text = str(message)
        values = {str(value): name for name, value in places.items()} | {str(self._tmp_path): "tmp"}
        for value in sorted(values, key=len, reverse=True):
            text = text.replace(value, f"<{values[value]}>")
        text = _escaped(_TEMPORARY.sub("<tmp>", text))
        self._count += 1
        if self._written is not None:
            self._written.append(text)
            return
        expected = self._expected[self._count - 1] if self._count <= len(self._expected) else None
        assert text == expected, f"{self._key}: if this wording is meant, run pytest with --write-messages"

    def finish(self) -> None:
        """Every line that the file has for this test was given."""
        left = [] if self._written is not None else self._expected[self._count :]
        assert not left, f"{self._key}: messages.txt has lines that the test did not give: {left}"


@pytest.fixture
def wording(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Wording]:
    """Checks the wording of a message against `tests/messages.txt`."""
    module, _, test = request.node.nodeid.partition("::")
    test = re.sub(r"@[\w-]+$", "", test)  # xdist appends a test's group
    key = f"{module}::{test}"
    written = request.config.stash.get(_WRITTEN, None)
    checker = Wording(key, tmp_path, None if written is None else written.setdefault(key, []))
    yield checker
    if not getattr(request.node, "failed_in_call", False):
        checker.finish()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the switch that rewrites the file."""
    parser.addoption("--write-messages", action="store_true", help="rewrite tests/messages.txt from what tests give")


def pytest_configure(config: pytest.Config) -> None:
    """Collect messages if they are to be written."""
    if config.getoption("--write-messages"):
        config.stash[_WRITTEN] = {}
        config.pluginmanager.register(_FromWorkers(config.stash[_WRITTEN]))


class _FromWorkers:
    """Takes the messages of each test process when it ends."""

    def __init__(self, written: dict[str, list[str]]) -> None:
        self._written = written

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node) -> None:
        self._written.update(getattr(node, "workeroutput", {}).get("messages", {}))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """Remember a failure, so that a failed test is not also blamed for lines that it did not reach."""
    report = yield
    if report.when == "call":
        item.failed_in_call = not report.passed
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Replace the lines of every test function that ran; a test process hands them to the one that started it."""
    written = session.config.stash.get(_WRITTEN, None)
    if not written:
        return
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["messages"] = written
        return
    ran = {key.partition("[")[0] for key in written}
    kept = {key: lines for key, lines in read_messages().items() if key.partition("[")[0] not in ran}
    _write(kept | {key: lines for key, lines in written.items() if lines})
