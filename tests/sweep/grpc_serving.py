"""What the sweeps of the gRPC port share: the server tests' helpers, and a server for a whole module."""

import importlib.util
import sys
import time
from pathlib import Path

import pytest

from modelwright.grpc_server.client import Client

LIMIT = 64 * 1024
GENERATE = "/modelwright.v1.InferenceService/Generate"


def load(path):
    """Import a file of the tests, once."""
    path = Path(__file__).parent / path
    name = f"modelwright_tests_{path.parent.name}_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


serving = load("../grpc_server/conftest.py")
shelf, serve, connect, tls = serving.shelf, serving.serve, serving.connect, serving.tls


def wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A server for the whole module: `math@1`, `slow@1`, and messages of at most 64 KiB."""
    shelf = serving.Shelf(tmp_path_factory.mktemp("models"))
    shelf.add("math")
    shelf.add("slow", seconds_per_token=0.02)
    running = serving.Running(shelf, ["math", "slow"], max_message_bytes=LIMIT)
    yield running
    running.stop()


@pytest.fixture
def client(running):
    """After every case the server serves as before, and holds nothing of what was refused."""
    with Client(running.target, timeout=20) as client:
        yield client
        assert client.generate("hi", model="math").text == "math@1:hi"
        wait_until(lambda: not any(model.active_requests for model in client.models()), 1)
        assert [model.address for model in client.models()] == ["math@1", "slow@1"]
        assert running.table.changes.watchers == 0
