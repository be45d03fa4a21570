"""WatchModels: a snapshot first, then each change in order, for many watchers and slow ones."""

import time

import pytest

from modelwright.grpc_server.client import Alias, Gone, Model, ServerError, Snapshot
from modelwright.grpc_server.models import watching


def wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.01)


def said(change):
    """A change in few words."""
    if isinstance(change, Snapshot):
        return "snapshot", [model.address for model in change.models], [alias.alias for alias in change.aliases]
    if isinstance(change, Model):
        return change.address, change.state
    if isinstance(change, Gone):
        return change.address, "gone"
    assert isinstance(change, Alias)
    return f"@{change.alias}", change.address


def take(watch, number):
    return [said(next(watch)) for _ in range(number)]


def test_a_watcher_receives_all_that_is_served_and_then_each_change_in_order(shelf, serve, connect):
    """Loading, switching, draining, leaving, failing: as they happen, each as it was then."""
    shelf.add("math")
    shelf.add("general")
    shelf.add("broken", broken=True)
    shelf.point("assistant", "math", 1)
    client = connect(serve("@assistant"))
    with client.watch_models() as watch:
        assert take(watch, 1) == [("snapshot", ["math@1"], ["assistant"])]
        client.set_alias("assistant", "general")
        assert take(watch, 4) == [
            ("general@1", "loading"),
            ("general@1", "ready"),
            ("@assistant", "general@1"),
            ("math@1", "gone"),
        ]
        client.load_model("math")
        assert take(watch, 2) == [("math@1", "loading"), ("math@1", "ready")]
        with pytest.raises(ServerError):
            client.load_model("broken")
        assert take(watch, 1) == [("broken@1", "loading")]
        failed = next(watch)
        assert (failed.address, failed.state) == ("broken@1", "failed")
        assert "these weights are broken" in failed.error
        client.unload_model("math")
        assert take(watch, 1) == [("math@1", "gone")]


def test_watchers_hear_of_a_model_that_drains_and_of_one_that_is_pinned(shelf, serve, connect):
    """Each change of state or pinning is one report."""
    shelf.add("slow", seconds_per_token=0.05)
    client = connect(serve("slow"))
    with client.watch_models() as watch:
        next(watch)
        stream = client.stream("hello there", model="slow")
        client.unload_model("slow")
        client.load_model("slow")
        client.unload_model("slow")
        assert take(watch, 3) == [("slow@1", "draining"), ("slow@1", "ready"), ("slow@1", "draining")]
        stream.generation()
        assert take(watch, 1) == [("slow@1", "gone")]


def test_a_watcher_that_does_not_read_is_given_a_snapshot_in_place_of_what_it_missed(
    shelf, serve, connect, monkeypatch
):
    """What waits for it is bounded; what it receives at last is the current state."""
    monkeypatch.setattr(watching, "MOST_WAITING", 5)
    shelf.add("math")
    shelf.add("general")
    running = serve("math", "general")
    client = connect(running)

    async def many():
        stream = running.table.changes.watch()
        first = await anext(stream)
        for turn in range(100):
            await running.table.switch("assistant", "math" if turn % 2 else "general")
        (watcher,) = running.table.changes._watchers
        waiting = len(watcher.waiting)
        second = await anext(stream)
        await running.table.switch("assistant", "general")
        third = await anext(stream)
        await stream.aclose()
        return first, waiting, second, third

    first, waiting, second, third = running.run(many())
    assert isinstance(first, watching.Snapshot)
    assert waiting <= 5
    assert isinstance(second, watching.Snapshot)
    assert third.name == "general"
    assert client.aliases()[0].generation == 101


def test_a_watcher_that_leaves_is_forgotten(shelf, serve, connect):
    """Its queue is freed at once, also when it never read."""
    shelf.add("math")
    running = serve("math")
    client = connect(running)
    watches = [client.watch_models() for _ in range(20)]
    for watch in watches:
        next(watch)
    assert running.table.changes.watchers == 20
    for watch in watches:
        watch.close()
    wait_until(lambda: running.table.changes.watchers == 0)


def test_many_watchers_all_receive_the_same(shelf, serve, connect):
    """In the same order."""
    shelf.add("math")
    shelf.add("general")
    client = connect(serve("math", "general"))
    watches = [client.watch_models() for _ in range(10)]
    for watch in watches:
        next(watch)
    for turn in range(5):
        client.set_alias("assistant", "math" if turn % 2 else "general")
    received = [take(watch, 14) for watch in watches]
    assert all(each == received[0] for each in received)
    assert [where for alias, where in received[0] if alias == "@assistant"] == [
        f"{name}@1" for name in ("general", "math", "general", "math", "general")
    ]


def test_there_is_a_bound_on_watchers(shelf, serve, connect, monkeypatch):
    """Each holds a stream open; a client without a place learns when to come back."""
    monkeypatch.setattr(watching, "MOST_WATCHERS", 2)
    shelf.add("math")
    client = connect(serve("math"))
    watches = [client.watch_models() for _ in range(2)]
    for watch in watches:
        next(watch)
    with pytest.raises(ServerError, match="with 2 clients watching") as caught:
        next(client.watch_models())
    assert (caught.value.code, caught.value.retry_after) == ("RESOURCE_EXHAUSTED", 10.0)


def test_watchers_hear_that_the_server_goes_down_and_do_not_hold_it_up(shelf, serve, connect):
    """With UNAVAILABLE, so that they know to look for another one."""
    shelf.add("math")
    running = serve("math")
    watch = connect(running).watch_models()
    next(watch)
    begin = time.monotonic()
    running.stop()
    with pytest.raises(ServerError, match="shutting down") as caught:
        next(watch)
    assert (caught.value.code, caught.value.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
    assert time.monotonic() - begin < 5
