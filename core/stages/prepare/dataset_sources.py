"""Rows that the package `datasets` reads: a data set of the hub, a folder of data files, or a saved data set.

A data set of the hub is pinned by its commit, which is looked up once in a process; one in a folder by the content of
its files, since the package's own fingerprints depend on paths and times. Raw files and the package's Arrow files are
in its caches, where they are found again without a network.
"""

from __future__ import annotations

import functools
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.api.files import sha256_file
from modelwright.core.api.records import digest_json
from modelwright.core.api.wording import first_line, listed
from modelwright.core.config.data import SourceConfig
from modelwright.core.extras import require
from modelwright.core.models.hub import dataset_commit, dataset_snapshot, offline
from modelwright.core.stages.prepare.readers import Row
from modelwright.core.stages.prepare.readers.columnar import plain_row

# The most configs or splits that a message names.
NAMED = 12
# What describes a folder's data set beside its data files.
_ABOUT = ("README.md", ".huggingface.yaml", "dataset_infos.json")
# More rows than any split has: slices of a streamed split are refused before its length is known.
_ENDLESS = 2**62


def dataset_source(source: SourceConfig) -> DatasetSource:
    """What reads the data set that `source` names; nothing is looked up yet."""
    assert source.dataset is not None
    if not Path(source.dataset).is_absolute():
        return _OnHub(source=source)
    folder = Path(source.dataset)
    saved = any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))
    return _Saved(source=source) if saved else _InFolder(source=source)


@frozen(kw_only=True)
class DatasetSource(ABC):
    """A data set that the package `datasets` reads.

    Attributes:
        source: from the configuration.
    """

    source: SourceConfig

    @property
    def where(self) -> str:
        """The data set, for messages."""
        return f"dataset {self.source.dataset}"

    @property
    def label(self) -> str:
        """The value of `Row.file`: the same wherever the folder lies."""
        return "/".join(filter(None, (self._name, self.source.config, self.source.split)))

    @abstractmethod
    def inputs(self) -> list[tuple[str, str, str]]:
        """What the rows depend on: the name, the place and the digest of each thing."""

    @abstractmethod
    def files(self) -> list[Path]:
        """The files of the user's that are read."""

    @abstractmethod
    def splits(self) -> list[str]:
        """The names of the splits that there are."""

    @abstractmethod
    def read(self, split: str) -> Any:
        """The rows of a split or of a part of it, as an iterable of dicts."""

    @property
    @abstractmethod
    def _name(self) -> str: ...

    def check(self) -> None:
        """Check that there are the config and the split; no rows are read.

        Raises:
            UsageError: the data set, revision, config or split does not exist, or it would need code of its own.
            ModelwrightError: the hub cannot be reached, and nothing is cached.
        """
        self._split()

    def rows(self) -> Iterator[Row]:
        """The rows, numbered from 1 within the split or slice.

        Raises:
            As `check`; also ModelwrightError if the rows cannot be read, or if there is none.
        """
        split = self._split()
        try:
            rows = iter(self.read(split))
        except ModelwrightError:
            raise
        except Exception as error:
            raise self._unread(error, 0) from error
        number = 0
        while True:
            try:
                values: Mapping[str, Any] | None = next(rows, None)
            except Exception as error:
                raise self._unread(error, number) from error
            if values is None:
                break
            number += 1
            yield plain_row(self.label, number, ((name, functools.partial(values.get, name)) for name in values))
        if not number:
            raise ModelwrightError(f"{self.where}: split {split!r} has no rows")

    def _split(self) -> str:
        """The split to read, checked."""
        there = self.splits()
        named = f"(it has: {listed(there, NAMED)})"
        if self.source.split is None:
            if len(there) != 1:
                raise UsageError(f"{self.where}: set split {named}")
            return there[0]
        instructions = require("datasets").ReadInstruction
        try:
            wanted = instructions.from_spec(self.source.split)
        except ValueError as error:
            raise UsageError(
                f"{self.where}: split {self.source.split!r} is not in the form train, train[:1000], train[10%:20%] or "
                f"train+test: {first_line(error)}"
            ) from error
        try:
            wanted.to_absolute(dict.fromkeys(there, _ENDLESS))
        except ValueError as error:
            raise UsageError(f"{self.where}: there is no split {self.source.split!r} {named}") from error
        if self.source.streaming and ("[" in self.source.split or "+" in self.source.split):
            raise UsageError(
                f"{self.where}: split {self.source.split!r}: slices and sums cannot be streamed: name one whole split "
                "and set limit, or leave streaming out"
            )
        return self.source.split

    def _unread(self, error: Exception, rows: int | None = None) -> ModelwrightError:
        """The error for what the package, its readers or its HTTP clients raised.

        Args:
            error: what they raised.
            rows: how many rows were read; None if none were asked for yet.
        """
        cause = error.__cause__ or error
        after = f" after row {rows}" if rows else ""
        instead = (
            "" if rows is None else ' (path = "FILES" reads its files without the package, and rejects single rows)'
        )
        return ModelwrightError(
            f"{self.where}: cannot be read{after}: {type(cause).__name__}: {first_line(cause)}{instead}"
        )


@frozen(kw_only=True)
class _Built(DatasetSource):
    """A data set whose files the package makes into splits."""

    @property
    @abstractmethod
    def builder(self) -> Any:
        """The package's builder: it knows configs, splits and files."""

    def splits(self) -> list[str]:
        """See `DatasetSource`."""
        builder = self.builder
        return [str(name) for name in getattr(builder.config, "data_files", None) or builder.info.splits or ()]

    def read(self, split: str) -> Any:
        """See `DatasetSource`."""
        builder = self.builder
        if self.source.streaming:
            return builder.as_streaming_dataset(split=split)
        builder.download_and_prepare()
        return builder.as_dataset(split=split)

    def _build(self, place: str, **options: Any) -> Any:
        """The builder of what is at a place.

        Raises:
            UsageError: there is no such config, or the data set would need code of its own.
            ModelwrightError: it cannot be reached or understood.
        """
        datasets = _quiet()
        try:
            return datasets.load_dataset_builder(place, name=self.source.config, **options)
        except RuntimeError as error:
            script = re.search(r"\S+\.py\b", str(error))
            if script is None:
                raise self._unread(error) from error
            raise UsageError(
                f"{self.where}: it needs its own code to be read ({script[0]}), which is not run: use a copy in Parquet"
                ' (the hub has one of many data sets: revision = "refs/convert/parquet")'
            ) from error
        except Exception as error:
            if isinstance(error, FileNotFoundError) and Path(place).is_dir():
                raise UsageError(f"{self.where}: it has no data files that the package datasets can read") from error
            if isinstance(error, ValueError) and (wrong := self._wrong_config(error, place, **options)):
                raise UsageError(f"{self.where}: {wrong}") from error
            raise self._unread(error) from error

    def _wrong_config(self, error: ValueError, place: str, **options: Any) -> str | None:
        """What is wrong with the config, if that is why there is no builder."""
        config = self.source.config
        if not re.search(r"BuilderConfig|Config name is missing", str(error)):
            return None
        there = listed(_quiet().get_dataset_config_names(place, **options), NAMED)
        return f"{'set config' if config is None else f'there is no config {config!r}'} (it has: {there})"


@frozen(kw_only=True)
class _OnHub(_Built):
    @property
    def _name(self) -> str:
        assert self.source.dataset is not None
        return self.source.dataset

    @property
    def commit(self) -> str:
        """The full hash that the revision is now."""
        return dataset_commit(self._name, self.source.revision)

    def inputs(self) -> list[tuple[str, str, str]]:
        """See `DatasetSource`: the commit, and which part of it."""
        part = [self.source.config, self.source.split]
        place = "/".join(filter(None, (f"{self._name}@{self.commit}", *part)))
        return [(self.label, place, digest_json(["dataset", self.commit, *part]))]

    def files(self) -> list[Path]:
        """See `DatasetSource`: none, they are the hub's."""
        return []

    @property
    def builder(self) -> Any:
        """See `_Built`: from the hub, or from what is cached of this very commit."""
        return _hub_builder(self)

    def online(self) -> Any:
        """The builder that the hub's answer gives; None if the package answered from another commit in its cache."""
        builder = self._build(self._name, revision=self.commit)
        return builder if builder.hash == self.commit else None

    def prepared(self) -> Any:
        """The builder of what the package prepared of this commit earlier; None if it did not."""
        organization, _, name = self._name.partition("/")
        root = Path(require("datasets.config").HF_DATASETS_CACHE).expanduser()
        folder = f"{organization}___{require('datasets.naming').camelcase_to_snakecase(name)}"
        config = self.source.config or "default"
        for found in (root / folder / config).glob(f"*/{self.commit}"):
            return require("datasets.packaged_modules.cache.cache").Cache(
                repo_id=self._name, dataset_name=name, config_name=config, version=found.parent.name, hash=self.commit
            )
        return None

    def downloaded(self) -> Any:
        """The builder of the files in the hub's cache."""
        return self._build(str(dataset_snapshot(self._name, self.commit)))


@functools.cache
def _hub_builder(data: _OnHub) -> Any:
    if (prepared := data.prepared()) is not None:
        return prepared
    if offline():
        return data.downloaded()
    try:
        return data.online() or data.downloaded()
    except UsageError:
        raise
    except ModelwrightError as error:
        try:
            return data.downloaded()
        except ModelwrightError:
            raise error from None


@frozen(kw_only=True)
class _InFolder(_Built):
    @property
    def _name(self) -> str:
        return self._folder.name

    @property
    def _folder(self) -> Path:
        assert self.source.dataset is not None
        return Path(self.source.dataset)

    @property
    def builder(self) -> Any:
        """See `_Built`."""
        if not self._folder.is_dir():
            what = "a file: name it with path instead" if self._folder.exists() else "no such folder"
            raise UsageError(f"{self.where}: {what}")
        return self._build(str(self._folder))

    def files(self) -> list[Path]:
        """See `DatasetSource`: the files of all splits, and what describes them."""
        found = [Path(file) for files in (self.builder.config.data_files or {}).values() for file in files]
        return [*filter(Path.is_file, (self._folder / name for name in _ABOUT)), *found]

    def inputs(self) -> list[tuple[str, str, str]]:
        """See `DatasetSource`: the content of the files, and which part of it."""
        return _contents(self, self._folder)


@frozen(kw_only=True)
class _Saved(_InFolder):
    """What `save_to_disk` wrote: a split, or several."""

    def splits(self) -> list[str]:
        """See `DatasetSource`."""
        return list(self._loaded())

    def files(self) -> list[Path]:
        """See `DatasetSource`."""
        return sorted(path for path in self._folder.rglob("*") if path.is_file() and path.suffix in (".arrow", ".json"))

    def read(self, split: str) -> Any:
        """See `DatasetSource`."""
        loaded = self._loaded()
        wanted = require("datasets").ReadInstruction.from_spec(split)
        parts = wanted.to_absolute({name: len(rows) for name, rows in loaded.items()})
        return _quiet().concatenate_datasets(
            [loaded[part.splitname].select(range(part.from_, part.to)) for part in parts]
        )

    def _loaded(self) -> dict[str, Any]:
        datasets = _quiet()
        if self.source.config is not None or self.source.streaming:
            raise UsageError(f"{self.where}: it was saved with save_to_disk, so leave out config and streaming")
        try:
            loaded = datasets.load_from_disk(str(self._folder))
        except Exception as error:
            raise self._unread(error) from error
        if isinstance(loaded, datasets.DatasetDict):
            return {str(name): rows for name, rows in loaded.items()}
        return {str(loaded.split or "train"): loaded}


def _contents(data: DatasetSource, folder: Path) -> list[tuple[str, str, str]]:
    """The sha256 of each file of a folder's data set, and which part of it is read."""
    part = [data.source.config, data.source.split]
    place = "/".join(filter(None, (str(folder), *part)))
    named = [
        (str(file.relative_to(folder)) if file.is_relative_to(folder) else file.name, file) for file in data.files()
    ]
    return [*((name, str(file), sha256_file(file)) for name, file in named), (data.label, place, digest_json(part))]


def _quiet() -> Any:
    """The package, silent where nobody watches."""
    datasets = require("datasets", what="reading a data set")
    datasets.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets
