"""Checkpoints that survive a kill: written whole or not at all, and used only if their digests agree.

FOLDER/checkpoints/step-00000100/
├── state.json       Progress
├── manifest.json    fingerprint, layout, and each file's sha256 and size
└── …                files of the trainer's strategy: weights and optimizer, of each process its share
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import asdict, evolve, frozen
from safetensors import SafetensorError

from modelwright.core.api import Job, ModelwrightError, Trained, files
from modelwright.plugins.trainers.ranks import Ranks

VERSION = 2
MANIFEST = "manifest.json"
STATE = "state.json"
FINISHED = "finished.json"


@frozen(kw_only=True)
class Progress:
    """How far a training is: everything its next step depends on, besides weights and optimizer.

    Attributes:
        step: optimizer steps done.
        tokens: tokens that went through the model in them, without padding.
        loss: of the last step, in nats.
        recent: the losses of the last steps, oldest first; a spike is measured against them.
        skipped: steps whose gradient was dropped.
        bad_in_a_row: number of consecutive dropped steps at the end.
        holdout_loss: the last held-out loss, in nats.
        best_step: the step with the lowest held-out loss.
        best_holdout_loss: that loss, in nats.
        without_better: measurements since then.
    """

    step: int = 0
    tokens: int = 0
    loss: float | None = None
    recent: tuple[float, ...] = ()
    skipped: int = 0
    bad_in_a_row: int = 0
    holdout_loss: float | None = None
    best_step: int | None = None
    best_holdout_loss: float | None = None
    without_better: int = 0

    def measured(self, loss: float) -> Progress:
        """The progress after a measurement on the held-out data."""
        if math.isfinite(loss) and (self.best_holdout_loss is None or loss < self.best_holdout_loss):
            return evolve(self, holdout_loss=loss, best_step=self.step, best_holdout_loss=loss, without_better=0)
        return evolve(self, holdout_loss=loss, without_better=self.without_better + 1)


@frozen(kw_only=True)
class Checkpoint:
    """A checkpoint that is whole.

    Attributes:
        path: its folder.
        progress: how far the training was.
        layout: how its files are split among processes, as the strategy that wrote it described it.
    """

    path: Path
    progress: Progress
    layout: Mapping[str, Any]


class _UnusableError(Exception):
    """Why a checkpoint cannot be used."""


def _verify(folder: Path, recorded: Mapping[str, Any]) -> None:
    for path, entry in recorded.items():
        file = folder / path
        if not file.is_file():
            raise _UnusableError(f"{path} is missing")
        if file.stat().st_size != entry["size"]:
            raise _UnusableError(f"{path} is damaged: expected {entry['size']} bytes, found {file.stat().st_size}")
        if files.sha256_file(file) != entry["sha256"]:
            raise _UnusableError(f"{path} is damaged: its sha256 differs")


def _why_not(folder: Path, recorded: Mapping[str, Any]) -> str | None:
    try:
        _verify(folder, recorded)
    except _UnusableError as error:
        return str(error)
    return None


class Checkpoints:
    """The checkpoints of one training, as one of its processes sees them; only the first one writes and removes.

    Each process computes the digests of its share of the files, because they can be large.

    Args:
        job: its settings say how many of the newest are kept, besides the one with the lowest held-out loss. Its event
            `checkpoint_rejected` names each checkpoint that cannot be used, and the reason.
        ranks: the processes that train together.
    """

    def __init__(self, job: Job, ranks: Ranks) -> None:
        self.folder = job.folder / "checkpoints"
        self.ranks = ranks
        self.begun_before: bool = ranks.from_first(self.folder.exists())
        self._fingerprint = job.fingerprint
        self._keep = job.settings.keep_checkpoints
        self._emit = job.emit
        self._rejected: set[Path] = set()
        if ranks.first:
            self.folder.mkdir(parents=True, exist_ok=True)
            files.remove_temporaries(self.folder)

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint of this training that is whole; None if there is none."""
        paths = self.ranks.from_first([path for _, path in self._found()] if self.ranks.first else None)
        return next((usable for path in paths if (usable := self._usable(path))), None)

    def at(self, step: int) -> Checkpoint | None:
        """The checkpoint of this training after a step; None if it is missing or not whole."""
        return self._usable(self._path(step))

    def save(self, progress: Progress, write: Callable[[Path], None], layout: Mapping[str, Any]) -> None:
        """Write a checkpoint, all processes together, then remove those that are no longer needed.

        Args:
            progress: how far the training is.
            write: writes this process's share of weights and optimizer into a folder.
            layout: how the files are split among processes.
        """
        path = self._path(progress.step)
        with shared_folder(self.ranks, path) as folder:
            write(folder)
            if self.ranks.first:
                files.write_json(folder / STATE, {"version": VERSION, **asdict(progress)})
            self.ranks.wait()
            manifest = {
                "version": VERSION,
                "fingerprint": self._fingerprint,
                "layout": dict(layout),
                "files": self._digests(folder),
            }
            if self.ranks.first:
                files.write_json(folder / MANIFEST, manifest)
        if self.ranks.first:
            self._rejected.discard(path)
            self._prune(progress)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _share(self, names: Sequence[str]) -> Sequence[str]:
        return names[self.ranks.rank :: self.ranks.size]

    def _digests(self, folder: Path) -> dict[str, Any]:
        """As `files.folder_manifest`, of the files that all processes have written."""
        # A file system shared by nodes may show a file late to the nodes that did not write it.
        names = sorted(set().union(*self.ranks.gathered(list(files.sizes(folder)))))
        made = self.ranks.gathered({name: files.file_record(folder / name) for name in self._share(names)})
        together = {name: record for share in made for name, record in share.items()}
        return {name: together[name] for name in names}

    def _usable(self, path: Path) -> Checkpoint | None:
        """A checkpoint, if all processes find their share of its files whole; else report why it is rejected."""
        manifest, reason = self.ranks.from_first(self._read_manifest(path) if self.ranks.first else None)
        if reason is None:
            mine = {name: manifest["files"][name] for name in self._share(sorted(manifest["files"]))}
            reason = next((each for each in self.ranks.gathered(_why_not(path, mine)) if each), None)
        if reason is None:
            state = self.ranks.from_first(files.read_json(path / STATE) if self.ranks.first else None)
            values = {key: value for key, value in state.items() if key != "version"}
            progress = Progress(**values | {"recent": tuple(values["recent"])})
            return Checkpoint(path=path, progress=progress, layout=manifest["layout"])
        self._rejected.add(path)
        self._emit("checkpoint_rejected", {"checkpoint": path.name, "reason": reason})
        return None

    def _read_manifest(self, path: Path) -> tuple[dict[str, Any], str | None]:
        """A checkpoint's manifest, or why it cannot be used for this training."""
        try:
            return self._manifest(path), None
        except _UnusableError as error:
            return {}, str(error)

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
            raise _UnusableError(f"{MANIFEST} does not have version {VERSION}")
        if manifest["fingerprint"] != self._fingerprint:
            raise _UnusableError("it belongs to a training with other inputs")
        return manifest

    def _prune(self, progress: Progress) -> None:
        kept = 0
        for number, path in self._found():
            newest = number <= progress.step and kept < self._keep
            if path not in self._rejected and (newest or number == progress.best_step) and self._is_ours(path):
                kept += newest
            else:
                shutil.rmtree(path)

    def _is_ours(self, path: Path) -> bool:
        try:
            self._manifest(path)
        except _UnusableError:
            return False
        return True


@contextlib.contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Report clearly that `folder` cannot be written to; the libraries say "unexpected pos 756544 vs 756432".

    Raises:
        ModelwrightError: it cannot be written to, for example because the disk is full.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch hides the error of the file's write behind one of its own.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if not isinstance(cause, OSError | SafetensorError):
            raise
        raise ModelwrightError(
            f"cannot write to {folder.parent}: {cause}; fix that, then the same command resumes the training"
        ) from error


@contextlib.contextmanager
def shared_folder(ranks: Ranks, path: Path) -> Iterator[Path]:
    """As `files.writing_folder`, for several processes that write into one folder on a shared file system."""
    if not ranks.first:
        yield Path(ranks.from_first(None))
        ranks.wait()
        return
    with files.writing_folder(path) as folder:
        ranks.from_first(str(folder))
        yield folder
    ranks.wait()


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
    """How the job ended, if its output is already whole; files added to the output since then do not matter."""
    try:
        record = files.read_json(job.folder / FINISHED)
        if record is None or record["version"] != VERSION or record["fingerprint"] != job.fingerprint:
            return None
        _verify(job.output, record["files"])
        return Trained(**record["trained"])
    except (ValueError, KeyError, TypeError, _UnusableError):
        return None  # not written by this trainer, or not whole: the training resumes from its newest checkpoint
