"""Models of the Hugging Face hub: `org/name`, or `org/name@revision`, into the hub's own cache on this machine."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from attrs import frozen

from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.templates import require

_ID = re.compile(r"(?P<name>[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*)(?:@(?P<revision>[^@\s]+))?", re.ASCII)
# Folders of a repository hold the same model for other programs; `consolidated` files are the same weights again.
_NOT = ("*/*", "consolidated*")


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


def fetch(source: str, files: Iterable[str]) -> HubModel:
    """A model of the hub, out of the cache where it is there, else downloaded.

    `HF_HOME`, `HF_HUB_OFFLINE`, `HF_ENDPOINT` and `HF_TOKEN` are huggingface_hub's to read.

    Args:
        source: `org/name` or `org/name@revision`; a revision is a branch, a tag or a commit.
        files: patterns of the files wanted.

    Raises:
        UsageError: it is no hub id, there is no such model or revision, or it may not be read.
        ModelwrightError: the hub cannot be reached, and the model is not in the cache.
    """
    match = _ID.fullmatch(source)
    if match is None:
        raise UsageError(
            f"[model] base {source!r}: expected a folder (with ./ or / in front), a model of the registry (NAME, "
            "NAME@VERSION or @ALIAS), or one of the hub (org/name or org/name@revision)"
        )
    if not sys.stderr.isatty():
        require("huggingface_hub.utils").disable_progress_bars()
    try:
        folder = require("huggingface_hub").snapshot_download(
            match["name"], revision=match["revision"], allow_patterns=list(files), ignore_patterns=list(_NOT)
        )
    except Exception as error:  # noqa: BLE001 - beside the hub's own, errors of its HTTP client, which is another by version
        _explain(error, source)
    return HubModel(name=match["name"], commit=Path(folder).name, folder=Path(folder))


def _explain(error: Exception, source: str) -> NoReturn:
    """Raise the line for what went wrong."""
    errors = require("huggingface_hub.errors")
    name, _, revision = source.partition("@")
    if require("huggingface_hub.constants").HF_HUB_OFFLINE:
        absent = (
            "it is not in the hub's cache, and HF_HUB_OFFLINE is set: unset it, or fill the cache where there is a "
            f"network (hf download {name}) and let HF_HOME name it"
        )
    else:
        absent = "it is not in the hub's cache, and the hub cannot be reached: try again, or give the folder of a copy"
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
            f"there is no such model, or it is private: check the name (a folder is ./{name}), or run hf auth login",
        ),
        (errors.RevisionNotFoundError, UsageError, f"the hub's {name} has no revision {revision!r}"),
        (errors.HFValidationError, UsageError, f"this can be no model of the hub; a folder is written ./{name}"),
        (errors.LocalEntryNotFoundError, ModelwrightError, absent),
    ]
    for kind, made, reason in reasons:
        if isinstance(error, kind):
            raise made(f"[model] base {source}: {reason}") from error
    first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    raise ModelwrightError(f"[model] base {source}: it cannot be had from the hub: {first}") from error
