"""Fixtures for the registry contract, and its tests of changing what is there: tags, deletion, collection, checks."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from attrs import evolve

from modelwright.core.api.components import Registry
from modelwright.core.api.errors import ModelNotFoundError, RegistryError, UsageError
from modelwright.core.api.registry import Collected, ModelVersion, NewModel

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
    """An empty registry for each test, and one model in it."""

    @pytest.fixture
    def connect(self) -> Connect:
        """A function that opens the same storage each time; it is empty when a test begins."""
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


class UpkeepContract(RegistryFixtures):
    """Inherited by `RegistryContract`."""

    # Tags

    def test_tags_are_set_one_by_one(self, registry: Registry, connect: Connect, added: ModelVersion) -> None:
        """Added, changed and removed in one call; the others stay, and the updated version is returned."""
        changed = registry.set_tags("math", 1, {"team": "vision", "note": None, "größe": "", "never-there": None})
        assert dict(changed.model.tags) == {"team": "vision", "größe": ""}
        assert connect().get("math") == changed
        assert evolve(changed, model=new_model()) == added

    def test_tags_belong_to_one_version(self, registry: Registry, added: ModelVersion, model_folder: Path) -> None:
        """Another version keeps its own."""
        next_one = registry.add(new_model(fingerprint="next"), model_folder)
        registry.set_tags("math", 1, {"team": None, "note": None})
        assert dict(registry.get("math", 1).model.tags) == {}
        assert registry.get("math", 2) == next_one

    def test_a_changed_tag_is_in_the_history(self, registry: Registry, added: ModelVersion) -> None:
        """With the changes, None for removed tags; without a change there is no event."""
        registry.set_tags("math", 1, {"team": "vision", "note": None})
        registry.set_tags("math", 1, {"team": "vision", "note": None})
        registry.set_tags("math", 1, {})
        [event] = [event for event in registry.events() if event.kind == "tags"]
        assert dict(event.data) == {"name": "math", "version": 1, "tags": {"team": "vision", "note": None}}

    def test_a_model_is_found_again_although_its_tags_were_changed(
        self, registry: Registry, added: ModelVersion, model_folder: Path
    ) -> None:
        """A version is identified by what it was registered with, not by later tags, which stay."""
        changed = registry.set_tags("math", 1, {"team": "vision"})
        assert registry.add(new_model(), model_folder) == changed
        assert [version.address for version in registry.find()] == ["math@1"]

    @pytest.mark.parametrize(
        ("key", "value"),
        [("", "x"), ("a=b", "x"), ("a\nb", "x"), (" a", "x"), ("k" * 201, "x"), ("\ud800", "x"), ("k", "\0")],
    )
    def test_a_tag_that_could_not_be_shown_is_refused(
        self, registry: Registry, added: ModelVersion, model_folder: Path, key: str, value: str
    ) -> None:
        """Whether it is set later or registered with a model; nothing changes."""
        with pytest.raises(UsageError, match="tag"):
            registry.set_tags("math", 1, {"team": "vision", key: value})
        with pytest.raises(UsageError, match="tag"):
            registry.add(evolve(new_model(fingerprint="next"), tags={key: value}), model_folder)
        assert registry.find() == [added]

    # Deleting

    def test_a_deleted_number_is_not_used_again(self, registry: Registry, model_folder: Path) -> None:
        """`math@2` never becomes another model, not even the same model added again."""
        for fingerprint in ("a", "b"):
            registry.add(new_model(fingerprint=fingerprint), model_folder)
        registry.delete("math", 2)
        assert [version.version for version in registry.find("math")] == [1]
        assert registry.get("math").version == 1
        with pytest.raises(ModelNotFoundError):
            registry.get("math", 2)
        with pytest.raises(ModelNotFoundError):
            registry.delete("math", 2)
        assert registry.add(new_model(fingerprint="b"), model_folder).version == 3

    def test_a_version_is_not_deleted_under_an_alias(self, registry: Registry, added: ModelVersion) -> None:
        """The error names the aliases that point to it."""
        registry.set_alias("production", "math", 1)
        with pytest.raises(RegistryError, match="production"):
            registry.delete("math", 1)
        assert registry.get("math").version == 1

    def test_deleting_leaves_models_with_equal_files_whole(self, registry: Registry, model_folder: Path) -> None:
        """Contents may be shared, but a deletion must not remove files of another model."""
        for fingerprint in ("a", "b"):
            registry.add(new_model(fingerprint=fingerprint), model_folder)
        registry.delete("math", 1)
        assert (registry.folder(registry.get("math", 2)) / "model.safetensors").read_bytes() == b"weights"

    def test_collecting_leaves_what_versions_need(
        self, registry: Registry, connect: Connect, added: ModelVersion, tmp_path: Path
    ) -> None:
        """After deletions, every remaining version is complete, whether its contents were shared or not."""
        other = registry.add(new_model(fingerprint="b"), write_model(tmp_path / "b", b"other weights"))
        registry.add(new_model(fingerprint="c"), write_model(tmp_path / "c", b"more weights"))
        registry.delete("math", 1)
        registry.delete("math", 3)
        connect().collect()
        assert list(registry.verify(other)) == []
        assert (registry.folder(other) / "model.safetensors").read_bytes() == b"other weights"
        assert registry.find() == [other]

    def test_what_would_be_freed_is_counted_and_left(self, registry: Registry, added: ModelVersion) -> None:
        """A dry run frees nothing and counts what the next collection frees; after that nothing is left to free."""
        assert registry.collect(dry_run=True) == Collected(contents=0, size=0)
        registry.delete("math", 1)
        counted = registry.collect(dry_run=True)
        assert registry.collect(dry_run=True) == counted == registry.collect()
        assert registry.collect() == Collected(contents=0, size=0)

    def test_a_model_may_come_back_after_a_collection(
        self, registry: Registry, added: ModelVersion, model_folder: Path
    ) -> None:
        """Registered again, it is complete and has a new number."""
        registry.delete("math", 1)
        registry.collect()
        again = registry.add(new_model(), model_folder)
        assert again.version == 2
        assert list(registry.verify(again)) == []
        assert (registry.folder(again) / "model.safetensors").read_bytes() == b"weights"

    def test_models_that_come_while_others_collect_are_whole(self, connect: Connect, tmp_path: Path) -> None:
        """Contents of a deleted version that a new version needs are not freed."""
        folder = write_model(tmp_path / "shared")

        def add_and_delete(number: int) -> ModelVersion:
            registry = connect()
            first = registry.add(new_model(f"m{number}", "first"), folder)
            registry.delete(first.name, first.version)
            return registry.add(new_model(f"m{number}", "second"), folder)

        with ThreadPoolExecutor(4) as pool:
            collections = [pool.submit(lambda: connect().collect()) for _ in range(8)]
            versions = list(pool.map(add_and_delete, range(8)))
            for collection in collections:
                collection.result()
        for version in versions:
            assert list(connect().verify(version)) == []
            assert (connect().folder(version) / "model.safetensors").read_bytes() == b"weights"

    def test_a_model_as_it_was_has_no_problems(self, registry: Registry, connect: Connect, added: ModelVersion) -> None:
        """Reading all files again finds no difference."""
        assert list(registry.verify(added)) == []
        assert list(connect().verify(added)) == []
