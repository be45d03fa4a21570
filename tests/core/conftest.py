"""One finished run that tests copy, and the command line in this process."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tiny_run import WHOLE, tiny_run

from modelwright.core.cli import main
from modelwright.core.doctor import machine, needs


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the command line in this process, in a folder of the test's own. Workers are processes all the same."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, int(end.value.code or 0), out, err)

    return run


@pytest.fixture(scope="session")
def answers() -> dict[object, dict[str, object]]:
    """What other processes found when they imported a package, by the package and their environment."""
    return {}


@pytest.fixture
def probed_once(answers: dict[object, dict[str, object]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Doctor has each package imported in another process once in a session, not in every test: it takes seconds."""
    ask = machine.imported

    def imported(*what: str, **options: float) -> dict[str, object]:
        # DeepSpeed looks for a compiler on the path.
        other = ("MODELWRIGHT_", "PYTEST_", "SLURM_", *(() if any("deepspeed" in each for each in what) else ("PATH",)))
        environment = {name: value for name, value in os.environ.items() if not name.startswith(other)}
        key = (what, *sorted(environment.items()))
        if key not in answers:
            answers[key] = ask(*what, **options)
        return answers[key]

    for module in (machine, needs):
        monkeypatch.setattr(module, "imported", imported)


@pytest.fixture(scope="session")
def finished_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with run.toml and the home of that run, finished; `kept` beside it is the same and is never touched."""
    place = tmp_path_factory.mktemp("finished") / "place"
    place.mkdir()
    (place / "run.toml").write_text(tiny_run(WHOLE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELWRIGHT_HOME", str(place / "home"))
        with pytest.raises(SystemExit) as end:
            main(["run", str(place / "run.toml")])
    assert not end.value.code
    shutil.copytree(place, place.with_name("kept"), symlinks=True)
    return place


@pytest.fixture
def finished_home(finished_place: Path) -> Path:
    """The home of the finished run, for reading only."""
    return finished_place.with_name("kept") / "home"


@pytest.fixture
def finished(finished_place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run file of the finished run; its home, beside it, is this test's own. A registry's URL has its path."""
    shutil.rmtree(finished_place)
    shutil.copytree(finished_place.with_name("kept"), finished_place, symlinks=True)
    monkeypatch.setenv("MODELWRIGHT_HOME", str(finished_place / "home"))
    return finished_place / "run.toml"
