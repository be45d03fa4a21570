"""The rooms: how many files lie loose, how long they are, and which are short for a reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from golden import read_messages

REPOSITORY = Path(__file__).parents[1]
ROOMS = ("core", "plugins", "grpc_server")

# Files under 80 lines are merged with what one reads beside them, except these.
SHORT = {
    "core/__main__.py": "`python -m modelwright.core`",
    "core/api/errors.py": "the errors, which everything imports",
    "core/api/wording.py": "pieces of messages, which every room imports",
    "core/cli/auth_tokens.py": "files with tokens, read by serve and by the clients",
    "core/cli/plugins.py": "one module a command",
    "core/extras.py": "optional imports",
    "core/home.py": "the three default places",
    "core/runs/allocation.py": "the Slurm job of this process, which runs and stages read; cluster/ is above them",
    "core/stages/promote.py": "one stage a file",
    "grpc_server/network/access.py": "who may call: tokens, and loopback addresses",
    "plugins/formats/solutions.py": "final answers of worked solutions, for math and reasoning",
    "plugins/metrics/math_verify_worker.py": "the program of the worker process",
}


def modules() -> list[Path]:
    """Every module of the product; names relative to the repository."""
    return sorted(path.relative_to(REPOSITORY) for room in ROOMS for path in (REPOSITORY / room).rglob("*.py"))


@pytest.mark.parametrize(("room", "most"), [("core", 6), ("plugins", 0), ("grpc_server", 2)])
def test_few_files_lie_loose(room, most):
    """What belongs together has a room; a newcomer reads the names of the rooms first."""
    loose = [path.name for path in (REPOSITORY / room).glob("*.py") if path.name != "__init__.py"]
    assert len(loose) <= most, sorted(loose)


def test_there_are_about_two_hundred_modules():
    """Fewer and longer files: what one reader reads together is one file. A package's marker is one line."""
    assert len([path for path in modules() if len((REPOSITORY / path).read_text().splitlines()) > 1]) <= 232


def test_a_short_module_has_its_reason():
    """Each module under 80 lines is in the list above with its reason, and none besides."""
    short = {
        str(path)
        for path in modules()
        if path.name != "__init__.py" and len((REPOSITORY / path).read_text(encoding="utf-8").splitlines()) < 80
    }
    assert short == set(SHORT)


def test_every_line_of_messages_belongs_to_a_test():
    """A test that was renamed or removed leaves no line behind."""
    gone = []
    for key in read_messages():
        module, _, test = key.partition("::")
        source = REPOSITORY / module
        if not source.is_file() or f"def {test.partition('[')[0]}(" not in source.read_text(encoding="utf-8"):
            gone.append(key)
    assert gone == []
