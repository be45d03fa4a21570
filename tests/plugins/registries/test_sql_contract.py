from functools import partial

import pytest

from modelwright.core.testing.registry import RegistryContract
from modelwright.plugins.registries import SqlOptions
from modelwright.plugins.registries.sql import SqlRegistry


class TestSqlRegistry(RegistryContract):
    """The SQL registry keeps every promise of a registry."""

    @pytest.fixture
    def connect(self, tmp_path):
        """A database in a folder that is still to be made."""
        return partial(SqlRegistry, SqlOptions(url=f"sqlite:///{tmp_path}/home/registry.db"))
