"""Pages name files, rooms and links that exist; code is named with the words of the glossary."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli

REPOSITORY = Path(__file__).parents[2]
PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]
IDS = [page.relative_to(REPOSITORY).as_posix() for page in PAGES]

SOURCE = re.compile(r"(?<![\w/.])(?:core|plugins|grpc_server|tests|examples|benchmarks)/[a-z0-9_./-]*\w\.(?:py|toml)\b")

# `modelwright.core.runs.events`, in code that a page shows or in a sentence.
MODULE = re.compile(r"\bmodelwright\.((?:core|plugins|grpc_server)(?:\.[a-z_]+)+)")


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_file_that_a_page_names_exists(page):
    """A file that moves takes its mentions along."""
    text = page.read_text(encoding="utf-8")
    missing = {name for name in SOURCE.findall(text) if not (REPOSITORY / name).exists()}
    assert missing - MADE_BY_THE_READER.get(page.name, set()) == set()


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_module_that_a_page_names_exists(page):
    """The last part may be a name in the module."""
    missing = {name for name in MODULE.findall(page.read_text(encoding="utf-8")) if not _module(name)}
    assert missing - MADE_BY_THE_READER.get(page.name, set()) == set()


# "Your first change" has a new module.
MADE_BY_THE_READER = {"CONTRIBUTING.md": {"plugins.metrics.contains"}}


def _module(name: str) -> bool:
    path = REPOSITORY / name.replace(".", "/")
    return path.is_dir() or any(each.with_suffix(".py").is_file() for each in (path, path.parent))


# The word in a name, and what to write instead.
INSTEAD = {
    "anew": "again",
    "asked": "requested, or question",
    "launched": "launcher_process, external_launcher",
    "learnt": "trained",
    "mend": "fix",
    "mended": "fixed",
    "stands": "is",
    "supervised": "trained",
    "told": "reported",
    "whatever": "any",
    "whoever": "anyone",
}

CODE = [
    *(
        file
        for room in ("core", "plugins", "grpc_server", "tests")
        for file in sorted((REPOSITORY / room).rglob("*.py"))
    )
]


def names(code: str) -> Iterator[str]:
    """The names of classes, functions, their parameters and variables."""
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()):
                yield name


def stumbles(code: str) -> set[str]:
    if not any(word in code.lower() for word in INSTEAD):  # parsing takes most of the time
        return set()
    words = {name: re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()) for name in names(code)}
    return {name for name, parts in words.items() if not INSTEAD.keys().isdisjoint(parts)}


def test_old_words_are_found_in_names():
    """As whole words of a name, in any case."""
    code = "class WhatIsTold: ...\ndef test_masked(asked, *, recommended): LEARNT = untold = lookups = 1"
    assert stumbles(code) == {"WhatIsTold", "asked", "LEARNT"}


def test_no_name_has_an_old_word():
    """`INSTEAD` says which word the glossary has."""
    found = {file.relative_to(REPOSITORY).as_posix(): stumbles(file.read_text(encoding="utf-8")) for file in CODE}
    assert {file: sorted(bad) for file, bad in found.items() if bad} == {}


def test_the_layers_are_drawn_alike_in_all_three_places():
    """pyproject.toml is what import-linter checks; the house and CONTRIBUTING.md show the same."""
    contracts = tomli.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = [layer.replace("(", "").replace(")", "") for layer in contracts[0]["layers"]]
    for page in ("docs/explanation/house.md", "CONTRIBUTING.md"):
        blocks = re.findall(r"```text\n(cli\n.*?)```", (REPOSITORY / page).read_text(), re.DOTALL)
        drawn = [[re.split(r"\s{2,}", line)[0] for line in block.splitlines()] for block in blocks]
        assert drawn == [layers], page


def test_learning_rate_passes_at_most_ten_files():
    """From TOML to AdamW, as the house shows the way."""
    text = (REPOSITORY / "docs" / "explanation" / "house.md").read_text(encoding="utf-8")
    section = text.partition("### The way of a key")[2].partition("\n### ")[0]
    assert 1 <= len(re.findall(r"^\d+\. ", section, re.MULTILINE)) <= 10
