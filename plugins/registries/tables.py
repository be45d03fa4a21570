"""The tables of the SQL registry, and reading their rows as the records of the contract."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Row,
    Select,
    String,
    Table,
    Text,
    UniqueConstraint,
    select,
)

from modelwright.core.api.errors import RegistryError
from modelwright.core.api.records import Figure
from modelwright.core.api.registry import Alias, ModelFile, ModelVersion, NewModel, RegistryEvent, is_text

# Increase it with every change of a table, and migrate older databases.
SCHEMA = 1

metadata = MetaData()

schema_version = Table("schema_version", metadata, Column("version", Integer, primary_key=True))

# A deleted version keeps its row, so that its number is not used again.
models = Table(
    "models",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("digest", String, nullable=False),
    Column("created", String, nullable=False),
    Column("deleted", String),
    Column("fingerprint", String, nullable=False),
    Column("base", Text, nullable=False),
    Column("parent", String),
    Column("code_version", String, nullable=False),
    Column("config", Text, nullable=False),
    Column("data", Text, nullable=False),
    Column("environment", Text, nullable=False),
    Column("training", Text, nullable=False),
    UniqueConstraint("name", "version"),
)
Index(
    "one_version_a_fingerprint",
    models.c.name,
    models.c.fingerprint,
    unique=True,
    sqlite_where=models.c.deleted.is_(None),
)

files = Table(
    "files",
    metadata,
    Column("model_id", ForeignKey(models.c.id), primary_key=True),
    Column("path", Text, primary_key=True),
    Column("sha256", String, nullable=False),
    Column("size", Integer, nullable=False),
)

tags = Table(
    "tags",
    metadata,
    Column("model_id", ForeignKey(models.c.id), primary_key=True),
    Column("key", String, primary_key=True),
    Column("value", Text, nullable=False),
)

metrics = Table(
    "metrics",
    metadata,
    Column("model_id", ForeignKey(models.c.id), primary_key=True),
    Column("suite", String, primary_key=True),
    Column("metric", String, primary_key=True),
    Column("value", Float, nullable=False),
    Column("low", Float, nullable=False),
    Column("high", Float, nullable=False),
    Column("n", Integer, nullable=False),
)

aliases = Table(
    "aliases",
    metadata,
    Column("alias", String, primary_key=True),
    Column("model_id", ForeignKey(models.c.id), nullable=False),
    Column("generation", Integer, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("time", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("data", Text, nullable=False),
)


def now() -> str:
    """The time as it is stored: ISO 8601, UTC, microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def to_json(what: str, value: Any) -> str:
    """Write `value` as JSON.

    Raises:
        RegistryError: it is not JSON; the message calls it `what`.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")  # refuses lone surrogates before the database does
    except (TypeError, ValueError) as error:
        raise RegistryError(f"{what} cannot be stored: expected JSON values, got {value!r:.200} ({error})") from error
    return text


def model_values(model: NewModel) -> dict[str, Any]:
    """The columns of `models` that come from the model itself.

    Raises:
        RegistryError: a mapping is not JSON, or a string is not text.
    """
    values = {key: getattr(model, key) for key in ("name", "fingerprint", "base", "parent", "code_version")}
    for key, value in values.items():
        if value is not None and not is_text(value):
            raise RegistryError(f"the model's {key} cannot be stored: expected text without NUL, got {value!r:.200}")
    for key in ("config", "data", "environment", "training"):
        values[key] = to_json(f"the model's {key}", dict(getattr(model, key)))
    return values


def load_versions(connection: Connection, *conditions: Any) -> list[ModelVersion]:
    """Every version that is not deleted and meets the conditions on `models`; by name, then version."""
    where = (models.c.deleted.is_(None), *conditions)
    rows = connection.execute(select(models).where(*where).order_by(models.c.name, models.c.version)).all()

    def parts(table: Table, *order: Column[Any]) -> Mapping[int, Sequence[Row[Any]]]:
        query: Select[Any] = select(table).join(models).where(*where).order_by(*order)
        grouped: dict[int, list[Row[Any]]] = defaultdict(list)
        for row in connection.execute(query):
            grouped[row.model_id].append(row)
        return grouped

    parts_of = {
        "files": parts(files, files.c.path),
        "tags": parts(tags, tags.c.key),
        "metrics": parts(metrics, metrics.c.suite, metrics.c.metric),
        "aliases": parts(aliases, aliases.c.alias),
    }
    return [_readable(row, {name: grouped.get(row.id, ()) for name, grouped in parts_of.items()}) for row in rows]


def _readable(row: Row[Any], parts: Mapping[str, Sequence[Row[Any]]]) -> ModelVersion:
    try:
        return _version(row, parts)
    except (TypeError, ValueError) as error:
        raise RegistryError(
            f"the registry is damaged: the row of {row.name!r}@{row.version} cannot be read ({error}); restore it from "
            f"a backup"
        ) from error


def _version(row: Row[Any], parts: Mapping[str, Sequence[Row[Any]]]) -> ModelVersion:
    return ModelVersion(
        name=row.name,
        version=row.version,
        digest=row.digest,
        created=datetime.fromisoformat(row.created),
        model=NewModel(
            name=row.name,
            fingerprint=row.fingerprint,
            base=row.base,
            parent=row.parent,
            config=json.loads(row.config),
            data=json.loads(row.data),
            environment=json.loads(row.environment),
            code_version=row.code_version,
            training=json.loads(row.training),
            tags={tag.key: tag.value for tag in parts["tags"]},
        ),
        files=tuple(ModelFile(path=file.path, sha256=file.sha256, size=file.size) for file in parts["files"]),
        aliases=tuple(alias.alias for alias in parts["aliases"]),
        metrics=_metric_table(parts["metrics"]),
    )


def _metric_table(rows: Iterable[Row[Any]]) -> dict[str, dict[str, Figure]]:
    table: dict[str, dict[str, Figure]] = {}
    for row in rows:
        table.setdefault(row.suite, {})[row.metric] = Figure(value=row.value, low=row.low, high=row.high, n=row.n)
    return table


def load_alias(connection: Connection, alias: str) -> Alias | None:
    """Where an alias points, if it exists."""
    query = (
        select(aliases.c.alias, models.c.name, models.c.version, aliases.c.generation)
        .join_from(aliases, models)
        .where(aliases.c.alias == alias)
    )
    row = connection.execute(query).one_or_none()
    return row and Alias(alias=row.alias, name=row.name, version=row.version, generation=row.generation)


def load_events(connection: Connection) -> list[RegistryEvent]:
    """The history, oldest first."""
    return [
        RegistryEvent(time=datetime.fromisoformat(row.time), kind=row.kind, data=json.loads(row.data))
        for row in connection.execute(select(events).order_by(events.c.id))
    ]
