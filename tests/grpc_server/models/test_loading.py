"""GetModel, LoadModel and UnloadModel: what a server has changes while it serves."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from attrs import evolve

from modelwright import UsageError
from modelwright.grpc_server.client import ServerError


def wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.01)


@pytest.fixture
def hold_loading(shelf, monkeypatch):
    """Loading waits at the registry's files: `began` is set when it gets there, `go` lets it go on."""
    began, go = threading.Event(), threading.Event()
    folder = shelf.registry.folder

    def slow(model):
        began.set()
        assert go.wait(10)
        return folder(model)

    def hold():
        monkeypatch.setattr(shelf.registry, "folder", slow)
        return began, go

    yield hold
    go.set()


def test_get_model_describes_the_model_at_an_address(shelf, serve, connect):
    """As ListModels does; what is not served is not found."""
    shelf.add("math")
    shelf.point("assistant", "math", 1)
    client = connect(serve("math"))
    (listed,) = client.models()
    for address in ("math", "math@1", "@assistant"):
        assert client.get_model(address) == listed
    for address, code in (("math@2", "NOT_FOUND"), ("@other", "NOT_FOUND"), ("", "INVALID_ARGUMENT")):
        with pytest.raises(ServerError) as caught:
            client.get_model(address)
        assert caught.value.code == code
    assert caught.value.metadata == {"field": "address"}


def test_a_model_is_loaded_served_by_its_name_and_unloaded(shelf, serve, connect, journal):
    """It is warm before it is served, and freed after its last request."""
    shelf.add("math")
    shelf.add("general")
    client = connect(serve("math"))
    loaded = client.load_model("general")
    assert (loaded.address, loaded.state, loaded.pinned, loaded.engine) == ("general@1", "ready", True, "echo")
    assert journal[-2:] == [("load", "general@1"), ("finish", "general@1", "length")]
    assert client.generate("hi", model="general").text == "general@1:hi"
    assert client.load_model("general@1") == client.get_model("general")
    gone = client.unload_model("general")
    assert (gone.state, gone.pinned) == ("draining", False)
    wait_until(lambda: ("close", "general@1", 0) in journal)
    assert [model.address for model in client.models()] == ["math@1"]
    with pytest.raises(ServerError, match="does not serve the model 'general'"):
        client.generate("hi", model="general")


def test_an_unloaded_model_finishes_its_requests_and_takes_no_more(shelf, serve, connect, journal):
    """Meanwhile it is listed as draining; the last request frees it."""
    shelf.add("slow", seconds_per_token=0.05)
    client = connect(serve("slow"))
    stream = client.stream("hello there", model="slow")
    unloaded = client.unload_model("slow")
    assert (unloaded.state, unloaded.active_requests) == ("draining", 1)
    with pytest.raises(ServerError, match="it serves: nothing"):
        client.generate("x", model="slow")
    assert stream.generation().text == "slow@1:hello there"
    wait_until(lambda: ("close", "slow@1", 0) in journal)
    assert client.models() == []


def test_a_model_that_drains_can_be_loaded_again_without_loading(shelf, serve, connect, journal):
    """It is still there."""
    shelf.add("slow", seconds_per_token=0.05)
    client = connect(serve("slow"))
    stream = client.stream("hello there", model="slow")
    client.unload_model("slow")
    assert client.load_model("slow").state == "ready"
    assert stream.generation().finish == "stop"
    assert client.generate("x", model="slow").text == "slow@1:x"
    assert journal.count(("load", "slow@1")) == 1


def test_a_model_that_an_alias_points_to_stays_for_the_alias(shelf, serve, connect, journal):
    """Unloading takes its name away; it leaves when the alias moves."""
    shelf.add("math")
    shelf.add("general")
    shelf.point("assistant", "math", 1)
    client = connect(serve("math", "general"))
    unloaded = client.unload_model("@assistant")
    assert (unloaded.state, unloaded.pinned, unloaded.aliases) == ("ready", False, ("assistant",))
    assert client.unload_model("math") == unloaded
    assert client.generate("x", model="@assistant").text == "math@1:x"
    client.set_alias("assistant", "general")
    wait_until(lambda: ("close", "math@1", 0) in journal)
    assert [model.address for model in client.models()] == ["general@1"]


def test_a_model_that_an_alias_keeps_can_be_loaded_for_good(shelf, serve, connect):
    """Then it outlives the alias."""
    shelf.add("math")
    shelf.add("general")
    shelf.point("assistant", "math", 1)
    client = connect(serve("@assistant"))
    assert client.load_model("@assistant").pinned
    client.set_alias("assistant", "general")
    assert client.generate("x", model="math").text == "math@1:x"


def test_a_model_that_loads_is_listed_as_loading_and_others_answer(shelf, serve, connect, hold_loading):
    """It takes no request until it is ready."""
    shelf.add("math")
    digest = shelf.add("general").digest
    client = connect(serve("math"))
    began, go = hold_loading()
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(client.load_model, "general")
        assert began.wait(10)
        listed = {model.address: model for model in client.models()}
        assert (listed["general@1"].state, listed["general@1"].digest) == ("loading", digest)
        assert client.only_model().address == "math@1"
        assert client.generate("x").text == "math@1:x"
        with pytest.raises(ServerError, match="does not serve the model 'general'"):
            client.generate("x", model="general")
        go.set()
        assert loading.result(timeout=10).state == "ready"


def test_a_loading_that_has_begun_is_finished_when_its_caller_leaves(shelf, serve, connect, hold_loading):
    """Nothing is left half loaded, and asking again finds it."""
    shelf.add("math")
    shelf.add("general")
    client = connect(serve("math"))
    _, go = hold_loading()
    with pytest.raises(ServerError, match="did not answer in time"):
        client.load_model("general", timeout=0.1)
    go.set()
    wait_until(lambda: [model.state for model in client.models()] == ["ready", "ready"])


@pytest.mark.parametrize(
    "config",
    [{"broken": True}, {"mute": True}],
    ids=lambda value: ascii(value)[:60],
)
def test_a_model_that_cannot_be_loaded_leaves_the_server_as_it_was(shelf, serve, connect, config, wording):
    """With the reason, and the model's address for programs."""
    shelf.add("math")
    shelf.add("bad", **config)
    client = connect(serve("math"))
    with pytest.raises(ServerError) as caught:
        client.load_model("bad")
    wording(caught.value.message)
    assert (caught.value.code, caught.value.reason) == ("FAILED_PRECONDITION", "MODEL_NOT_LOADABLE")
    assert caught.value.metadata == {"address": "bad@1"}
    assert [model.address for model in client.models()] == ["math@1"]
    assert client.generate("x").text == "math@1:x"


def test_what_the_registry_does_not_have_is_not_found(shelf, serve, connect):
    """And what is not an address is an invalid argument."""
    shelf.add("math")
    client = connect(serve("math"))
    for address in ("nope", "math@7", "@no", "", "Ma/th"):
        code = "INVALID_ARGUMENT" if address in ("", "Ma/th") else "NOT_FOUND"
        with pytest.raises(ServerError) as caught:
            client.load_model(address)
        assert caught.value.code == code, address
        with pytest.raises(ServerError) as caught:
            client.unload_model(address)
        assert caught.value.code == code, address


def test_a_model_may_be_loaded_by_another_engine(shelf, serve, connect, wording):
    """One that the server's plugins have; a model that runs stays on the engine that it has."""
    shelf.add("math")
    shelf.add("general")
    other = evolve(shelf.spec, name="other")

    def engines(name):
        if name != "other":
            raise UsageError(f"there is no engine {name!r}")
        return other

    client = connect(serve("math", engines=engines))
    assert client.load_model("general", engine="other").engine == "other"
    assert client.load_model("general").engine == "other"
    with pytest.raises(ServerError) as caught:
        client.load_model("general", engine="echo")
    wording(caught.value.message)
    assert caught.value.code == "FAILED_PRECONDITION"
    with pytest.raises(ServerError) as caught:
        client.load_model("math", engine="third")
    wording(caught.value.message)
    assert (caught.value.code, caught.value.metadata) == ("INVALID_ARGUMENT", {"field": "engine"})
    assert client.generate("x", model="general").text == "general@1:x"
