"""What is recorded of a model: where it was made, and `modelwright-model.json`, the record beside exported files.

A record may come from anyone, so reading one trusts nothing: every field must have its type, every path stays inside.
"""

from __future__ import annotations

import json
import math
import platform
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import PurePosixPath
from typing import Any

from attrs import asdict

from modelwright.core.api.errors import ModelwrightError, RegistryError
from modelwright.core.api.records import Figure
from modelwright.core.api.registry import (
    MODEL_NAME,
    ModelFile,
    ModelVersion,
    NewModel,
    check_tags,
    is_text,
    model_digest,
)
from modelwright.core.api.wording import one_line

PACKAGE = "package."
# The packages that influence how a model behaves.
TELLING = ("torch", "transformers", "tokenizers", "safetensors", "datasets", "peft", "deepspeed", "math-verify")


def environment() -> dict[str, str]:
    """The versions of Python, the platform, and every installed package.

    It names neither user nor host, and no accelerator: that would need torch.

    Returns:
        `{"python": "3.11.7 (CPython)", "platform": "Linux-…", "package.NAME": "VERSION", …}`, packages by their
        normalised names (https://packaging.python.org/en/latest/specifications/name-normalization/).
    """
    versions: dict[str, str] = {}
    for distribution in metadata.distributions():
        # A half-removed package has no metadata; the first of two with one name is the one that is imported.
        name = distribution.metadata["Name"] if distribution.metadata else None
        if name and distribution.version:
            versions.setdefault(f"{PACKAGE}{re.sub(r'[-_.]+', '-', name).lower()}", distribution.version)
    return {
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        **dict(sorted(versions.items())),
    }


RECORD = "modelwright-model.json"
# Increased when the meaning of a field changes. Older readers ignore new fields.
FORMAT = 1
# A record lists files and figures, never their contents.
LONGEST = 64 << 20

_TEXTS = ("name", "digest", "created", "fingerprint", "base", "code_version")
_TEXT_TABLES = ("data", "environment", "tags")
_TABLES = ("config", "training", "metrics")


def to_record(version: ModelVersion) -> dict[str, Any]:
    """A version as JSON; its aliases belong to its registry and stay there."""
    model = version.model
    return {
        "record": FORMAT,
        "name": version.name,
        "version": version.version,
        "digest": version.digest,
        "created": version.created.isoformat(),
        "fingerprint": model.fingerprint,
        "base": model.base,
        "parent": model.parent,
        "code_version": model.code_version,
        "tags": dict(model.tags),
        "metrics": {
            suite: {metric: asdict(figure) for metric, figure in figures.items()}
            for suite, figures in version.metrics.items()
        },
        "training": dict(model.training),
        "data": dict(model.data),
        "files": [asdict(file) for file in version.files],
        "environment": dict(model.environment),
        "config": dict(model.config),
    }


def read_record(content: bytes, where: str) -> ModelVersion:
    """Read a record; the inverse of `to_record`.

    Args:
        content: the bytes of the file.
        where: the file's name, for messages.

    Raises:
        RegistryError: the content is not a valid record, or of a newer format; the message says why.
    """
    try:
        values = json.loads(content, parse_constant=_refuse_constant)
        return _version(values)
    except (ValueError, RecursionError, OverflowError, ModelwrightError) as error:
        reason = one_line(error)
        raise RegistryError(f"{where} is not a valid model record: {reason:.300}") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _expect(true: bool, what: str) -> None:
    if not true:
        raise ValueError(f"expected {what}")


def _version(values: Any) -> ModelVersion:
    _expect(isinstance(values, dict), "a JSON object")
    number = values.get("record")
    _expect(isinstance(number, int) and not isinstance(number, bool), 'an integer as "record"')
    if number > FORMAT:
        raise ValueError(f"it was written by a newer Modelwright (format {number}, this version reads up to {FORMAT})")
    for key in _TEXTS:
        _expect(isinstance(values.get(key), str) and is_text(values[key]), f'a string as "{key}"')
    for key in (*_TABLES, *_TEXT_TABLES):
        _expect(isinstance(values.get(key), dict), f'a table as "{key}"')
    for key in _TEXT_TABLES:
        _expect(all(isinstance(value, str) for value in values[key].values()), f'only strings in "{key}"')
    _expect(MODEL_NAME.fullmatch(values["name"]) is not None, f'a model name as "name", not {values["name"]!r:.200}')
    parent, version = values.get("parent"), values.get("version")
    _expect(parent is None or (isinstance(parent, str) and is_text(parent)), 'a string or null as "parent"')
    _expect(
        isinstance(version, int) and not isinstance(version, bool) and version > 0, 'a positive integer as "version"'
    )
    check_tags(values["tags"])
    created = datetime.fromisoformat(values["created"])
    _expect(created.tzinfo is not None, 'a time with a time zone as "created"')
    files = _files(values.get("files"))
    _expect(model_digest(files) == values["digest"], 'the digest of the files as "digest"')
    keys = ("name", "fingerprint", "base", "parent", "config", "data", "environment", "code_version", "training")
    return ModelVersion(
        name=values["name"],
        version=version,
        digest=values["digest"],
        created=created.astimezone(UTC),
        model=NewModel(tags=values["tags"], **{key: values.get(key) for key in keys}),
        files=files,
        metrics=_metrics(values["metrics"]),
    )


def _metrics(table: Mapping[str, Any]) -> dict[str, dict[str, Figure]]:
    metrics: dict[str, dict[str, Figure]] = {}
    for suite, figures in table.items():
        _expect(isinstance(figures, dict), f"a table as metrics.{suite}")
        metrics[suite] = {metric: _figure(f"{suite}.{metric}", value) for metric, value in figures.items()}
    return metrics


def _figure(name: str, value: Any) -> Figure:
    _expect(name.isprintable(), "printable names of metrics")
    _expect(isinstance(value, dict) and value.keys() == {"value", "low", "high", "n"}, f"a figure as metrics.{name}")
    numbers = [value[key] for key in ("value", "low", "high")]
    _expect(all(_is_number(number) for number in numbers), f"finite numbers in metrics.{name}")
    n = value["n"]
    _expect(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 63, f"a count as metrics.{name}.n")
    return Figure(value=float(numbers[0]), low=float(numbers[1]), high=float(numbers[2]), n=n)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _files(rows: Any) -> tuple[ModelFile, ...]:
    _expect(isinstance(rows, list) and bool(rows), 'a list of files as "files"')
    files: dict[str, ModelFile] = {}
    for row in rows:
        _expect(
            isinstance(row, dict) and row.keys() == {"path", "sha256", "size"}, "path, sha256 and size for each file"
        )
        path, digest, size = row["path"], row["sha256"], row["size"]
        _expect(isinstance(path, str) and is_inside(path), f"a path inside the model, not {path!r:.100}")
        _expect(path not in files, f"each file once, but {path!r:.100} is listed twice")
        _expect(isinstance(digest, str) and len(digest) == 64 and set(digest) <= set("0123456789abcdef"), "a sha256")
        _expect(
            isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 1 << 62, f"the size of {path!r:.100}"
        )
        files[path] = ModelFile(path=path, sha256=digest, size=size)
    for path in files:
        above = {parent.as_posix() for parent in PurePosixPath(path).parents} & files.keys()
        _expect(not above, f"files and folders with different names, but {path!r:.100} is below a file")
    return tuple(files[path] for path in sorted(files))


def is_inside(path: str) -> bool:
    """Whether a path is relative, normalized, and stays inside its folder."""
    plain = PurePosixPath(path)
    return (
        bool(plain.parts)
        and not plain.is_absolute()
        and ".." not in plain.parts
        and plain.as_posix() == path
        and is_text(path)
        and all(len(part.encode()) <= 255 for part in plain.parts)
    )
