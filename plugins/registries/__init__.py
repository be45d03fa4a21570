"""The built-in registries."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import field, frozen, validators

from modelwright.core.api.components import RegistrySpec
from modelwright.core.api.hooks import hookimpl


@frozen(kw_only=True)
class SqlOptions:
    """The options of the `sql` registry.

    Attributes:
        url: `sqlite:////absolute/path/registry.db`, or `sqlite:///relative.db` relative to the working directory. The
            text after the third slash is used as a path without decoding.
    """

    url: str = field(validator=validators.instance_of(str))


@hookimpl
def modelwright_registries() -> Iterable[RegistrySpec]:
    """The registry in an SQLite file."""
    yield RegistrySpec(
        name="sql",
        summary="an SQLite file, with the models' files beside it, stored by content",
        schemes=("sqlite",),
        options=SqlOptions,
        factory="modelwright.plugins.registries.sql:SqlRegistry",
    )
