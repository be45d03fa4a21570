"""What all tests share: the command line in a process of its own, and plugin packages made for one test."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# A failing assert of a contract suite shows its values, as in a test file.
pytest.register_assert_rewrite("modelwright.core.testing")

REPOSITORY = Path(__file__).parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"

# Two test processes share two cores: more threads than one each would spin against one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are named by their place: a gzip file holds the time, and parallel processes must find the same names."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own, for this process and those that it starts."""
    folder = tmp_path / "home"
    monkeypatch.setenv("MODELWRIGHT_HOME", str(folder))
    for name in ("MODELWRIGHT_REGISTRY", "MODELWRIGHT_DISABLE_PLUGINS", "MODELWRIGHT_STRICT_PLUGINS"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def modelwright(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command line as a person would, in another process."""

    def run(*arguments: object, timeout: float = 240, **options) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "modelwright.core", *map(str, arguments)]
        options.setdefault("cwd", tmp_path)
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **options)

    return run


# <linux/capability.h>: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, by which root reads and writes what it likes.
CAPABILITY_VERSION_3, MAY_ALL = 0x20080522, 1 << 1 | 1 << 2


@pytest.fixture
def permissions_count() -> Iterator[None]:
    """Permissions of files hold for this thread though it be root's; programs that it starts are not held by them."""
    if os.geteuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("root may read and write everything here")
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, twice
    assert libc.capget(header, sets) == 0, os.strerror(ctypes.get_errno())
    had = sets[0]
    sets[0] = had & ~MAY_ALL
    assert libc.capset(header, sets) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        sets[0] = had
        libc.capset(header, sets)


@pytest.fixture
def install_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts a package with an entry point on the path, as pip would leave it in site-packages."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])))

    def install(distribution: str, source: str, *, version: str = "1.0", entry: str | None = None) -> Path:
        module = distribution.replace("-", "_")
        sys.modules.pop(module, None)  # another test's package of the same name
        (site / f"{module}.py").write_text(textwrap.dedent(source))
        info = site / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[modelwright]\n{entry or module} = {module}\n")
        return site

    return install


def write_rows(path: Path, rows: list[dict]) -> Path:
    """Write a JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def rows_file() -> Callable[[Path, list[dict]], Path]:
    """Writes a JSONL file."""
    return write_rows


@pytest.fixture
def shared_data() -> Path:
    """The real data sets beside the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the data sets (../shared/data) are not beside this checkout")
    return SHARED_DATA


@pytest.fixture
def shared_rows(shared_data: Path) -> Callable[[str], list[dict]]:
    """Reads the rows of one of those files."""

    def read(name: str) -> list[dict]:
        return [json.loads(line) for line in (shared_data / name).read_text(encoding="utf-8").splitlines()]

    return read
