"""Whatever a page shows to be typed works as it stands there."""

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"

# The reference is made of the source, and the decisions are prose.
PAGES = [
    REPOSITORY / "README.md",
    *sorted(page for page in DOCS.rglob("*.md") if "reference" not in page.parts and "decisions" not in page.parts),
]

# They share a set of trained models.
pytestmark = pytest.mark.xdist_group("docs")


@pytest.mark.parametrize("page", PAGES, ids=[page.relative_to(REPOSITORY).as_posix() for page in PAGES])
def test_a_page_works_from_its_top_to_its_end(page, reader):
    """Each block that can be run is, in order; configurations are read; what is shown as output is what comes out."""
    reader.follow(page)
    if reader.missing:
        pytest.skip(f"the rest of the page works, but {'; '.join(reader.missing)}")
