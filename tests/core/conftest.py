"""One finished run that tests copy, and the command line in this process."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from tiny_run import WHOLE, tiny_run

from modelwright.core.cli import main


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]):
    """Runs the command line in this process; the worker processes of a run are processes all the same."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, int(end.value.code or 0), out, err)

    return run


@pytest.fixture(scope="session")
def finished_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of the run `WHOLE`, finished; for reading only."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "run.toml").write_text(tiny_run(WHOLE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELWRIGHT_HOME", str(folder / "home"))
        with pytest.raises(SystemExit) as end:
            main(["run", str(folder / "run.toml")])
    assert not end.value.code
    return folder / "home"


@pytest.fixture
def finished(finished_home: Path, home: Path, tmp_path: Path) -> Path:
    """The run file of a finished run, whose home is a copy of this test's own."""
    shutil.copytree(finished_home, home, symlinks=True)
    path = tmp_path / "run.toml"
    path.write_text(tiny_run(WHOLE))
    return path
