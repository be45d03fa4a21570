"""Models to register in the contract tests of registries, and the fixtures that these tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from modelwright.core.api.components import Registry
from modelwright.core.api.registry import ModelVersion, NewModel

Connect = Callable[[], Registry]


def new_model(name: str = "math", fingerprint: str = "first") -> NewModel:
    """A model about to be registered, every field of it filled."""
    return NewModel(
        name=name,
        fingerprint=fingerprint,
        base="scratch",
        parent="older@1",
        config={"seed": 17, "train": {"learning_rate": 5e-3, "epochs": None}, "names": ["ä", "数"]},
        data={"/data/train.jsonl": "ab" * 32},
        environment={"python": "3.11.7 (CPython)"},
        code_version="0.1.0",
        training={"steps": 600, "loss": 0.125},
        tags={"team": "nlp", "note": 'it\'s "quoted"'},
    )


def write_model(folder: Path, weights: bytes = b"weights") -> Path:
    """A folder that looks like a model's: three files, one of them in a folder of its own."""
    (folder / "templates").mkdir(parents=True)
    (folder / "config.json").write_text("{}\n")
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "templates" / "chat.jinja").write_text("{{ messages }}\n")
    return folder


class RegistryFixtures:
    """A registry that is empty at a test's beginning, and one model in it."""

    @pytest.fixture
    def connect(self) -> Connect:
        """A function that opens the same storage anew each time, empty at the test's beginning."""
        pytest.fail(f"{type(self).__name__} must define the fixture `connect`")

    @pytest.fixture
    def registry(self, connect: Connect) -> Registry:
        """The registry under test."""
        return connect()

    @pytest.fixture
    def model_folder(self, tmp_path: Path) -> Path:
        """A model's folder."""
        return write_model(tmp_path / "trained")

    @pytest.fixture
    def added(self, registry: Registry, model_folder: Path) -> ModelVersion:
        """`math@1`."""
        return registry.add(new_model(), model_folder)
