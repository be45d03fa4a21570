"""The reference says what the source says, and the site is built without a warning."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
GENERATE = DOCS / "reference" / "generate.py"


def run(*command):
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240, check=False)


def test_the_committed_reference_is_what_the_source_says():
    """After a change of a docstring, an option or a proto, run `make docs`."""
    done = run(sys.executable, GENERATE, "--check")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_site_is_built_without_warnings(tmp_path):
    """Broken links, headings that nothing names and pages that no list holds are warnings."""
    if importlib.util.find_spec("sphinx") is None:
        pytest.skip("sphinx is not installed: pip install 'modelwright[docs]'")
    strict = ("-W", "--keep-going", "-q")
    done = run(sys.executable, "-m", "sphinx", *strict, "-d", tmp_path / "trees", DOCS, tmp_path / "site")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Getting started" in (tmp_path / "site" / "index.html").read_text()


LINK = re.compile(r"\]\(((?!https?:|mailto:|#)[^)\s]+)\)")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "benchmarks/README.md", "examples/node/README.md"])
def test_links_between_pages_that_are_not_in_the_site_lead_somewhere(page):
    """Sphinx looks after those in docs/."""
    path = REPOSITORY / page
    dead = [link for link in LINK.findall(path.read_text()) if not (path.parent / link.partition("#")[0]).exists()]
    assert dead == []
