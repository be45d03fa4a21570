"""Pages name files, rooms and links that exist."""

import re
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
