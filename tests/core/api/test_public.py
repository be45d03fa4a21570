"""What plugins import from core is public, documented and light."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from modelwright.core import api

REPOSITORY = Path(__file__).parents[3]


def _imported(folder: Path):
    """What the modules below `folder` import from core: (file, module, name)."""
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("modelwright.core"):
                yield from ((file, node.module, one.name) for one in node.names)


def test_every_name_that_plugins_import_is_public():
    """Then a plugin of someone else can do what the built-in ones do."""
    found = list(_imported(REPOSITORY / "plugins"))
    assert found
    private = {
        (file.relative_to(REPOSITORY).as_posix(), module, name)
        for file, module, name in found
        if name not in (api.files.__all__ if module == "modelwright.core.api.files" else api.__all__)
    }
    assert private == set()


def test_every_function_of_files_that_plugins_use_is_public():
    """They import the module."""
    used = {
        node.attr
        for file in (REPOSITORY / "plugins").rglob("*.py")
        if any(name == "files" and module == "modelwright.core.api" for _, module, name in _imported(file.parent))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "files"
        if hasattr(api.files, node.attr)
    }
    assert used <= set(api.files.__all__)


@pytest.fixture
def reference(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs" / "reference"))
    from generator import api as generator

    return generator.plugins() + generator.records()


def test_every_public_name_is_in_the_reference_with_a_sentence(reference):
    """A name without a docstring would have a heading and nothing below it."""
    missing = [name for name in [*api.__all__, *api.files.__all__] if f"`{name}`" not in reference]
    missing = [name for name in missing if f"`files.{name}`" not in reference]
    assert missing == []
    described = [
        name for name in api.__all__ if inspect.isroutine(getattr(api, name)) or inspect.isclass(getattr(api, name))
    ]
    assert [name for name in described if not getattr(api, name).__doc__] == []


def test_importing_it_imports_nothing_that_is_slow():
    """A plugin's module is imported whenever plugins are listed."""
    slow = ("torch", "transformers", "numpy", "pyarrow", "sqlalchemy", "grpc", "rich")
    code = f"import sys, modelwright.core.api; print([name for name in {slow!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
