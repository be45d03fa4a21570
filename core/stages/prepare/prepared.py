"""Prepared data as data sets of the package `datasets`, for notebooks."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from modelwright.core.api import files
from modelwright.core.api.errors import UsageError
from modelwright.core.api.records import canonical_json
from modelwright.core.api.tokens import TokenFolder
from modelwright.core.extras import require
from modelwright.core.runs.folder import find_run
from modelwright.core.stages.prepare.examples import written_rows

if TYPE_CHECKING:
    import datasets

# The label of a token that is not trained, as in transformers.
UNTRAINED = -100

_TEXTS = ("answer", "tools", "text", "source")
_MESSAGE_TEXTS = ("role", "content", "thinking", "tool_calls", "tool_call_id", "name")


def prepared_folder(named: str, variant: str | None = None) -> Path:
    """The folder that the prepare stage of a run wrote.

    Raises:
        UsageError: as `find_run`, or the run is not prepared.
    """
    run = find_run(named, variant)
    folder = run.stage("prepare")
    if run.done("prepare") is None or not (folder / "train").is_dir():
        raise UsageError(f"run {run.name} is not prepared: run modelwright prepare RUN.toml first")
    return folder


@frozen
class Prepared:
    """The prepared data of a run, as data sets of the package `datasets`; each is made when it is first used.

    The package writes them to its cache, under the digest of the prepared files, and maps them into memory.

    Attributes:
        folder: what the prepare stage wrote.
    """

    folder: Path

    @functools.cached_property
    def examples(self) -> datasets.Dataset:
        """The examples that were kept, held-out ones included.

        Columns: `id`; `messages`, a list of objects with `role`, `content`, `thinking`, `tool_calls` (JSON text),
        `tool_call_id`, `name`, `train`; `answer`, `tools` (JSON text), `text`, `source`; `choices`, a list; `meta`
        (JSON text). What an example lacks is None.
        """
        value = require("datasets").Value
        text = value("string")
        message = {**dict.fromkeys(_MESSAGE_TEXTS, text), "train": value("bool")}
        columns = {"id": text, "messages": [message], **dict.fromkeys(_TEXTS, text), "choices": [text], "meta": text}
        return self._made(_examples, self.folder / "examples", columns)

    @functools.cached_property
    def tokens(self) -> datasets.Dataset:
        """The sequences that are trained on: a row is a pack, or an example if the run does not pack.

        Columns: `ids` and `sources` of the examples in it (lists of text); and for each of its tokens `input_ids`,
        `labels` (-100 where it is not trained) and `position_ids`, which begin at 0 in each example (lists of int32,
        [tokens]).
        """
        return self._tokens("train")

    @functools.cached_property
    def holdout(self) -> datasets.Dataset:
        """The held-out examples, never packed; columns as in `tokens`. It has no rows if nothing is held out."""
        return self._tokens("holdout")

    def _tokens(self, split: str) -> datasets.Dataset:
        value = require("datasets").Value
        numbers = {name: [value("int32")] for name in ("input_ids", "labels", "position_ids")}
        columns = {"ids": [value("string")], "sources": [value("string")], **numbers}
        return self._made(_sequences, self.folder / split, columns)

    def _made(
        self, rows: Callable[[Path, str], Iterator[dict[str, Any]]], folder: Path, columns: Mapping[str, Any]
    ) -> datasets.Dataset:
        package = require("datasets")
        features = package.Features(columns)
        if not folder.is_dir() or next(rows(folder, ""), None) is None:
            empty: datasets.Dataset = package.Dataset.from_dict({name: [] for name in columns}, features=features)
            return empty
        # The package's cache goes by the arguments of `rows`; the digest tells other data of the same run apart.
        digest = files.manifest_digest(files.read_json(self.folder / "manifest.json"))
        made: datasets.Dataset = package.Dataset.from_generator(
            rows, features=features, gen_kwargs={"folder": folder, "digest": digest}
        )
        return made


def load_prepared(run: str | os.PathLike[str], variant: str | None = None) -> Prepared:
    """The prepared data of a run, for notebooks: `load_prepared("run.toml").examples`, `.tokens`, `.holdout`.

    Args:
        run: a run.toml, the name of a run (for a variant: NAME-VARIANT), or a run's folder.
        variant: which variant of a run.toml with several.

    Raises:
        UsageError: there is no such run, or it is not prepared.
        MissingDependencyError: the package `datasets` is not installed.
    """
    require("datasets")
    return Prepared(prepared_folder(os.fspath(run), variant))


def _examples(folder: Path, digest: str) -> Iterator[dict[str, Any]]:  # noqa: ARG001 - part of the cache's key
    """Examples with all columns: the package would take their types from the first row alone."""
    for row in written_rows(folder):
        messages = [
            {**{key: message.get(key) for key in _MESSAGE_TEXTS}, "train": message.get("train")}
            for message in row["messages"]
        ]
        texts = {key: row.get(key) for key in ("id", *_TEXTS)}
        meta = canonical_json(row["meta"]) if "meta" in row else None
        yield {**texts, "messages": messages, "choices": row.get("choices"), "meta": meta}


def _sequences(folder: Path, digest: str) -> Iterator[dict[str, Any]]:  # noqa: ARG001 - part of the cache's key
    """The packs of a folder of tokens, or its rows."""
    tokens = TokenFolder(folder)
    for pack in tokens.packs or ([row] for row in range(len(tokens))):
        rows = [tokens[int(row)] for row in pack]
        yield {
            "ids": [row.id for row in rows],
            "sources": [row.source for row in rows],
            "input_ids": [int(token) for row in rows for token in row.input_ids],
            "labels": [label for row in rows for label in _labels(row.input_ids.tolist(), row.trained.tolist())],
            "position_ids": [position for row in rows for position in range(len(row.input_ids))],
        }


def _labels(tokens: list[int], trained: list[bool]) -> list[int]:
    """The tokens that are trained. Nothing comes before the first one, so nothing predicts it."""
    return [
        token if wanted and place else UNTRAINED
        for place, (token, wanted) in enumerate(zip(tokens, trained, strict=True))
    ]
