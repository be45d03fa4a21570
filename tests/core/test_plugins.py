"""Plugin discovery: the broken are isolated, names are settled, nothing heavy is imported."""

from __future__ import annotations

import json

import pytest

from modelwright.core.api.components import FormatSpec, MetricSpec, RegistrySpec
from modelwright.core.api.errors import MissingDependencyError, ModelwrightError, UsageError
from modelwright.core.plugins import discover

GOOD = """
    from modelwright import MetricSpec, hookimpl

    @hookimpl
    def modelwright_metrics():
        yield MetricSpec(name="brevity", summary="short is good", factory="good_plugin:Brevity")

    class Brevity:
        def __init__(self, options):
            self.options = options
"""


def _found(plugins, name):
    return next(plugin for plugin in plugins.found if plugin.plugin == name)


def test_a_package_with_an_entry_point_adds_its_components(install_plugin):
    """Installing is all that a plugin takes."""
    install_plugin("good-plugin", GOOD)
    plugins = discover()
    spec = plugins.get(MetricSpec, "brevity")
    assert type(spec.create()).__name__ == "Brevity"
    assert plugins.origin(spec) == "good-plugin 1.0"


def test_the_built_in_plugins_all_load():
    """Built-ins come in by the same door, and none of them is broken."""
    plugins = discover()
    assert {(p.plugin, p.status) for p in plugins.found if p.distribution == "modelwright"} == {
        (name, "loaded") for name in ("formats", "trainers", "metrics", "registries", "engines")
    }


@pytest.mark.parametrize(
    "source",
    [
        "import no_such_module",
        "raise SystemError('kaput')",
        "import sys; sys.exit('no')",
            """
            from modelwright import hookimpl
            @hookimpl
            def modelwright_metrics():
                return 5
            """,
            """
            from modelwright import FormatSpec, hookimpl
            @hookimpl
            def modelwright_metrics():
                return [FormatSpec(name="f", summary="", factory="a:b")]
            """,
            """
            from modelwright import hookimpl
            @hookimpl
            def modelwright_metric():
                return []
            """,
            """
            from modelwright import MetricSpec, hookimpl
            @hookimpl
            def modelwright_metrics(config):
                return [MetricSpec(name="m", summary="", factory="a:b")]
            """,
            """
            from modelwright import MetricSpec, hookimpl
            @hookimpl
            def modelwright_metrics():
                return [MetricSpec(name="Bad Name", summary="", factory="a:b")]
            """,
            """
            from modelwright import MetricSpec, hookimpl
            @hookimpl
            def modelwright_metrics():
                return [MetricSpec(name="m", summary="", factory="a:b", api=2)]
            """,
            """
            from modelwright import MetricSpec, hookimpl
            @hookimpl
            def modelwright_metrics():
                return [MetricSpec(name="m", summary="", factory="a:b")] * 2
            """,
        "x = 1",
    ],
    ids=[
        "import error", "raises", "exits", "no iterable", "wrong descriptor", "misspelt hook", "wrong signature",
        "bad name", "other contract", "name twice", "no hooks",
    ],
)  # fmt: skip
def test_a_broken_plugin_is_recorded_and_stops_nothing_else(install_plugin, wording, source):
    """The failure names distribution, version, entry point and error; others work on."""
    install_plugin("bad-plugin", source, version="2.3")
    install_plugin("good-plugin", GOOD)
    plugins = discover()
    bad = _found(plugins, "bad_plugin")
    assert (bad.status, bad.distribution, bad.version, bad.components) == ("failed", "bad-plugin", "2.3", ())
    assert "bad_plugin" in bad.error
    assert "\n" not in bad.error
    wording(bad.error)
    plugins.get(MetricSpec, "brevity")


def test_strict_mode_raises_the_plugins_own_error(install_plugin, monkeypatch):
    """MODELWRIGHT_STRICT_PLUGINS=1 is for plugin authors: it shows the traceback."""
    install_plugin("bad-plugin", "import no_such_module")
    monkeypatch.setenv("MODELWRIGHT_STRICT_PLUGINS", "1")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        discover()


@pytest.mark.parametrize("way", ["environment", "argument", "distribution"])
def test_a_disabled_plugin_is_not_even_imported(install_plugin, monkeypatch, tmp_path, way):
    """Disabling is how a plugin that crashes the interpreter is kept out."""
    witness = tmp_path / "imported"
    install_plugin("loud-plugin", f"open({str(witness)!r}, 'w')")
    if way == "environment":
        monkeypatch.setenv("MODELWRIGHT_DISABLE_PLUGINS", "other, loud_plugin")
    disable = {"environment": (), "argument": ["loud_plugin"], "distribution": ["Loud.Plugin"]}[way]
    plugins = discover(disable=disable)
    assert _found(plugins, "loud_plugin").status == "disabled"
    assert not witness.exists()


def test_two_providers_of_a_name_are_an_error_only_when_it_is_used(install_plugin, wording):
    """The message names both, and the line that settles it."""
    install_plugin("good-plugin", GOOD)
    install_plugin("other-plugin", GOOD.replace("good_plugin", "other_plugin"))
    plugins = discover()
    assert plugins.conflicts(_found(plugins, "good_plugin")) == ["metric.brevity: also from other-plugin 1.0"]
    with pytest.raises(UsageError) as caught:
        plugins.get(MetricSpec, "brevity")
    wording(caught.value)
    with pytest.raises(UsageError) as caught:
        discover(prefer={"metric.brevity": "third-plugin"}).get(MetricSpec, "brevity")
    wording(caught.value)
    settled = discover(prefer={"metric.brevity": "other-plugin"})
    assert settled.get(MetricSpec, "brevity").factory == "other_plugin:Brevity"


def test_an_unknown_name_says_what_there_is_and_who_failed(install_plugin, wording):
    """A failed plugin may own the name that is missed."""
    install_plugin("bad-plugin", "import no_such_module")
    with pytest.raises(UsageError) as caught:
        discover().get(FormatSpec, "mth")
    wording(caught.value)


def test_a_registry_is_found_by_its_scheme(wording):
    """An unknown scheme names those that there are."""
    plugins = discover()
    assert "sqlite" in plugins.registry_for("sqlite").schemes
    with pytest.raises(UsageError) as caught:
        plugins.registry_for("ftp")
    wording(caught.value)
    assert isinstance(plugins.registry_for("sqlite"), RegistrySpec)


def test_a_factory_that_cannot_be_imported_says_what_to_install(install_plugin, wording):
    """`needs` is for that."""
    install_plugin("good-plugin", GOOD)
    lacking = MetricSpec(name="m", summary="", factory="no_such_package.module:M", needs="no-such-package>=2")
    with pytest.raises(MissingDependencyError) as caught:
        lacking.create()
    wording(caught.value)
    with pytest.raises(ModelwrightError) as failed:
        MetricSpec(name="m", summary="", factory="good_plugin:Nothing").create()
    wording(failed.value)


def test_plugins_list_json_has_the_documented_shape(install_plugin, modelwright):
    """Other programs read this."""
    install_plugin("bad-plugin", "import no_such_module")
    install_plugin("good-plugin", GOOD)
    rows = {row["plugin"]: row for row in json.loads(modelwright("plugins", "list", "--json").stdout)}
    assert rows["good_plugin"] == {
        "plugin": "good_plugin",
        "distribution": "good-plugin",
        "version": "1.0",
        "status": "loaded",
        "error": None,
        "conflicts": [],
        "components": [{"kind": "metric", "name": "brevity"}],
    }
    assert rows["bad_plugin"]["status"] == "failed"
    assert "no_such_module" in rows["bad_plugin"]["error"]


def test_plugins_list_is_cut_nowhere_in_a_pipe(install_plugin, modelwright):
    """A person who greps the table finds whole error messages."""
    install_plugin("bad-plugin", "import no_such_module")
    printed = modelwright("plugins", "list").stdout
    assert "ModuleNotFoundError: No module named 'no_such_module' (entry point 'bad_plugin')" in printed
