"""Downloads from the Hugging Face Hub, models and data files, into the hub's own cache on this machine."""

from __future__ import annotations

import contextlib
import functools
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NoReturn

from attrs import frozen

from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.api.wording import first_line, listed
from modelwright.core.config.paths import HUB
from modelwright.core.extras import require

_NAME = r"(?P<name>[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*)"
_MODEL = re.compile(rf"{_NAME}(?:@(?P<revision>[^@\s]+))?", re.ASCII)
_DATA = re.compile(rf"{re.escape(HUB)}{_NAME}(?:@(?P<revision>[^@/\s]+))?/(?P<files>[^/].*)", re.ASCII)
# Folders of a repository hold the same model for other programs; `consolidated` files are the same weights again.
_NOT = ("*/*", "consolidated*")
# The page that describes a dataset, its configs and splits.
CARD = "README.md"
# The number of a dataset's files that a message names if the requested one does not exist.
_NAMED = 8


@frozen(kw_only=True)
class HubModel:
    """A model of the hub, downloaded.

    Attributes:
        name: `org/name`.
        commit: the full hash.
        folder: in Hugging Face layout; part of the hub's cache, so it must not be changed.
    """

    name: str
    commit: str
    folder: Path

    @property
    def address(self) -> str:
        """`org/name@COMMIT`, which always means the same files."""
        return f"{self.name}@{self.commit}"


def fetch(source: str, files: Sequence[str], *, only_cached: bool = False) -> HubModel:
    """Get a model of the hub from the cache, or download it.

    huggingface_hub reads `HF_HOME`, `HF_HUB_OFFLINE`, `HF_ENDPOINT` and `HF_TOKEN`.

    Args:
        source: `org/name` or `org/name@revision`; a revision is a branch, a tag or a commit.
        files: patterns of the files to get.
        only_cached: do not use the network.

    Raises:
        UsageError: the source is not a hub id, or the model or revision does not exist or is not accessible.
        ModelwrightError: the hub cannot be reached, and the model is not in the cache.
    """
    match = _MODEL.fullmatch(source)
    if match is None:
        raise UsageError(
            f"[model] base {source!r}: expected a folder (starting with ./ or /), a registered model (NAME, "
            "NAME@VERSION or @ALIAS), or a model of the hub (org/name or org/name@revision)"
        )
    repository = _Repository(f"[model] base {source}", "model", match["name"], match["revision"])
    folder = repository.download(files, _NOT, only_cached=only_cached)
    return HubModel(name=match["name"], commit=folder.name, folder=folder)


@functools.cache
def fetch_data(address: str) -> str:
    """Get files of a dataset of the hub, as a path or pattern on this machine; cached for the process.

    Args:
        address: `hf://datasets/org/name/FILES` or `hf://datasets/org/name@revision/FILES`, as fsspec writes it; FILES
            is a file, a pattern or a folder of the repository.

    Raises:
        As `fetch`; also UsageError if the dataset has no such file.
    """
    match = _DATA.fullmatch(address)
    if match is None:
        raise UsageError(f"{address}: expected {HUB}ORG/NAME/FILES or {HUB}ORG/NAME@REVISION/FILES")
    repository = _Repository(address, "dataset", match["name"], match["revision"])
    files = match["files"].rstrip("/")
    folder = repository.download([files, f"{files}/*"], ())
    if not any(folder.glob(files)):
        raise UsageError(f"{address}: the dataset has no such file{repository.files()}")
    return str(folder / files)


@functools.cache
def dataset_commit(name: str, revision: str | None) -> str:
    """The full hash of a dataset's commit, from the hub or, without a network, its cache; cached for the process.

    Args:
        name: `org/name`.
        revision: a branch, a tag or a commit; None for the main branch.

    Raises:
        As `fetch`.
    """
    if re.fullmatch(_NAME, name, re.ASCII) is None:
        raise UsageError(
            f"dataset {name}: expected a folder (there is none of this name) or a data set of the hub (ORG/NAME)"
        )
    return _Repository(f"dataset {name}", "dataset", name, revision).download([CARD], ()).name


def dataset_snapshot(name: str, commit: str) -> Path:
    """The folder of the hub's cache with the files of a dataset, or with those of them that were downloaded.

    Raises:
        ModelwrightError: there is none.
    """
    return _Repository(f"dataset {name}", "dataset", name, commit).download(["*"], (), only_cached=True)


def offline() -> bool:
    """Whether huggingface_hub uses no network, as it reads HF_HUB_OFFLINE."""
    return bool(require("huggingface_hub.constants").HF_HUB_OFFLINE)


@frozen
class _Repository:
    """A repository of the hub.

    Attributes:
        source: where the user names it, for messages.
        kind: a model or a dataset.
        name: `org/name`.
        revision: None for the main branch.
    """

    source: str
    kind: Literal["model", "dataset"]
    name: str
    revision: str | None

    def download(self, files: Sequence[str], without: Sequence[str], *, only_cached: bool = False) -> Path:
        """Get the files that match `files` and not `without`; the folder in the hub's cache."""
        if not sys.stderr.isatty():
            require("huggingface_hub.utils").disable_progress_bars()
        try:
            return Path(
                require("huggingface_hub").snapshot_download(
                    self.name,
                    repo_type=self.kind,
                    revision=self.revision,
                    allow_patterns=list(files),
                    ignore_patterns=list(without),
                    local_files_only=only_cached,
                )
            )
        except Exception as error:  # noqa: BLE001 - the hub's own, and those of its HTTP client, which depends on the version
            self._explain(error)

    def files(self) -> str:
        """Its first files, for a message; empty if they cannot be listed."""
        with contextlib.suppress(Exception):
            found = require("huggingface_hub").list_repo_files(self.name, repo_type=self.kind, revision=self.revision)
            named = sorted(file for file in found if not Path(file).name.startswith((".", "README")))
            return f" (it has: {listed(named, _NAMED)})"
        return ""

    def _explain(self, error: Exception) -> NoReturn:
        """Raise an error with one line about what went wrong."""
        errors = require("huggingface_hub.errors")
        is_model = self.kind == "model"
        kind, folder = ("model", f" (a folder is written ./{self.name})") if is_model else ("dataset", "")
        if offline():
            command = f"hf download {'' if is_model else '--repo-type dataset '}{self.name}"
            absent = (
                "it is not in the hub's cache, and HF_HUB_OFFLINE is set: unset it, or download it on a machine with a "
                f"network ({command}) and set HF_HOME to that cache"
            )
        else:
            absent = (
                "it is not in the hub's cache, and the hub cannot be reached: try again, or use a folder with a copy"
            )
        # Subclasses come before their base classes.
        reasons: list[tuple[type[Exception], type[ModelwrightError], str]] = [
            (
                errors.GatedRepoError,
                UsageError,
                "access is restricted: request access on its page, then run hf auth login",
            ),
            (
                errors.RepositoryNotFoundError,
                UsageError,
                f"there is no such {kind}, or it is private: check the name{folder}, or run hf auth login",
            ),
            (errors.RevisionNotFoundError, UsageError, f"{self.name} has no revision {self.revision!r} on the hub"),
            (
                errors.HFValidationError,
                UsageError,
                f"this is not a valid {kind} id of the hub{folder}",
            ),
            (errors.LocalEntryNotFoundError, ModelwrightError, absent),
        ]
        for wrong, made, reason in reasons:
            if isinstance(error, wrong):
                raise made(f"{self.source}: {reason}") from error
        raise ModelwrightError(f"{self.source}: the download from the hub failed: {first_line(error)}") from error
