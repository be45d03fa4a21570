"""Checkpoints that survive a kill: written whole or not at all, and believed only after their digests agree.

FOLDER/checkpoints/step-00000100/
├── state.json       Progress
├── manifest.json    fingerprint, and each file's sha256 and size
└── …                what the trainer's strategy wrote: weights, optimiser
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import asdict, frozen

from modelwright.core.api import Job, Trained, files

VERSION = 1
MANIFEST = "manifest.json"
STATE = "state.json"
FINISHED = "finished.json"


@frozen(kw_only=True)
class Progress:
    """How far a training is.

    Attributes:
        step: optimiser steps done.
        tokens: tokens that went through the model in them, padding aside.
        loss: the last step's, in nats.
        holdout_loss: the last measured, in nats.
    """

    step: int = 0
    tokens: int = 0
    loss: float | None = None
    holdout_loss: float | None = None


class _UnusableError(Exception):
    """Why a checkpoint cannot be used."""


def _verify(folder: Path, recorded: Mapping[str, Any]) -> None:
    for path, entry in recorded.items():
        file = folder / path
        if not file.is_file():
            raise _UnusableError(f"{path} is missing")
        if file.stat().st_size != entry["size"]:
            raise _UnusableError(f"{path} has {file.stat().st_size} bytes, {entry['size']} were written")
        if files.sha256_file(file) != entry["sha256"]:
            raise _UnusableError(f"{path} is not what was written: its sha256 differs")


class Checkpoints:
    """The checkpoints of one training.

    Args:
        folder: the trainer's own folder (`job.folder`).
        fingerprint: of all that went into the training.
        keep: how many of the newest stay.
        emit: writes events; `checkpoint_rejected` names each checkpoint that was passed over, and why.
    """

    def __init__(
        self, folder: Path, *, fingerprint: str, keep: int, emit: Callable[[str, Mapping[str, Any]], None]
    ) -> None:
        self.folder = folder / "checkpoints"
        self.begun_before = self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._fingerprint = fingerprint
        self._keep = keep
        self._emit = emit
        self._rejected: set[Path] = set()
        files.remove_temporaries(self.folder)

    def newest(self) -> tuple[Path, Progress] | None:
        """The newest checkpoint of this training that is whole, and its progress; None where there is none."""
        for _, path in self._found():
            try:
                return path, self._checked(path)
            except _UnusableError as error:
                self._rejected.add(path)
                self._emit("checkpoint_rejected", {"checkpoint": path.name, "reason": str(error)})
        return None

    def save(self, progress: Progress, write: Callable[[Path], None]) -> None:
        """Write a checkpoint, then remove those that it makes superfluous.

        Args:
            progress: how far the training is.
            write: writes weights and optimiser into the folder that it is given.
        """
        path = self.folder / f"step-{progress.step:08d}"
        with files.writing_folder(path) as folder:
            write(folder)
            files.write_json(folder / STATE, {"version": VERSION, **asdict(progress)})
            manifest = {"version": VERSION, "fingerprint": self._fingerprint, "files": files.folder_manifest(folder)}
            files.write_json(folder / MANIFEST, manifest)
        self._rejected.discard(path)
        self._prune(progress.step)

    def _found(self) -> list[tuple[int, Path]]:
        def steps() -> Iterator[tuple[int, Path]]:
            for path in self.folder.glob("step-*"):
                number = path.name.removeprefix("step-")
                if number.isdigit() and path.is_dir():
                    yield int(number), path

        return sorted(steps(), reverse=True)

    def _manifest(self, path: Path) -> dict[str, Any]:
        try:
            manifest = files.read_json(path / MANIFEST)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise _UnusableError(f"{MANIFEST} is not JSON: {error}") from error
        if manifest is None:
            raise _UnusableError(f"{MANIFEST} is missing")
        if not isinstance(manifest, dict) or manifest.get("version") != VERSION:
            raise _UnusableError(f"{MANIFEST} is not of version {VERSION}")
        if manifest["fingerprint"] != self._fingerprint:
            raise _UnusableError("it belongs to a training of other inputs")
        return manifest

    def _checked(self, path: Path) -> Progress:
        _verify(path, self._manifest(path)["files"])
        state = files.read_json(path / STATE)
        return Progress(**{key: value for key, value in state.items() if key != "version"})

    def _prune(self, step: int) -> None:
        kept = 0
        for number, path in self._found():
            if number <= step and path not in self._rejected and kept < self._keep and self._is_ours(path):
                kept += 1
            else:
                shutil.rmtree(path)

    def _is_ours(self, path: Path) -> bool:
        try:
            self._manifest(path)
        except _UnusableError:
            return False
        return True


def write_finished(job: Job, trained: Trained) -> None:
    """Record that `job.output` holds this job's model."""
    record = {
        "version": VERSION,
        "fingerprint": job.fingerprint,
        "trained": asdict(trained),
        "files": files.folder_manifest(job.output),
    }
    files.write_json(job.folder / FINISHED, record)


def read_finished(job: Job) -> Trained | None:
    """How the job ended, where its output is whole already; files that were added to the output since do not matter."""
    try:
        record = files.read_json(job.folder / FINISHED)
        if record is None or record["version"] != VERSION or record["fingerprint"] != job.fingerprint:
            return None
        _verify(job.output, record["files"])
        return Trained(**record["trained"])
    except (ValueError, KeyError, TypeError, _UnusableError):
        return None  # not what this trainer writes, or not whole: the training goes on from its newest checkpoint
