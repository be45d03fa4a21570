"""An SQLite file as a registry's database: opening it, its schema, its transactions, and errors in one clear line.

The journal mode is DELETE: WAL needs shared memory, which shared file systems of clusters do not have. A connection is
opened for each transaction, so that none outlives a fork or hides that the file was replaced.
"""

from __future__ import annotations

import contextlib
import sqlite3
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, func, insert, inspect, select
from sqlalchemy.exc import DBAPIError

from modelwright.core.api.errors import RegistryError, UsageError
from modelwright.core.api.wording import listed
from modelwright.plugins.registries.tables import SCHEMA, metadata, schema_version

# Seconds to wait for another process's transaction.
BUSY_TIMEOUT = 30.0

# How every SQLite file begins, see https://www.sqlite.org/fileformat.html
_MAGIC = b"SQLite format 3\0"

_EXPECTED = "expected sqlite:////absolute/path/registry.db or sqlite:///relative.db"


def database_path(url: str) -> Path:
    """The absolute path of the database in a URL.

    Raises:
        UsageError: the URL has none.
    """
    prefix = "sqlite:///"
    name = url.removeprefix(prefix)
    if not url.startswith(prefix) or "\0" in name:
        raise UsageError(f"registry {url!r}: {_EXPECTED}")
    if name in ("", "/") or name.endswith("/") or name.startswith(":memory:"):
        raise UsageError(f"registry {url!r} has no file name: {_EXPECTED}")
    return Path(name).absolute()


class Database:
    """The database file at `path`, which need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = _engine(partial(self._connect, "rw"), "BEGIN")
        self._writer = _engine(partial(self._connect, "rwc"), "BEGIN IMMEDIATE")
        self._nothing = _engine(partial(sqlite3.connect, ":memory:", isolation_level=None), "BEGIN")

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads. Nothing is created: a registry that does not exist reads as empty.

        Raises:
            RegistryError: the database cannot be read.
        """
        with self.explained():
            if self._exists():
                with self._reader.begin() as connection:
                    if self._has_schema(connection):
                        yield connection
                        return
            with self._nothing.begin() as connection:
                metadata.create_all(connection, checkfirst=False)
                yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that writes. It takes the lock first, so what it reads stays true until its end.

        The file and its tables are created if they do not exist.

        Raises:
            RegistryError: the database cannot be written.
        """
        with self.explained():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._writer.begin() as connection:
                if not self._has_schema(connection):
                    metadata.create_all(connection, checkfirst=False)
                    connection.execute(insert(schema_version).values(version=SCHEMA))
                yield connection

    def _exists(self) -> bool:
        try:
            mode = self.path.stat().st_mode
        except FileNotFoundError:
            return False
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise RegistryError(f"registry {self.path} is not a regular file: use another one")
        return True

    def siblings(self) -> Iterator[Path]:
        """Other SQLite files in the same folder."""
        for path in self.path.parent.iterdir():
            if path.is_file() and not path.samefile(self.path):
                with path.open("rb") as file:
                    if file.read(len(_MAGIC)) == _MAGIC:
                        yield path

    def _connect(self, mode: Literal["rw", "rwc"]) -> sqlite3.Connection:
        # "rw" creates nothing, and falls back to reading if the file is not writable. ("ro" could not roll back the
        # changes of a killed writer.) Without an isolation level sqlite3 begins no transactions of its own.
        connection = sqlite3.connect(
            f"file:{quote(str(self.path))}?mode={mode}", uri=True, timeout=BUSY_TIMEOUT, isolation_level=None
        )
        try:
            for pragma in ("journal_mode = DELETE", "synchronous = EXTRA", "foreign_keys = ON"):
                connection.execute(f"PRAGMA {pragma}")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _has_schema(self, connection: Connection) -> bool:
        tables = inspect(connection).get_table_names()
        if not tables:
            return False
        if schema_version.name not in tables:
            raise RegistryError(
                f"{self.path} is an SQLite database, but not a registry (its tables: {listed(tables, 5)}): "
                f"use another file"
            )
        version = connection.execute(select(func.max(schema_version.c.version))).scalar()
        missing = sorted(metadata.tables.keys() - set(tables))
        if not isinstance(version, int) or (version == SCHEMA and missing):
            what = f"it has no table {missing[0]!r}" if missing else "its schema version is missing"
            raise RegistryError(f"registry {self.path} is damaged: {what}; restore it from a backup")
        if version < SCHEMA:
            raise RegistryError(
                f"registry {self.path} was written by an older Modelwright (schema {version}, expected {SCHEMA}): "
                f"register its models again in a new registry"
            )
        if version > SCHEMA:
            raise RegistryError(
                f"registry {self.path} was written by a newer Modelwright (schema {version}, expected {SCHEMA}): "
                f"upgrade with pip install --upgrade modelwright"
            )
        return True

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turn errors of SQLite and the file system into one clear line.

        Raises:
            RegistryError: the line.
        """
        try:
            yield
        except DBAPIError as error:
            raise RegistryError(f"registry {self.path} {self._reason(error.orig)}") from error
        except OSError as error:
            raise RegistryError(
                f"registry {self.path} cannot be used: {error.strerror or error}: {error.filename or self.path}"
            ) from error

    def _reason(self, error: Any) -> str:
        if self.path.is_dir():
            return "is a folder: expected an SQLite file, or the name of a new one"
        name = getattr(error, "sqlite_errorname", "")
        for prefix, reason in _REASONS.items():
            if name.startswith(prefix):
                return reason
        return f"failed: {error}"


# By the beginning of SQLite's error names, see https://www.sqlite.org/rescode.html
_REASONS = {
    "SQLITE_NOTADB": "is not an SQLite database: use another file",
    "SQLITE_CORRUPT": "is damaged: restore it from a backup",
    "SQLITE_READONLY": "is read-only: check the permissions of the file and of its folder",
    "SQLITE_CANTOPEN": "cannot be opened: check that the file and its folder are readable and writable",
    "SQLITE_PERM": "cannot be opened: check its permissions",
    "SQLITE_BUSY": f"is locked: another process has been writing to it for {BUSY_TIMEOUT:.0f} s; try again",
    "SQLITE_FULL": "cannot be written: the disk is full",
    "SQLITE_IOERR": "cannot be read or written: the file system reports an error",
}


def _engine(connect: Callable[[], sqlite3.Connection], begin: str) -> Engine:
    engine = create_engine(URL.create("sqlite"), creator=connect, poolclass=NullPool)

    @event.listens_for(engine, "begin")
    def begin_transaction(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine
