"""The REST API over a registry of tiny models whose answers can be foretold."""

import contextlib
import importlib.util
import sys
from pathlib import Path

import pytest


def import_web():
    """Import the helpers beside this file once for all who load it."""
    if "modelwright_tests_web" not in sys.modules:
        spec = importlib.util.spec_from_file_location("modelwright_tests_web", Path(__file__).with_name("web.py"))
        module = sys.modules["modelwright_tests_web"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["modelwright_tests_web"]


web_module = import_web()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """A proxy of the environment has no way to this machine."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def serve_http(shelf):
    """Starts HTTP servers that end with the test: `serve_http("math", "@assistant", max_requests=1)`."""
    with contextlib.ExitStack() as stack:

        def start(*addresses, **options):
            web = web_module.Web(shelf, *addresses, **options)
            stack.callback(web.stop)
            return web

        yield start


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    """A server for a whole module: `math@1`, also `@assistant`; bodies of at most 64 KiB."""
    shelf = web_module.Shelf(tmp_path_factory.mktemp("models"))
    shelf.add("math", context=2048)
    shelf.point("assistant", "math", 1)
    web = web_module.Web(shelf, "math", "@assistant")
    yield web
    web.stop()


@pytest.fixture(scope="module")
def serve_switchable(tmp_path_factory):
    """Starts servers that end with the module: two versions of math, @assistant pointing to the first."""
    with contextlib.ExitStack() as stack:

        def start(**options):
            shelf = web_module.Shelf(tmp_path_factory.mktemp("models"))
            shelf.add("math")
            shelf.add("math")
            shelf.point("assistant", "math", 1)
            web = web_module.Web(shelf, "@assistant", **options)
            stack.callback(web.stop)
            return web

        yield start


@pytest.fixture
def chat():
    """The body of a chat request."""
    return web_module.chat


@pytest.fixture
def wait_until():
    """Waits for a condition."""
    return web_module.wait_until
