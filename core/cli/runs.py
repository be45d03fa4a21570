"""Which run is meant where a command takes RUN: a run.toml, a run's name, or its folder."""

from __future__ import annotations

from pathlib import Path

from modelwright.core import home
from modelwright.core.api.errors import UsageError
from modelwright.core.runs.folder import RunFolder

CONFIGURATIONS = (".toml", ".yaml", ".yml")


def find_run(named: str, variant: str | None = None) -> RunFolder:
    """The folder of a run.

    Args:
        named: a run.toml (or YAML file), the name of a run as it is below `runs/`, or a run's folder.
        variant: which one, of a run.toml with several.

    Raises:
        UsageError: there is no such run, or there are several.
        ConfigError: the run.toml is wrong.
    """
    folders = find_runs(named, variant)
    if len(folders) > 1:
        names = ", ".join(folder.name for folder in folders)
        raise UsageError(f"{named} has several variants ({names}): choose one with --variant")
    return folders[0]


def find_runs(named: str, variant: str | None = None) -> list[RunFolder]:
    """The folders of a run, one for each variant; arguments and errors are those of `find_run`."""
    path = Path(named)
    if path.suffix in CONFIGURATIONS and not path.is_dir():
        from modelwright.core.config import read_run

        configs = read_run(path, variants=None if variant is None else [variant]).configs
        return [RunFolder(home.runs() / config.name) for config in configs]
    if variant is not None:
        raise UsageError(f"--variant is for a run.toml: write {named}-{variant}")
    folder = path if len(path.parts) > 1 or not (home.runs() / named).is_dir() else home.runs() / named
    if not named or not folder.is_dir():
        there = sorted(each.name for each in home.runs().iterdir() if each.is_dir()) if home.runs().is_dir() else []
        known = f"runs in {home.runs()}: {', '.join(there) or 'none'}"
        raise UsageError(f"there is no run {named!r}: expected a run.toml, a run's name or its folder ({known})")
    return [RunFolder(folder.absolute())]


def prepared_folder(named: str, variant: str | None = None) -> Path:
    """What a run's prepare stage wrote.

    Raises:
        UsageError: as `find_run`, or the run is not prepared.
    """
    run = find_run(named, variant)
    folder = run.stage("prepare")
    if run.done("prepare") is None or not (folder / "train").is_dir():
        raise UsageError(f"run {run.name} is not prepared: modelwright prepare RUN.toml")
    return folder
