"""A package of an extra is imported, or the error names it and the extra."""

from __future__ import annotations

import json

import pytest

from modelwright.core.api import MissingDependencyError
from modelwright.core.extras import check_installed, require


def test_a_package_that_is_there_is_imported():
    """A module of it as well."""
    assert require("json.decoder").JSONDecoder is json.JSONDecoder
    check_installed("json", "pathlib", what="nothing")


def test_a_missing_package_is_named_with_its_extra(wording):
    """Whether it is imported or only looked for."""
    with pytest.raises(MissingDependencyError, match=r"no_such_package.*modelwright\[quality\]") as caught:
        require("no_such_package.part", extra="quality", what="near-duplicate removal")
    wording(caught.value)
    with pytest.raises(MissingDependencyError, match=r"no_such_package, nor_this.*modelwright\[train\]") as caught:
        check_installed("json", "no_such_package", "nor_this", what="prepare")
    wording(caught.value)
