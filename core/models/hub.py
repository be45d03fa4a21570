"""The Hugging Face hub: its models and the files of its data sets, into the hub's own cache on this machine."""

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
from modelwright.core.config.paths import HUB
from modelwright.core.extras import require

_NAME = r"(?P<name>[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*)"
_MODEL = re.compile(rf"{_NAME}(?:@(?P<revision>[^@\s]+))?", re.ASCII)
_DATA = re.compile(rf"{re.escape(HUB)}{_NAME}(?:@(?P<revision>[^@/\s]+))?/(?P<files>[^/].*)", re.ASCII)
# Folders of a repository hold the same model for other programs; `consolidated` files are the same weights again.
_NOT = ("*/*", "consolidated*")
# So many of a data set's files are named where none is the one that was asked for.
_NAMED = 8


@frozen(kw_only=True)
class HubModel:
    """A model of the hub, downloaded.

    Attributes:
        name: `org/name`.
        commit: which state of it.
        folder: in Hugging Face layout; a part of the hub's cache, not to be written to.
    """

    name: str
    commit: str
    folder: Path

    @property
    def address(self) -> str:
        """`org/name@COMMIT`: the same files for ever."""
        return f"{self.name}@{self.commit}"


def fetch(source: str, files: Sequence[str], *, only_cached: bool = False) -> HubModel:
    """A model of the hub, out of the cache where it is there, else downloaded.

    `HF_HOME`, `HF_HUB_OFFLINE`, `HF_ENDPOINT` and `HF_TOKEN` are huggingface_hub's to read.

    Args:
        source: `org/name` or `org/name@revision`; a revision is a branch, a tag or a commit.
        files: patterns of the files wanted.
        only_cached: ask nobody.

    Raises:
        UsageError: it is no hub id, there is no such model or revision, or it may not be read.
        ModelwrightError: the hub cannot be reached, and the model is not in the cache.
    """
    match = _MODEL.fullmatch(source)
    if match is None:
        raise UsageError(
            f"[model] base {source!r}: expected a folder (with ./ or / in front), a model of the registry (NAME, "
            "NAME@VERSION or @ALIAS), or one of the hub (org/name or org/name@revision)"
        )
    repository = _Repository(f"[model] base {source}", "model", match["name"], match["revision"])
    folder = repository.download(files, _NOT, only_cached=only_cached)
    return HubModel(name=match["name"], commit=folder.name, folder=folder)


@functools.cache
def fetch_data(address: str) -> str:
    """Files of a data set of the hub, as a path or pattern on this machine; asked for once in a process.

    Args:
        address: `hf://datasets/org/name/FILES` or `hf://datasets/org/name@revision/FILES`, as fsspec writes it; FILES
            is a file, a pattern or a folder of the repository.

    Raises:
        As `fetch`; UsageError, too, where the data set has no such file.
    """
    match = _DATA.fullmatch(address)
    if match is None:
        raise UsageError(f"{address}: expected {HUB}ORG/NAME/FILES or {HUB}ORG/NAME@REVISION/FILES")
    repository = _Repository(address, "dataset", match["name"], match["revision"])
    files = match["files"].rstrip("/")
    folder = repository.download([files, f"{files}/*"], ())
    if not any(folder.glob(files)):
        raise UsageError(f"{address}: the data set has no such file{repository.files()}")
    return str(folder / files)


@frozen
class _Repository:
    """A repository of the hub.

    Attributes:
        asked: how a person asked for it, for messages.
        kind: what is in it.
        name: `org/name`.
        revision: None for its main branch.
    """

    asked: str
    kind: Literal["model", "dataset"]
    name: str
    revision: str | None

    def download(self, files: Sequence[str], without: Sequence[str], *, only_cached: bool = False) -> Path:
        """The folder with those of its files that match `files` and not `without`, in the hub's cache."""
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
        except Exception as error:  # noqa: BLE001 - beside the hub's own, errors of its HTTP client, another by version
            self._explain(error)

    def files(self) -> str:
        """Its first files, for a message; nothing where they cannot be had."""
        with contextlib.suppress(Exception):
            found = require("huggingface_hub").list_repo_files(self.name, repo_type=self.kind, revision=self.revision)
            named = sorted(file for file in found if not Path(file).name.startswith((".", "README")))
            more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
            return f" (it has: {', '.join(named[:_NAMED])}{more})"
        return ""

    def _explain(self, error: Exception) -> NoReturn:
        """Raise the line for what went wrong."""
        errors = require("huggingface_hub.errors")
        is_model = self.kind == "model"
        kind, folder = ("model", f" (a folder is ./{self.name})") if is_model else ("data set", "")
        if require("huggingface_hub.constants").HF_HUB_OFFLINE:
            command = f"hf download {'' if is_model else '--repo-type dataset '}{self.name}"
            absent = (
                "it is not in the hub's cache, and HF_HUB_OFFLINE is set: unset it, or fill the cache where there is a "
                f"network ({command}) and let HF_HOME name it"
            )
        else:
            absent = (
                "it is not in the hub's cache, and the hub cannot be reached: try again, or give the folder of a copy"
            )
        # The narrower classes stand before the wider ones.
        reasons: list[tuple[type[Exception], type[ModelwrightError], str]] = [
            (
                errors.GatedRepoError,
                UsageError,
                "its owner lets only some read it: ask for access on its page, then run hf auth login",
            ),
            (
                errors.RepositoryNotFoundError,
                UsageError,
                f"there is no such {kind}, or it is private: check the name{folder}, or run hf auth login",
            ),
            (errors.RevisionNotFoundError, UsageError, f"the hub's {self.name} has no revision {self.revision!r}"),
            (
                errors.HFValidationError,
                UsageError,
                f"this can be no {kind} of the hub{f'; a folder is written ./{self.name}' if is_model else ''}",
            ),
            (errors.LocalEntryNotFoundError, ModelwrightError, absent),
        ]
        for wrong, made, reason in reasons:
            if isinstance(error, wrong):
                raise made(f"{self.asked}: {reason}") from error
        first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise ModelwrightError(f"{self.asked}: it cannot be had from the hub: {first}") from error
