"""The contract of registry backends, as tests that a backend's author inherits.

    from modelwright.core.testing.registry import RegistryContract

    class TestMyRegistry(RegistryContract):
        @pytest.fixture
        def connect(self, tmp_path):
            return lambda: MyRegistry(MyOptions(url=f"mine:///{tmp_path}"))

`pytest.register_assert_rewrite("modelwright.core.testing")` in a conftest.py makes failures show their values.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from attrs import evolve

from modelwright.core.api.components import Registry
from modelwright.core.api.errors import AliasConflictError, ModelNotFoundError, RegistryError, UsageError
from modelwright.core.api.records import Figure, wilson
from modelwright.core.api.registry import Alias, ModelVersion, model_digest
from modelwright.core.testing.registry_upkeep import Connect, UpkeepContract, new_model, write_model

__all__ = ["Connect", "RegistryContract", "new_model", "write_model"]


class RegistryContract(UpkeepContract):
    """Inherit it in a class `Test…` and define the fixture `connect`; each failing test is a broken promise."""

    # Adding and reading

    def test_is_a_registry(self, registry: Registry) -> None:
        """It has every method of the protocol."""
        assert isinstance(registry, Registry)

    def test_what_was_added_is_read_back_whole(self, connect: Connect, added: ModelVersion) -> None:
        """Another connection finds every field of the model, its files and its digest."""
        read = connect().get("math", 1)
        assert read == added
        assert read.model == new_model()
        assert (read.name, read.version, read.address) == ("math", 1, "math@1")
        assert [file.path for file in read.files] == ["config.json", "model.safetensors", "templates/chat.jinja"]
        weights = read.files[1]
        assert (weights.sha256, weights.size) == (hashlib.sha256(b"weights").hexdigest(), len(b"weights"))
        assert read.digest == model_digest(read.files)
        assert (read.aliases, dict(read.metrics)) == ((), {})

    def test_created_is_the_time_in_utc(self, added: ModelVersion) -> None:
        """The time of registration has a time zone."""
        assert added.created.utcoffset() == timedelta(0)
        assert abs(datetime.now(UTC) - added.created) < timedelta(minutes=5)

    def test_versions_count_from_one_for_each_name(self, registry: Registry, model_folder: Path) -> None:
        """Each name has its own numbers, without gaps."""
        for fingerprint in ("a", "b", "c"):
            registry.add(new_model("math", fingerprint), model_folder)
        registry.add(new_model("general", "a"), model_folder)
        assert [version.address for version in registry.find()] == ["general@1", "math@1", "math@2", "math@3"]
        assert [version.address for version in registry.find("math")] == ["math@1", "math@2", "math@3"]
        assert registry.get("math").version == 3
        assert registry.get("math", 2).model.fingerprint == "b"

    def test_versions_are_ordered_as_numbers(self, registry: Registry, model_folder: Path) -> None:
        """Version 10 comes after version 9."""
        for number in range(11):
            registry.add(new_model(fingerprint=str(number)), model_folder)
        assert [version.version for version in registry.find("math")] == list(range(1, 12))
        assert registry.get("math").version == 11

    def test_adding_again_gives_what_is_there(
        self, registry: Registry, connect: Connect, added: ModelVersion, tmp_path: Path
    ) -> None:
        """The same name and fingerprint are one registration, even if the folder has changed."""
        assert connect().add(new_model(), write_model(tmp_path / "again", b"other")) == added
        assert [version.address for version in registry.find()] == ["math@1"]
        assert [event.kind for event in registry.events()] == ["added"]

    def test_the_digest_depends_on_paths_and_contents_only(self, registry: Registry, tmp_path: Path) -> None:
        """Equal files have the same digest under any name; one changed byte gives another digest."""
        first = registry.add(new_model("a"), write_model(tmp_path / "a"))
        same = registry.add(new_model("b"), write_model(tmp_path / "b"))
        other = registry.add(new_model("c"), write_model(tmp_path / "c", b"Weights"))
        assert first.digest == same.digest != other.digest

    def test_adding_from_many_threads_leaves_no_gap(self, connect: Connect, model_folder: Path) -> None:
        """Concurrent connections get the numbers 1 to n."""

        def add(number: int) -> int:
            return connect().add(new_model(fingerprint=str(number)), model_folder).version

        with ThreadPoolExecutor(4) as pool:
            assert sorted(pool.map(add, range(8))) == list(range(1, 9))

    # What may not be registered

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "optimizer.pt", "state.PTH", "sub/args.pkl"])
    def test_pickled_weights_are_refused(self, registry: Registry, model_folder: Path, name: str) -> None:
        """Loading them would run code: the error names the file and what to write instead."""
        (model_folder / name).parent.mkdir(exist_ok=True)
        (model_folder / name).write_bytes(b"x")
        with pytest.raises(RegistryError, match=r"pickled.*safetensors"):
            registry.add(new_model(), model_folder)
        assert registry.find() == []

    def test_links_are_refused(self, registry: Registry, model_folder: Path, tmp_path: Path) -> None:
        """A link to a file or a folder could point anywhere later."""
        (tmp_path / "outside").mkdir()
        for target in (tmp_path / "outside", model_folder / "config.json"):
            (model_folder / "link").symlink_to(target)
            with pytest.raises(RegistryError, match="link"):
                registry.add(new_model(), model_folder)
            (model_folder / "link").unlink()
        assert registry.find() == []

    def test_a_missing_or_empty_folder_is_refused(self, registry: Registry, tmp_path: Path) -> None:
        """No version without files."""
        (tmp_path / "empty").mkdir()
        for folder in (tmp_path / "missing", tmp_path / "empty"):
            with pytest.raises(RegistryError, match=folder.name):
                registry.add(new_model(), folder)
        assert registry.find() == []

    def test_values_that_are_not_json_are_refused(self, registry: Registry, model_folder: Path) -> None:
        """NaN and objects could not be read back unchanged; the error names the field."""
        for training in ({"loss": float("nan")}, {"folder": Path("x")}):
            with pytest.raises(RegistryError, match="training"):
                registry.add(evolve(new_model(), training=training), model_folder)
        assert registry.find() == []

    # What is not there

    def test_an_empty_registry_reads_as_empty(self, registry: Registry) -> None:
        """Finding nothing is not an error, but asking for a name is."""
        assert list(registry.find()) == []
        assert list(registry.find("math")) == []
        assert list(registry.events()) == []
        for ask in (lambda: registry.get("math"), lambda: registry.get("math", 1), lambda: registry.resolve("prod")):
            with pytest.raises(ModelNotFoundError):
                ask()

    @pytest.mark.parametrize(("name", "version"), [("maths", 1), ("math", 2), ("math", 0), ("math", 10**30)])
    def test_an_unknown_version_is_not_found(
        self, registry: Registry, added: ModelVersion, name: str, version: int
    ) -> None:
        """Every method with a model's name raises the error, and changes nothing."""
        for ask in (
            lambda: registry.get(name, version),
            lambda: registry.delete(name, version),
            lambda: registry.set_alias("prod", name, version),
            lambda: registry.add_metrics(name, version, "suite", {"metric": wilson(0.5, 10)}),
            lambda: registry.set_tags(name, version, {"team": "vision"}),
        ):
            with pytest.raises(ModelNotFoundError, match=name):
                ask()
        assert [event.kind for event in registry.events()] == ["added"]

    # Aliases

    def test_an_alias_counts_its_moves(self, registry: Registry, connect: Connect, model_folder: Path) -> None:
        """Its generation begins at 1 and grows with each move; pointing to the same version again is not a move."""
        for fingerprint in ("a", "b"):
            registry.add(new_model(fingerprint=fingerprint), model_folder)
        for version, generation in ((1, 1), (2, 2), (2, 2), (1, 3)):
            expected = Alias(alias="production", name="math", version=version, generation=generation)
            assert registry.set_alias("production", "math", version) == expected
            assert connect().resolve("production") == expected
        assert registry.get("math", 1).aliases == ("production",)
        assert registry.get("math", 2).aliases == ()

    def test_a_model_shows_all_its_aliases(self, registry: Registry, added: ModelVersion) -> None:
        """Ordered by name."""
        for alias in ("production", "assistant"):
            registry.set_alias(alias, "math", 1)
        assert registry.get("math").aliases == ("assistant", "production")

    def test_an_alias_moves_only_from_where_it_is_expected(
        self, registry: Registry, connect: Connect, model_folder: Path
    ) -> None:
        """Compare and set: an outdated generation is refused; 0 means that the alias does not exist yet."""
        for fingerprint in ("a", "b"):
            registry.add(new_model(fingerprint=fingerprint), model_folder)
        with pytest.raises(AliasConflictError):
            registry.set_alias("production", "math", 1, expected=1)
        registry.set_alias("production", "math", 1, expected=0)
        connect().set_alias("production", "math", 2, expected=1)
        for stale in (0, 1):
            with pytest.raises(AliasConflictError, match="production"):
                registry.set_alias("production", "math", 1, expected=stale)
        assert (registry.resolve("production").version, registry.resolve("production").generation) == (2, 2)

    def test_one_of_many_wins_a_compare_and_set(self, connect: Connect, added: ModelVersion) -> None:
        """Of several connections that expect no alias, exactly one sets it."""

        def claim(_: int) -> bool:
            try:
                connect().set_alias("leader", "math", 1, expected=0)
            except AliasConflictError:
                return False
            return True

        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(claim, range(8))) == 1

    @pytest.mark.parametrize("alias", ["", "3", "Prod", "a b", "@prod", "-x", "a@1", "a\n"])
    def test_an_alias_has_a_name_that_addresses_can_hold(
        self, registry: Registry, added: ModelVersion, alias: str
    ) -> None:
        """All digits, capitals, spaces and '@' are refused."""
        with pytest.raises(UsageError, match="alias"):
            registry.set_alias(alias, "math", 1)

    # Metrics

    def test_metrics_are_kept_by_suite_and_metric(
        self, registry: Registry, connect: Connect, added: ModelVersion
    ) -> None:
        """Figures are read back exactly; a later one of the same suite and metric replaces the first."""
        first = Figure(value=0.1 + 0.2, low=1 / 3, high=2 / 3, n=1319)
        registry.add_metrics("math", 1, "gsm8k", {"accuracy": first, "exact_match": wilson(0.5, 200)})
        registry.add_metrics("math", 1, "arithmetic", {"exact_match": wilson(1.0, 500)})
        registry.add_metrics("math", 1, "gsm8k", {"exact_match": wilson(0.75, 200)})
        assert connect().get("math").metrics == {
            "gsm8k": {"accuracy": first, "exact_match": wilson(0.75, 200)},
            "arithmetic": {"exact_match": wilson(1.0, 500)},
        }

    def test_metrics_belong_to_one_version(self, registry: Registry, added: ModelVersion, model_folder: Path) -> None:
        """A new version has none."""
        registry.add_metrics("math", 1, "gsm8k", {"accuracy": wilson(0.5, 10)})
        assert dict(registry.add(new_model(fingerprint="next"), model_folder).metrics) == {}

    def test_a_figure_must_be_finite(self, registry: Registry, added: ModelVersion) -> None:
        """NaN cannot be compared, and JSON has no NaN."""
        with pytest.raises(RegistryError, match=r"gsm8k\.accuracy"):
            registry.add_metrics("math", 1, "gsm8k", {"accuracy": Figure(value=float("nan"), low=0.0, high=1.0, n=1)})
        assert dict(registry.get("math").metrics) == {}

    # History and files

    def test_history_is_in_order(
        self, registry: Registry, connect: Connect, added: ModelVersion, model_folder: Path
    ) -> None:
        """One event for each change, oldest first, with its subject."""
        registry.add_metrics("math", 1, "gsm8k", {"accuracy": wilson(0.5, 10)})
        registry.set_alias("production", "math", 1)
        registry.set_tags("math", 1, {"team": "vision"})
        registry.add(new_model("general"), model_folder)
        registry.delete("general", 1)
        events = connect().events()
        assert [event.kind for event in events] == ["added", "metrics", "alias", "tags", "added", "deleted"]
        assert [event.data["name"] for event in events] == ["math"] * 4 + ["general"] * 2
        assert [event.time for event in events] == sorted(event.time for event in events)

    def test_the_folder_holds_the_files_as_they_were(
        self, registry: Registry, connect: Connect, added: ModelVersion, model_folder: Path
    ) -> None:
        """The same paths and bytes as were added, in the same folder each time."""
        expected = {
            path.relative_to(model_folder).as_posix(): path.read_bytes()
            for path in model_folder.rglob("*")
            if path.is_file()
        }
        (model_folder / "config.json").write_text("changed after it was registered")
        for folder in (registry.folder(added), connect().folder(added)):
            found = {
                path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
            }
            assert found == expected
