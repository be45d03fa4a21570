"""SetAlias is the atomic switch: load, warm, swap, drain; guarded by an etag; no request is dropped."""

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from modelwright import ModelNotFoundError
from modelwright.grpc_server.client import ServerError


def wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.01)


def test_switching_back_and_forth_under_load_loses_no_request_and_mixes_no_answers(shelf, serve, connect, journal):
    """Each of many concurrent streams names one digest, and every token it carries is that model's own.

    No alias but the one keeps the models, so that each switch loads one and frees the other.
    """
    versions = {f"math@{number}": shelf.add("math", seconds_per_token=0.002) for number in (1, 2)}
    shelf.point("assistant", "math", 1)
    client = connect(serve("@assistant"))
    stopping = threading.Event()
    seen = Counter()

    def ask(_worker):
        while not stopping.is_set():
            stream = client.stream("tell me", model="@assistant")
            answer = stream.generation()
            assert answer.served.digest == versions[answer.served.address].digest
            assert answer.text == f"{answer.served.address}:tell me"
            assert answer.finish == "stop"
            # Generation 1 was version 1; every switch since went to the other one.
            assert answer.served.alias_generation % 2 == answer.served.version % 2
            seen[answer.served.address] += 1

    with ThreadPoolExecutor(12) as pool:
        workers = [pool.submit(ask, number) for number in range(12)]
        for turn in range(20):
            target = f"math@{2 - turn % 2}"
            assert client.set_alias("assistant", target).address == target
            time.sleep(0.15 * (turn % 3 == 0))  # sometimes long enough for the old model to be freed
        stopping.set()
        for worker in workers:
            worker.result(timeout=20)
    assert min(seen["math@1"], seen["math@2"]) >= 10, seen
    assert client.aliases()[0].generation == 21
    closings = [entry for entry in journal if entry[0] == "close"]
    assert len(closings) >= 3
    assert all(running == 0 for _, _, running in closings), "an engine was freed under a running request"


def test_who_names_no_model_goes_with_the_alias_that_keeps_the_only_one(shelf, serve, connect):
    """Also between asking which model there is and asking it: no request meets one that has just left."""
    for _ in range(2):
        shelf.add("math")
    shelf.point("assistant", "math", 1)
    running = serve("@assistant")
    client = connect(running)
    assert client.only_model().lasting_address == "@assistant"
    client.set_alias("assistant", "math@2")
    assert client.generate("x", model="@assistant").text == "math@2:x"
    address = client.only_model().lasting_address
    client.set_alias("assistant", "math@1")
    assert client.generate("x", model=address).text == "math@1:x"
    assert connect(serve("math@2")).only_model().lasting_address == "math@2"


def test_the_old_model_finishes_its_requests_and_is_freed_then(shelf, serve, connect, journal):
    """While it drains it is listed as such, takes no new request by its name, and answers what it has."""
    shelf.add("slow", seconds_per_token=0.05)
    shelf.add("quick")
    shelf.point("assistant", "slow", 1)
    client = connect(serve("@assistant"))
    stream = client.stream("hello there", model="@assistant")
    client.set_alias("assistant", "quick")
    states = {model.address: model.state for model in client.models()}
    assert states == {"quick@1": "ready", "slow@1": "draining"}
    assert client.generate("x", model="@assistant").served.address == "quick@1"
    with pytest.raises(ServerError, match="does not serve the model 'slow'"):
        client.generate("x", model="slow")
    assert ("close", "slow@1", 0) not in journal
    assert stream.generation().text == "slow@1:hello there"
    wait_until(lambda: ("close", "slow@1", 0) in journal)
    assert [model.address for model in client.models()] == ["quick@1"]


def test_a_model_that_is_served_by_its_name_stays_when_its_alias_leaves(shelf, serve, connect, journal):
    """Nothing is loaded or freed when an alias moves among such models."""
    shelf.add("a")
    shelf.add("b")
    shelf.point("assistant", "a", 1)
    client = connect(serve("a", "b"))
    loads = len(journal)
    for target in ("b", "a", "b"):
        client.set_alias("assistant", target)
        assert client.generate("x", model="@assistant").served.name == target
    assert client.generate("x", model="a").served.name == "a"
    assert [entry for entry in journal[loads:] if entry[0] in ("load", "close")] == []


def test_a_switch_that_cannot_load_its_target_changes_nothing(shelf, serve, connect, journal, wording):
    """Neither broken weights nor a model that says nothing takes the place of one that answers."""
    shelf.add("good")
    shelf.add("broken", broken=True)
    shelf.add("mute", mute=True)
    shelf.point("assistant", "good", 1)
    client = connect(serve("@assistant"))
    before = client.aliases()
    for target in ("broken", "mute"):
        with pytest.raises(ServerError) as caught:
            client.set_alias("assistant", target, persist=True)
        wording(caught.value.message)
        assert (caught.value.code, caught.value.reason) == ("FAILED_PRECONDITION", "MODEL_NOT_LOADABLE")
    with pytest.raises(ServerError) as caught:
        client.set_alias("assistant", "nothing")
    wording(caught.value.message)
    assert caught.value.code == "NOT_FOUND"
    assert client.aliases() == before
    assert [model.address for model in client.models()] == ["good@1"]
    assert client.generate("x", model="@assistant").text == "good@1:x"
    assert ("close", "mute@1", 0) in journal
    assert shelf.registry.resolve("assistant").name == "good"


def test_an_etag_lets_the_first_of_two_switches_win(shelf, serve, connect, wording):
    """A caller that read the alias before somebody else moved it gets an error, with the etag that it has now."""
    shelf.add("a")
    shelf.add("b")
    client = connect(serve("a", "b"))
    first = client.set_alias("assistant", "a", etag="")
    with pytest.raises(ServerError) as caught:
        client.set_alias("assistant", "b", etag="")
    wording(caught.value.message, etag=first.etag)
    assert (caught.value.code, caught.value.reason) == ("ABORTED", "ALIAS_CONFLICT")
    assert caught.value.metadata == {"alias": "assistant", "etag": first.etag}
    second = client.set_alias("assistant", "b", etag=first.etag)
    assert second.address == "b@1"
    assert second.generation == first.generation + 1
    with pytest.raises(ServerError) as caught:
        client.set_alias("assistant", "a", etag=first.etag)
    assert caught.value.code == "ABORTED"
    with pytest.raises(ServerError) as caught:
        client.set_alias("another", "a", etag=first.etag)
    wording(caught.value.message, etag=first.etag)
    assert caught.value.metadata["etag"] == ""


def test_of_many_switches_with_one_etag_exactly_one_wins(shelf, serve, connect):
    """They come at the same moment; the others get an error."""
    for name in "abcdef":
        shelf.add(name)
    client = connect(serve("a", *"bcdef"))
    etag = client.set_alias("assistant", "a").etag

    def switch(name):
        try:
            return client.set_alias("assistant", name, etag=etag).address
        except ServerError as error:
            return error.code

    with ThreadPoolExecutor(5) as pool:
        results = sorted(pool.map(switch, "bcdef"))
    assert results[:4] == ["ABORTED"] * 4
    assert client.aliases()[0].address == results[4]


def test_a_switch_stays_on_this_server_unless_it_is_persisted(shelf, serve, connect):
    """With persist the registry's alias moves too, and server and registry count the same generation."""
    shelf.add("a")
    shelf.add("b")
    shelf.point("assistant", "a", 1)
    client = connect(serve("a", "b"))
    client.set_alias("assistant", "b")
    assert shelf.registry.resolve("assistant").name == "a"
    client.set_alias("fresh", "a")
    with pytest.raises(ModelNotFoundError):
        shelf.registry.resolve("fresh")
    moved = client.set_alias("assistant", "b", persist=True)
    assert moved.address == "b@1"
    assert shelf.registry.resolve("assistant").name == "b"
    shelf.point("elsewhere", "a", 1)
    shelf.point("elsewhere", "b", 1)
    assert client.set_alias("elsewhere", "a", persist=True).generation == 3
    assert shelf.registry.resolve("elsewhere").generation == 3


def test_a_persistent_switch_gives_way_if_the_registrys_alias_is_moved_meanwhile(shelf, serve, connect, monkeypatch):
    """Then neither the server nor the registry has it, and the model that was loaded for it is freed."""
    for name in "abc":
        shelf.add(name)
    shelf.point("assistant", "a", 1)
    client = connect(serve("@assistant"))
    folder = shelf.registry.folder
    monkeypatch.setattr(shelf.registry, "folder", lambda model: shelf.point("assistant", "c", 1) and folder(model))
    with pytest.raises(ServerError, match="has moved") as caught:
        client.set_alias("assistant", "b", persist=True)
    assert (caught.value.code, caught.value.reason) == ("ABORTED", "ALIAS_CONFLICT")
    assert caught.value.metadata == {"alias": "assistant", "etag": client.aliases()[0].etag}
    assert client.generate("x", model="@assistant").served.name == "a"
    assert [model.address for model in client.models()] == ["a@1"]
    assert shelf.registry.resolve("assistant").name == "c"


def test_a_failed_switch_whose_caller_left_is_logged(shelf, serve, connect, monkeypatch, caplog):
    """Nobody else would hear of it."""
    shelf.add("a")
    shelf.add("broken", broken=True)
    client = connect(serve("a"))
    folder = shelf.registry.folder
    monkeypatch.setattr(shelf.registry, "folder", lambda model: time.sleep(0.5) or folder(model))
    with pytest.raises(ServerError, match="did not answer in time"):
        client.set_alias("assistant", "broken", timeout=0.1)
    wait_until(lambda: "switching @assistant to broken failed" in caplog.text)


def test_a_switch_to_where_the_alias_points_already_moves_nothing(shelf, serve, connect):
    """Its generation and etag stay."""
    shelf.add("a")
    client = connect(serve("a"))
    first = client.set_alias("assistant", "a@1")
    assert client.set_alias("assistant", "a") == first
    assert client.set_alias("assistant", "@assistant") == first


def test_an_alias_whose_model_is_not_served_can_be_switched_to_one_that_is(shelf, serve, connect):
    """Until then it is not served; its generation goes on from the registry's."""
    shelf.add("a")
    shelf.add("b")
    shelf.point("assistant", "b", 1)
    client = connect(serve("a"))
    with pytest.raises(ServerError, match="does not serve the alias '@assistant'"):
        client.generate("x", model="@assistant")
    assert client.aliases() == []
    switched = client.set_alias("assistant", "a")
    assert (switched.address, switched.generation) == ("a@1", 2)
    assert client.generate("x", model="@assistant").served.alias_generation == 2


def test_requests_are_answered_while_a_switch_loads(shelf, serve, connect, monkeypatch):
    """Loading happens beside the event loop."""
    shelf.add("a")
    shelf.add("b")
    shelf.point("assistant", "a", 1)
    client = connect(serve("@assistant"))
    loading, go = threading.Event(), threading.Event()
    folder = shelf.registry.folder

    def slow_folder(model):
        loading.set()
        assert go.wait(10)
        return folder(model)

    monkeypatch.setattr(shelf.registry, "folder", slow_folder)
    with ThreadPoolExecutor(1) as pool:
        switch = pool.submit(client.set_alias, "assistant", "b")
        assert loading.wait(10)
        assert client.generate("x", model="@assistant").served.name == "a"
        go.set()
        assert switch.result(timeout=10).address == "b@1"
    assert client.generate("x", model="@assistant").served.name == "b"


def test_a_switch_that_has_begun_is_finished_when_its_caller_leaves(shelf, serve, connect, monkeypatch):
    """Nothing is left half loaded."""
    shelf.add("a")
    shelf.add("b")
    client = connect(serve("a"))
    folder = shelf.registry.folder
    monkeypatch.setattr(shelf.registry, "folder", lambda model: time.sleep(0.5) or folder(model))
    with pytest.raises(ServerError) as caught:
        client.set_alias("assistant", "b", timeout=0.1)
    assert caught.value.code == "DEADLINE_EXCEEDED"
    wait_until(lambda: [alias.address for alias in client.aliases()] == ["b@1"])
    assert client.generate("x", model="@assistant").text == "b@1:x"


@pytest.mark.parametrize(
    ("alias", "target"),
    [
        ("As!", "a"),
        ("7", "a"),
        ("x", ""),
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_a_switch_needs_an_alias_and_a_target(shelf, serve, connect, alias, target, wording):
    """What is missing is named."""
    shelf.add("a")
    with pytest.raises(ServerError) as caught:
        connect(serve("a")).set_alias(alias, target)
    assert caught.value.code == "INVALID_ARGUMENT"
    wording(caught.value.message)
