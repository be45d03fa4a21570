import pytest

from modelwright.core.api.components import Registry
from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.plugins import discover
from modelwright.core.registry import open_registry

PLUGIN = """
    from attrs import field, frozen
    from modelwright import RegistrySpec, hookimpl

    @frozen
    class Options:
        url: str = field()

        @url.validator
        def _(self, attribute, value):
            if "bad" in value:
                raise ValueError("expected memory://GOOD")

    class Memory:
        def __init__(self, options):
            self.options = options

    @hookimpl
    def modelwright_registries():
        yield RegistrySpec(
            name="memory", summary="", schemes=("memory", "mem+fast"), options=Options, factory="memory_registry:Memory"
        )
        yield RegistrySpec(name="blind", summary="", schemes=("blind",), factory="memory_registry:Memory")
"""


@pytest.fixture
def plugins(install_plugin):
    install_plugin("memory-registry", PLUGIN)
    return discover()


def test_a_url_opens_the_built_in_registry(tmp_path):
    """And creates nothing yet."""
    registry = open_registry(f"sqlite:///{tmp_path}/a/registry.db", discover())
    assert isinstance(registry, Registry)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("url", ["memory://shelf", "MEM+fast://shelf"])
def test_a_scheme_finds_the_plugin_that_serves_it(plugins, url):
    """Its options get the URL as it was written."""
    assert open_registry(url, plugins).options.url == url


@pytest.mark.parametrize("url", ["registry.db", "/abs/registry.db", "sqlite:registry.db", "", "://x", "3d://x"])
def test_an_invalid_url_is_refused_with_the_schemes_there_are(plugins, url, wording):
    """And an example."""
    with pytest.raises(UsageError) as caught:
        open_registry(url, plugins)
    assert "blind, mem+fast, memory, sqlite" in str(caught.value)
    wording(caught.value)


def test_an_unknown_scheme_is_refused_with_the_schemes_there_are(plugins):
    """Anyone who misses one sees which there are."""
    with pytest.raises(UsageError, match=r"'postgres'.*: blind, mem\+fast, memory, sqlite"):
        open_registry("postgres://host/db", plugins)


def test_a_url_that_the_backend_refuses_is_wrong_usage(plugins):
    """Its validator's message comes with the URL."""
    with pytest.raises(UsageError, match="registry 'memory://bad': expected memory://GOOD"):
        open_registry("memory://bad", plugins)


def test_a_backend_without_a_url_is_named(plugins):
    """A mistake of its author, not of the user."""
    with pytest.raises(ModelwrightError, match=r"'blind'.* NoOptions.* url"):
        open_registry("blind://x", plugins)
