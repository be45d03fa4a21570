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
    ("source", "expected"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemError('kaput')", "SystemError: kaput"),
        ("import sys; sys.exit('no')", "SystemExit: no"),
        (
            """
            from modelwright import hookimpl
            @hookimpl
            def modelwright_metrics():
                return 5
            """,
            "modelwright_metrics must give an iterable of MetricSpec, not int",
        ),
        (
            """
            from modelwright import FormatSpec, hookimpl
            @hookimpl
            def modelwright_metrics():
                return [FormatSpec(name="f", summary="", factory="a:b")]
            """,
            "modelwright_metrics must give MetricSpec, not FormatSpec",
        ),
        (
            """
            from modelwright import hookimpl
            @hookimpl
            def modelwright_metric():
                return []
            """,
            "there is no hook modelwright_metric, did you mean modelwright_metrics?",
        ),
        (
            """
            from modelwright import MetricSpec, hookimpl
            @hookimpl
            def modelwright_metrics(config):
                return [MetricSpec(name="m", summary="", factory="a:b")]
            """,
            "config",
        ),
        (
            """
            from modelwright import MetricSpec, hookimpl
            @hookimpl
            def modelwright_metrics():
                return [MetricSpec(name="Bad Name", summary="", factory="a:b")]
            """,
            "ValueError: 'name' must match regex '[a-z][a-z0-9_-]*' ('Bad Name' doesn't) (entry point",
        ),
        (
            """
            from modelwright import MetricSpec, hookimpl
            @hookimpl
            def modelwright_metrics():
                return [MetricSpec(name="m", summary="", factory="a:b", api=2)]
            """,
            "written for version 2 of the plugin contract, and this is version 1",
        ),
        (
            """
            from modelwright import MetricSpec, hookimpl
            @hookimpl
            def modelwright_metrics():
                return [MetricSpec(name="m", summary="", factory="a:b")] * 2
            """,
            "gives the metric 'm' twice",
        ),
        ("x = 1", "it implements none of the hooks"),
    ],
    ids=[
        "import error", "raises", "exits", "no iterable", "wrong descriptor", "misspelt hook", "wrong signature",
        "bad name", "other contract", "name twice", "no hooks",
    ],
)  # fmt: skip
def test_a_broken_plugin_is_recorded_and_stops_nothing_else(install_plugin, source, expected):
    """The failure names distribution, version, entry point and error; others work on."""
    install_plugin("bad-plugin", source, version="2.3")
    install_plugin("good-plugin", GOOD)
    plugins = discover()
    bad = _found(plugins, "bad_plugin")
    assert (bad.status, bad.distribution, bad.version, bad.components) == ("failed", "bad-plugin", "2.3", ())
    assert expected in bad.error
    assert "bad_plugin" in bad.error
    assert "\n" not in bad.error
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


def test_two_providers_of_a_name_are_an_error_only_when_it_is_used(install_plugin):
    """The message names both, and the line that settles it."""
    install_plugin("good-plugin", GOOD)
    install_plugin("other-plugin", GOOD.replace("good_plugin", "other_plugin"))
    plugins = discover()
    assert plugins.conflicts(_found(plugins, "good_plugin")) == ["metric.brevity: also from other-plugin 1.0"]
    with pytest.raises(
        UsageError, match=r"good-plugin 1\.0 and other-plugin 1\.0: choose one with \[plugins\.prefer\]"
    ):
        plugins.get(MetricSpec, "brevity")
    settled = discover(prefer={"metric.brevity": "other-plugin"})
    assert settled.get(MetricSpec, "brevity").factory == "other_plugin:Brevity"


def test_an_unknown_name_says_what_there_is_and_who_failed(install_plugin):
    """A failed plugin may own the name that is missed."""
    install_plugin("bad-plugin", "import no_such_module")
    with pytest.raises(UsageError) as caught:
        discover().get(FormatSpec, "mth")
    message = str(caught.value)
    assert "there is no format 'mth', did you mean 'math'? (there are: general, math" in message
    assert "failed, and may own it: 'bad_plugin' of bad-plugin 1.0 (see modelwright plugins list)" in message


def test_a_registry_is_found_by_its_scheme():
    """An unknown scheme names those that there are."""
    plugins = discover()
    assert "sqlite" in plugins.registry_for("sqlite").schemes
    with pytest.raises(UsageError, match=r"no registry backend serves 'ftp' URLs \(there are: .*sqlite"):
        plugins.registry_for("ftp")
    assert isinstance(plugins.registry_for("sqlite"), RegistrySpec)


def test_a_factory_that_cannot_be_imported_says_what_to_install(install_plugin):
    """`needs` is for that."""
    install_plugin("good-plugin", GOOD)
    lacking = MetricSpec(name="m", summary="", factory="no_such_package.module:M", needs="no-such-package>=2")
    with pytest.raises(MissingDependencyError, match=r"pip install 'no-such-package>=2'"):
        lacking.create()
    with pytest.raises(ModelwrightError, match="its factory 'good_plugin:Nothing' does not exist"):
        MetricSpec(name="m", summary="", factory="good_plugin:Nothing").create()


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
