"""The registry in an SQLite file, with the models' files beside it in `files/`.

A model's files are in place before its row is written, and the row with all that belongs to it is one transaction: a
kill at any moment leaves either no version or a whole one. Contents that no row needs are harmless; `collect` frees
them.

How concurrent `add` and `collect` stay safe: contents are removed only while the database's write lock is held, and a
row is written only after checking, under the same lock, that all of its contents exist. The second one to take the lock
sees what the first did: a collection sees the row, or the `add` sees that contents are gone and copies them again.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.dialects.sqlite import insert as insert_or_update

from modelwright.core.api.errors import AliasConflictError, ModelNotFoundError, RegistryError
from modelwright.core.api.records import Figure
from modelwright.core.api.registry import (
    Alias,
    Collected,
    ModelFile,
    ModelVersion,
    NewModel,
    RegistryEvent,
    check_alias,
    check_tags,
    is_text,
    model_digest,
    scan_model,
)
from modelwright.plugins.registries import SqlOptions, tables
from modelwright.plugins.registries.files import ContentMissingError, FileStore
from modelwright.plugins.registries.sqlite import Database, database_path
from modelwright.plugins.registries.tables import load_alias, load_events, load_versions, models

# After copying contents this often, something other than a collection must be removing them.
ATTEMPTS = 20


class SqlRegistry:
    """Implements `core.api.Registry`; every method opens the database, and leaves nothing open."""

    def __init__(self, options: SqlOptions) -> None:
        path = database_path(options.url)
        self._database = Database(path)
        self._store = FileStore(path.parent / "files")

    def add(self, model: NewModel, folder: Path) -> ModelVersion:
        """Store the files of `folder`, then the row, in one transaction; idempotent for (name, fingerprint).

        Raises:
            RegistryError: the folder has a file that may not be registered, the model is not JSON, or writing fails.
        """
        check_tags(model.tags)
        values = tables.model_values(model)
        with self._database.reading() as connection:
            known = _by_fingerprint(connection, model)
        if known and not any(self._store.problems(known.files)):
            return known
        with self._database.explained():
            files = scan_model(folder)
            digest = model_digest(files)
            if known and known.digest != digest:
                raise RegistryError(
                    f"{known.address} has missing or damaged files, and {folder} does not hold the same model: "
                    "register it from the original folder, or restore its files from a backup"
                )
        for _ in range(ATTEMPTS):
            # Restores missing or damaged files of a model that is already registered.
            with self._database.explained(), contextlib.suppress(ContentMissingError):
                self._store.add(folder, files)
                self._store.tree(digest, files)
            with self._database.writing() as connection:
                if self._store.complete(digest, files):
                    return _by_fingerprint(connection, model) or _insert(connection, model, values, digest, files)
        raise RegistryError(
            f"{folder} cannot be registered: its files were removed from the store {ATTEMPTS} times while they were "
            f"being added; find out which program deletes files in {self._store.root}"
        )

    def get(self, name: str, version: int | None = None) -> ModelVersion:
        """One version, the newest by default.

        Raises:
            ModelNotFoundError: there is no such version.
        """
        with self._database.reading() as connection:
            return load_versions(connection, models.c.id == _find(connection, name, version).id)[0]

    def resolve(self, alias: str) -> Alias:
        """Where an alias points.

        Raises:
            ModelNotFoundError: there is no such alias.
        """
        with self._database.reading() as connection:
            found = load_alias(connection, alias) if is_text(alias) else None
        if found is None:
            raise ModelNotFoundError(f"there is no alias {'@' + alias!r}")
        return found

    def find(self, name: str | None = None) -> Sequence[ModelVersion]:
        """Every version, of one name or of all; by name, then version."""
        with self._database.reading() as connection:
            if name is None:
                return load_versions(connection)
            return load_versions(connection, models.c.name == name) if is_text(name) else []

    def set_alias(self, alias: str, name: str, version: int, *, expected: int | None = None) -> Alias:
        """Point an alias; with `expected`, only if its generation is that (0: it does not exist yet).

        If it already points there, nothing changes, and the generation stays.

        Raises:
            AliasConflictError: the alias has another generation.
            ModelNotFoundError: there is no such version.
            UsageError: an alias cannot have that name.
        """
        check_alias(alias)
        self._require(name, version)
        with self._database.writing() as connection:
            row = _find(connection, name, version)
            before = load_alias(connection, alias)
            generation = before.generation if before else 0
            if expected is not None and expected != generation:
                now = f"it points to {before.name}@{before.version}" if before else "it does not exist"
                raise AliasConflictError(
                    f"alias '@{alias}' has moved in the meantime: expected generation {expected}, found {generation} "
                    f"({now})"
                )
            if before and (before.name, before.version) == (name, version):
                return before
            place = {"model_id": row.id, "generation": generation + 1}
            connection.execute(
                insert_or_update(tables.aliases)
                .values(alias=alias, **place)
                .on_conflict_do_update(index_elements=["alias"], set_=place)
            )
            after = Alias(alias=alias, name=name, version=version, generation=generation + 1)
            _record(
                connection,
                "alias",
                alias=alias,
                name=name,
                version=version,
                generation=after.generation,
                previous=f"{before.name}@{before.version}" if before else None,
            )
            return after

    def add_metrics(self, name: str, version: int, suite: str, metrics: Mapping[str, Figure]) -> None:
        """Record a suite's figures; a later recording of the same suite and metric replaces them.

        Raises:
            ModelNotFoundError: there is no such version.
            RegistryError: a figure is not finite.
        """
        for metric, figure in metrics.items():
            if not (is_text(suite) and is_text(metric)):
                raise RegistryError(f"{suite!r}.{metric!r} cannot be stored: expected names without NUL or surrogates")
            if not all(math.isfinite(value) for value in (figure.value, figure.low, figure.high)):
                raise RegistryError(f"{suite}.{metric} cannot be stored: its figures must be finite, got {figure}")
        self._require(name, version)
        with self._database.writing() as connection:
            row = _find(connection, name, version)
            for metric, figure in metrics.items():
                values = {"value": figure.value, "low": figure.low, "high": figure.high, "n": figure.n}
                connection.execute(
                    insert_or_update(tables.metrics)
                    .values(model_id=row.id, suite=suite, metric=metric, **values)
                    .on_conflict_do_update(index_elements=["model_id", "suite", "metric"], set_=values)
                )
            values = {metric: figure.value for metric, figure in metrics.items()}
            _record(connection, "metrics", name=name, version=version, suite=suite, metrics=values)

    def set_tags(self, name: str, version: int, tags: Mapping[str, str | None]) -> ModelVersion:
        """Set these tags and leave the others; None removes one. Returns the updated version.

        Raises:
            ModelNotFoundError: there is no such version.
            UsageError: a key or a value is not allowed.
        """
        check_tags(tags)
        self._require(name, version)
        with self._database.writing() as connection:
            row = _find(connection, name, version)
            query = select(tables.tags.c.key, tables.tags.c.value).where(tables.tags.c.model_id == row.id)
            before = {tag.key: tag.value for tag in connection.execute(query)}
            changed = {key: value for key, value in tags.items() if before.get(key) != value}
            for key, value in changed.items():
                connection.execute(
                    delete(tables.tags).where(tables.tags.c.model_id == row.id, tables.tags.c.key == key)
                )
                if value is not None:
                    connection.execute(insert(tables.tags).values(model_id=row.id, key=key, value=value))
            if changed:
                _record(connection, "tags", name=name, version=version, tags=changed)
            return load_versions(connection, models.c.id == row.id)[0]

    def delete(self, name: str, version: int) -> None:
        """Delete a version; its number is not used again. Its files stay in the store until `collect`.

        Raises:
            ModelNotFoundError: there is no such version.
            RegistryError: an alias points to it.
        """
        self._require(name, version)
        with self._database.writing() as connection:
            row = _find(connection, name, version)
            query = select(tables.aliases.c.alias).where(tables.aliases.c.model_id == row.id).order_by("alias")
            pointing = [f"'@{alias}'" for alias in connection.scalars(query)]
            if pointing:
                verb, what = ("points", "the alias") if len(pointing) == 1 else ("point", "the aliases")
                raise RegistryError(
                    f"{name}@{version} cannot be deleted: {' and '.join(pointing)} {verb} to it: point {what} to "
                    "another model first"
                )
            connection.execute(update(models).where(models.c.id == row.id).values(deleted=tables.now()))
            _record(connection, "deleted", name=name, version=version, digest=row.digest)

    def collect(self, *, dry_run: bool = False) -> Collected:
        """Free the contents that no version needs; with `dry_run`, only count them.

        Raises:
            RegistryError: another database may use the same files, or they cannot be removed.
        """
        with self._database.reading() as connection:
            there = bool(connection.scalar(select(func.count()).select_from(models)))
        if not there:
            return Collected(contents=0, size=0)
        with self._database.explained():
            self._refuse_if_shared()
            if dry_run:
                with self._database.reading() as connection:
                    return self._store.unneeded(_needed(connection)[0])
            with self._database.writing() as connection:
                self._store.set_aside(*_needed(connection))
            return self._store.empty()

    def _refuse_if_shared(self) -> None:
        """Another database in the same folder stores its files in the same place, and its rows are not known here."""
        others = sorted(path.name for path in self._database.siblings())
        if others:
            raise RegistryError(
                f"{self._store.root} cannot be cleaned up: it may also have the models of {', '.join(others)}, not "
                f"only those of {self._database.path.name}; move each registry to a folder of its own"
            )

    def verify(self, model: ModelVersion) -> Sequence[str]:
        """Read every file of a version again: a line for each that is missing, cut short or changed."""
        wrong = list(self._store.problems(model.files))
        if model_digest(model.files) != model.digest:
            wrong.append(f"its digest is {model.digest}, but its list of files has another: the database was altered")
        return wrong

    def events(self) -> Sequence[RegistryEvent]:
        """The history, oldest first."""
        with self._database.reading() as connection:
            return load_events(connection)

    def folder(self, model: ModelVersion) -> Path:
        """A local folder of links to the model's files in the store; for reading only.

        Raises:
            RegistryError: a file is missing from the store.
        """
        with self._database.explained():
            return self._store.tree(model.digest, model.files)

    def _require(self, name: str, version: int) -> None:
        """Refuse a version that does not exist before a writing transaction would create the database."""
        with self._database.reading() as connection:
            _find(connection, name, version)


def _needed(connection: Connection) -> tuple[set[str], set[str]]:
    """The contents and the trees that versions need."""
    living = models.c.deleted.is_(None)
    contents = select(tables.files.c.sha256).join_from(tables.files, models).where(living)
    return set(connection.scalars(contents)), set(connection.scalars(select(models.c.digest).where(living)))


def _by_fingerprint(connection: Connection, model: NewModel) -> ModelVersion | None:
    found = load_versions(connection, models.c.name == model.name, models.c.fingerprint == model.fingerprint)
    return found[0] if found else None


def _insert(
    connection: Connection, model: NewModel, values: Mapping[str, Any], digest: str, files: Sequence[ModelFile]
) -> ModelVersion:
    highest = connection.scalar(select(func.max(models.c.version)).where(models.c.name == model.name)) or 0
    added = connection.execute(
        insert(models)
        .values(**values, version=highest + 1, digest=digest, created=tables.now())
        .returning(models.c.id, models.c.version)
    ).one()
    connection.execute(
        insert(tables.files),
        [{"model_id": added.id, "path": file.path, "sha256": file.sha256, "size": file.size} for file in files],
    )
    if model.tags:
        connection.execute(
            insert(tables.tags),
            [{"model_id": added.id, "key": key, "value": value} for key, value in model.tags.items()],
        )
    _record(connection, "added", name=model.name, version=added.version, digest=digest)
    return load_versions(connection, models.c.id == added.id)[0]


class _Found(NamedTuple):
    id: int
    digest: str


def _find(connection: Connection, name: str, version: int | None) -> _Found:
    """The row of a version that is not deleted, the newest by default."""
    if not is_text(name):
        raise ModelNotFoundError(f"there is no model {name!r}")
    columns = (models.c.id, models.c.version, models.c.digest, models.c.deleted)
    rows = connection.execute(select(*columns).where(models.c.name == name).order_by(models.c.version.desc())).all()
    living = [row for row in rows if row.deleted is None]
    for row in living:
        if version in (None, row.version):
            return _Found(row.id, row.digest)
    if not living:
        raise ModelNotFoundError(f"there is no model {name!r}")
    deleted = [row.deleted for row in rows if row.version == version]
    when = f": it was deleted on {deleted[0][:10]}" if deleted else ""
    raise ModelNotFoundError(f"there is no version {version} of {name!r}{when}")


def _record(connection: Connection, kind: str, **data: Any) -> None:
    connection.execute(
        insert(tables.events).values(time=tables.now(), kind=kind, data=tables.to_json("an event", data))
    )
