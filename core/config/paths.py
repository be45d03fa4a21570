"""How paths in a configuration resolve: relative to their file, or, from `--set`, to the working directory.

Each string of a configuration knows that folder (`Written`), so that it resolves correctly after the layers are merged.
Strings that know none, those of a resolved configuration, are left as they are.
"""

from __future__ import annotations

import glob
import os.path
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NewType

from modelwright.core.config.errors import fail, shown

if TYPE_CHECKING:
    from pathlib import Path

# Types for the fields of `schema`; each is resolved by a function below (see `scalars.BY_NAME`).
FilePath = NewType("FilePath", str)
ModelSource = NewType("ModelSource", str)
DatasetSource = NewType("DatasetSource", str)
ChatTemplate = NewType("ChatTemplate", str)
RegistryUrl = NewType("RegistryUrl", str)
ModelAddress = NewType("ModelAddress", str)

BUILTIN = "builtin:"
# The prefix of fsspec for files of a data set on the Hugging Face hub.
HUB = "hf://datasets/"

_EXPLICIT = re.compile(r"\.{0,2}/|~|\.{1,2}\Z")
_TEMPLATE_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


# Names become folders' names: as long as a model's at most.
LONGEST_NAME = 128


def named(pattern: re.Pattern[str], words: str) -> Any:
    """A validator for names; `words` describes the pattern."""

    def check(_instance: Any, _attribute: Any, value: str) -> None:
        if len(value) > LONGEST_NAME:
            raise ValueError(f"must have {LONGEST_NAME} or fewer characters, not {len(value)}")
        if not pattern.fullmatch(value):
            raise ValueError(f"must be {words}, not {shown(value)}")

    return check


class Written(str):  # noqa: SLOT000 - it exists to carry an attribute
    """A string of a layer, with the folder that a relative path in it is relative to."""

    folder: Path

    @classmethod
    def mark(cls, value: Any, folder: Path) -> Any:
        """A copy of a TOML value in which every string knows `folder`."""
        if isinstance(value, str):
            written = cls(value)
            written.folder = folder
            return written
        if isinstance(value, Mapping):
            return {key: cls.mark(item, folder) for key, item in value.items()}
        if isinstance(value, list):
            return [cls.mark(item, folder) for item in value]
        return value


def _folder(value: str) -> Path | None:
    _check_text(value)
    return value.folder if isinstance(value, Written) else None


def _check_text(value: str) -> None:
    if not value:
        raise fail("must not be empty")
    if "\0" in value:
        raise fail(f"must not contain a NUL character: {shown(value)}")


def check_on_disk(value: str) -> None:
    """Refuse what cannot be a path on disk.

    Raises:
        Invalid: it is empty, or a URL.
    """
    _check_text(value)
    if _URL.match(value):
        raise fail(f"must be a path on disk, not the URL {shown(value)}")


def _absolute(value: str, folder: Path, *, pattern: bool = False) -> str:
    path = os.path.expanduser(value)  # noqa: PTH111 - text in, text out: a glob is not a path yet
    if path.startswith("~"):
        raise fail(f"{shown(value)} names the home of an unknown user (for a file, write ./{path})")
    base = str(folder)
    if pattern and glob.has_magic(path) and not os.path.lexists(folder / path):
        # Brackets in the folder's own name are not part of the pattern.
        base = glob.escape(base)
    return os.path.normpath(os.path.join(base, path))  # noqa: PTH118 - as above


def file_path(value: str) -> str:
    """An absolute path or glob; `builtin:NAME/SPLIT` and `hf://datasets/…` stay as they are. Links are not followed.

    Raises:
        Invalid: it is empty, a URL, or of an unknown user.
    """
    folder = _folder(value)
    if folder is None or value.startswith((BUILTIN, HUB)):
        return str(value)
    check_on_disk(value)
    return _absolute(value, folder, pattern=True)


def model_source(value: str) -> str:
    """An absolute path if it starts like one (`./ ../ / ~`) or names an existing folder; otherwise unchanged."""
    folder = _folder(value)
    if folder is None:
        return str(value)
    if _EXPLICIT.match(value) or os.path.isdir(folder / value):  # noqa: PTH112 - false for a name that is too long
        return _absolute(value, folder)
    return str(value)


def chat_template(value: str) -> str:
    """A bare word is a built-in template's name; anything with a `/`, a dot or a `~` is a file, made absolute."""
    folder = _folder(value)
    return str(value) if folder is None or _TEMPLATE_NAME.fullmatch(value) else _absolute(value, folder)


def registry_url(value: str) -> str:
    """A URL; the relative path in `sqlite:///models.db` (three slashes, as SQLAlchemy writes it) is made absolute.

    Raises:
        Invalid: it is not a URL.
    """
    folder = _folder(value)
    url = _URL.fullmatch(value)
    if url is None:
        raise fail(f"must be a URL such as sqlite:///registry.db, not {shown(value)}")
    scheme, rest = url.groups()
    if folder is None or scheme != "sqlite" or not rest.startswith("/") or rest.startswith(("//", "/:")) or rest == "/":
        return str(value)
    path, question, query = rest[1:].partition("?")
    return f"sqlite:///{_absolute(path, folder)}{question}{query}"
