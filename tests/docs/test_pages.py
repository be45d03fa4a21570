"""Everything that a page shows to be typed works as printed."""

from pathlib import Path

import pytest
import tomli

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"

# The reference is generated from the source, and the decisions are prose.
PAGES = [
    REPOSITORY / "README.md",
    *sorted(page for page in DOCS.rglob("*.md") if not {"reference", "decisions"} & set(page.parts)),
]

every_page = pytest.mark.parametrize("page", PAGES, ids=[page.relative_to(REPOSITORY).as_posix() for page in PAGES])


@pytest.mark.long
@every_page
def test_a_page_works_from_its_top_to_its_end(page, reader):
    """Each block that can be run is, in order; configurations are read; what is shown as output is what comes out."""
    reader.follow(page)
    if reader.missing:
        pytest.skip(f"the rest of the page works, but {'; '.join(reader.missing)}")


@every_page
def test_the_configurations_on_a_page_are_valid(page, reader):
    """Every block of TOML or YAML, without running the page: a renamed key is found in `make test`."""
    reader.read_configurations(page)


@pytest.mark.parametrize("example", sorted((REPOSITORY / "examples").glob("*.toml")), ids=lambda path: path.name)
def test_an_example_parses(example):
    """Others run them; this finds a comment that swallowed a line."""
    assert tomli.loads(example.read_text(encoding="utf-8"))
