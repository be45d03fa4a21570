"""The house: one import name, light imports, quick help."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "datasets", "peft", "deepspeed")

LISTING = f"""
import json, sys
sys.argv = ["modelwright", *sys.argv[1:]]
from modelwright.core.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
names = list(sys.modules)
print(json.dumps({{
    "heavy": [name for name in {HEAVY!r} if name in names],
    "bare": [name for name in names if name.partition(".")[0] in ("core", "plugins", "grpc_server")],
}}), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["plugins", "list"], ["models", "list"], ["run", "--help"], ["serve", "--help"]]
)
def test_listing_and_help_import_nothing_heavy_and_nothing_bare(arguments, tmp_path):
    """Torch takes seconds; a package called `core` in site-packages collides with its users' folders."""
    done = subprocess.run(
        [sys.executable, "-c", LISTING, *arguments], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert json.loads(done.stderr.splitlines()[-1]) == {"heavy": [], "bare": []}


def test_importing_the_package_imports_nothing_of_it():
    """`import modelwright` is free; names come when they are used."""
    code = "import modelwright, sys; print([m for m in sys.modules if m.startswith('modelwright.')])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_every_public_name_is_there():
    """The lazy names resolve, and an unknown one is an AttributeError."""
    import modelwright
    from modelwright.core import api

    assert all(getattr(modelwright, name) is getattr(api, name) for name in api.__all__)
    assert modelwright.testing.__name__ == "modelwright.core.testing"
    assert modelwright.testing.engine.EngineContract.__module__ == "modelwright.core.testing.engine"
    assert modelwright.Client.__module__ == "modelwright.grpc_server.client.sync"
    with pytest.raises(AttributeError, match="no attribute 'Cleint'"):
        modelwright.Cleint  # noqa: B018


@pytest.mark.parametrize("arguments", [["--help"], ["plugins", "list"]])
def test_the_command_line_needs_no_thread_pool_to_say_help(arguments, tmp_path):
    """A cheap guard against a slow import: benchmarks/cli.py measures; this only finds an order of magnitude."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "modelwright.core", *arguments], capture_output=True, check=True, cwd=tmp_path
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0
