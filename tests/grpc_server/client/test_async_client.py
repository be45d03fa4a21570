"""The asynchronous client: what `Client` does, for programs on asyncio."""

import asyncio
import inspect
import time

import pytest

from modelwright import AsyncClient, Client
from modelwright.grpc_server.client import ServerError, Snapshot


def wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.01)


def run(running, work, **options):
    """Run `work(client)` in a loop of its own."""

    async def main():
        async with AsyncClient(running.target, **{"timeout": 20, **options}) as client:
            return await work(client)

    return asyncio.run(main())


@pytest.fixture
def running(shelf, serve):
    shelf.add("math")
    shelf.add("general")
    shelf.point("assistant", "math", 1)
    return serve("math", "general")


def test_it_has_the_methods_of_the_client_with_the_same_arguments():
    """Both have the same methods."""

    def methods(kind):
        names = {name for name in vars(kind) if not name.startswith("_")}
        return {name: list(inspect.signature(getattr(kind, name)).parameters) for name in names}

    assert methods(AsyncClient) == methods(Client)
    assert inspect.signature(AsyncClient).parameters == inspect.signature(Client).parameters


def test_whole_answers_are_those_of_the_client(running, connect):
    """Record for record."""
    client = connect(running)
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "hi"}]

    async def ask(other):
        return (
            await other.generate("hi", model="math", logprobs=True),
            await other.chat(messages, model="@assistant", stop="S"),
            await other.tokenize("hi", model="math"),
            await other.tokenize(messages, model="math"),
            await other.models(),
            await other.aliases(),
            await other.get_model("general"),
        )

    assert run(running, ask) == (
        client.generate("hi", model="math", logprobs=True),
        client.chat(messages, model="@assistant", stop="S"),
        client.tokenize("hi", model="math"),
        client.tokenize(messages, model="math"),
        client.models(),
        client.aliases(),
        client.get_model("general"),
    )


def test_streams_give_pieces_and_then_the_whole(running, connect):
    """With a block or without one, by the only model or a named one."""

    async def ask(client):
        async with client.stream("hi", model="math") as stream:
            assert stream.served.address == "math@1"
            assert stream.prompt_tokens == 2
            pieces = [piece async for piece in stream]
            whole = await stream.generation()
        assert "".join(pieces) == whole.text
        assert len(pieces) > 1
        assert "".join([piece async for piece in client.stream("hi", model="math")]) == whole.text
        assert await client.chat_stream("hi", model="math").generation() == await client.chat("hi", model="math")
        return whole

    assert run(running, ask) == connect(running).generate("hi", model="math")


def test_thinking_is_apart_there_too(shelf, serve):
    """In records, in parts and gathered."""
    shelf.add("thinker", mark="<think>hm</think>so")

    async def ask(client):
        answer = await client.chat("4?")
        async with client.chat_stream("4?") as stream:
            parts = [part async for part in stream.parts()]
            assert stream.thinking == answer.thinking == "hm"
            assert await stream.generation() == answer
        assert "".join(part.text for part in parts) == answer.text == "so:user\n4?\nassistant\n"

    run(serve("thinker"), ask)


def test_leaving_a_stream_cancels_it_on_the_server(shelf, serve, journal):
    """By the end of the block, by an exception in it, and by cancelling the task that reads."""
    shelf.add("slow", seconds_per_token=0.05)
    running = serve("slow")
    (model,) = running.table.models()

    async def left(client):
        async with client.stream("x" * 100) as stream:
            await anext(stream)

    async def failed(client):
        async def fail():
            async with client.stream("x" * 100) as stream:
                await anext(stream)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()

    async def cancelled(client):
        task = asyncio.ensure_future(client.stream("x" * 100).generation())
        await asyncio.sleep(0.2)
        assert model.active == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for number, way in enumerate((left, failed, cancelled), 1):

        async def ask(client, way=way):
            await way(client)
            begin = time.monotonic()
            while model.active:
                assert time.monotonic() - begin < 1, "the slot is still taken"
                await asyncio.sleep(0.01)

        run(running, ask)
        assert journal.count(("cancel", "slow@1")) == number


def test_many_ask_at_once(shelf, serve):
    """One client, one loop, forty answers side by side."""
    shelf.add("slow", seconds_per_token=0.02)

    async def ask(client):
        begin = time.monotonic()
        answers = await asyncio.gather(*(client.generate(f"n{number}", model="slow") for number in range(40)))
        assert [answer.text for answer in answers] == [f"slow@1:n{number}" for number in range(40)]
        assert time.monotonic() - begin < 4

    run(serve("slow"), ask)


def test_models_are_loaded_switched_unloaded_and_watched(shelf, running):
    """A watch may be left, and begins with its block or its first reading."""
    shelf.add("other")

    async def change(client):
        async with client.watch_models() as watch:
            assert isinstance(await anext(watch), Snapshot)
            assert (await client.load_model("other")).pinned
            assert (await client.set_alias("assistant", "other")).generation == 2
            assert not (await client.unload_model("general")).pinned
            # Until both are gone that nothing keeps any more.
            return [await anext(watch) for _ in range(6)]

    received = run(running, change)
    assert [change.address for change in received] == [*["other@1"] * 4, "math@1", "general@1"]
    wait_until(lambda: running.table.changes.watchers == 0)


def test_errors_are_those_of_the_client(running):
    """The same class, with the same facts, from calls and from streams."""

    async def ask(client):
        for call in (client.generate("x", model="nope"), client.stream("x", model="nope").generation()):
            with pytest.raises(ServerError, match="does not serve the model 'nope'") as caught:
                await call
            assert (caught.value.code, caught.value.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")
        with pytest.raises(ServerError, match="several models: name one of @assistant"):
            await client.stream("x").generation()
        with pytest.raises(ServerError):
            async with client.stream("x", model="nope"):
                pass
        with pytest.raises(ValueError, match="is not a message"):
            await client.chat([{"role": "wizard", "content": "x"}], model="math")

    run(running, ask)


def test_a_token_and_tls_are_shown_and_checked_there_too(shelf, serve, tls):
    """By every kind of call."""
    shelf.add("math")
    running = serve("math", tls=tls, token="secret")

    async def ask(client):
        assert (await client.generate("hi")).text == "math@1:hi"
        assert (await client.stream("hi").generation()).text == "math@1:hi"
        async with client.watch_models() as watch:
            assert isinstance(await anext(watch), Snapshot)

    run(running, ask, token="secret", tls_ca=tls.certificate)

    async def refused(client):
        for call in (client.generate("hi", model="math"), client.stream("hi", model="math").generation()):
            with pytest.raises(ServerError) as caught:
                await call
            assert caught.value.code == "UNAUTHENTICATED"

    run(running, refused, token="wrong", tls_ca=tls.certificate)
    with pytest.raises(ValueError, match="unencrypted"):
        AsyncClient("models.example:50051", token="secret")


def test_a_client_may_be_made_outside_of_a_loop_and_closed_without_a_request():
    """It connects with its first request."""
    client = AsyncClient("127.0.0.1:1")
    asyncio.run(client.close())
