"""A server's life: health, full, clients that leave, and an end that drops nothing."""

import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from modelwright import ModelwrightError, NewModel, UsageError
from modelwright.grpc_server.client import ServerError
from modelwright.grpc_server.server import Address, Server, ServerOptions

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.01)


@pytest.mark.parametrize("service", ["", "modelwright.v1.InferenceService", "modelwright.v1.ModelService"])
def test_each_service_reports_its_health(shared_server, connect, service):
    """By grpc.health.v1, as load balancers and orchestrators ask."""
    stub = health_pb2_grpc.HealthStub(connect(shared_server)._channel)
    assert stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status == SERVING


def test_the_health_of_an_unknown_service_is_not_found(shared_server, connect):
    """As its protocol says; and bytes that are not a request are an invalid argument there too."""
    channel = connect(shared_server)._channel
    with pytest.raises(grpc.RpcError) as caught:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="x"), timeout=10)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/grpc.health.v1.Health/Check")(b"\x0a\x02\xff\xfe", timeout=10)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_at_the_end_running_answers_finish_and_new_requests_have_to_wait(shelf, serve, connect, journal):
    """Health says NOT_SERVING to watchers, UNAVAILABLE comes with RetryInfo, and nothing is dropped."""
    shelf.add("slow", seconds_per_token=0.05)
    running = serve("slow")
    client = connect(running)
    watch = health_pb2_grpc.HealthStub(client._channel).Watch(health_pb2.HealthCheckRequest(), timeout=20)
    assert next(watch).status == SERVING
    stream = client.stream("one two three", model="slow")
    begin = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        stopped = pool.submit(running.stop)
        assert next(watch).status == NOT_SERVING
        with pytest.raises(ServerError) as caught:
            client.generate("x", model="slow")
        assert (caught.value.code, caught.value.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
        assert caught.value.retry_after == 1.0
        assert stream.generation().text == "slow@1:one two three"
        stopped.result(timeout=10)
    assert time.monotonic() - begin < 10, "a watcher of the health held up the end"
    assert journal[-2:] == [("finish", "slow@1", "stop"), ("close", "slow@1", 0)]


def test_grpc_and_http_end_together(shelf, serve, connect):
    """While a stream of one finishes, both refuse what is new, and both report it as their health."""
    shelf.add("slow", seconds_per_token=0.05)
    running = serve("slow", http=Address(host="127.0.0.1", port=0))
    client = connect(running)
    url = f"http://{running.bound.http}/health"
    assert urllib.request.urlopen(url, timeout=10).status == 200
    stream = client.stream("one two three", model="slow")
    with ThreadPoolExecutor(1) as pool:
        stopped = pool.submit(running.stop)
        wait_until(lambda: running.table.closing)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(url, timeout=10)
        assert caught.value.code == 503
        health = health_pb2_grpc.HealthStub(client._channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == NOT_SERVING
        assert stream.generation().text == "slow@1:one two three"
        stopped.result(timeout=10)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=10)


def test_what_still_runs_when_the_grace_is_over_is_cancelled(shelf, serve, connect):
    """The server does not wait for ever; streams and whole answers end in an error that says to try again."""
    shelf.add("slow", seconds_per_token=0.2)
    running = serve("slow", grace=0.2)
    client = connect(running)
    stream = client.stream("x" * 100, model="slow")
    with ThreadPoolExecutor(1) as pool:
        whole = pool.submit(client.generate, "x" * 100, model="slow")
        (model,) = running.table.models()
        wait_until(lambda: model.active == 2)
        begin = time.monotonic()
        running.stop()
        assert time.monotonic() - begin < 5
        for answer in (stream.generation, whole.result):
            with pytest.raises(ServerError, match="ended this request early: try again") as caught:
                answer()
            assert (caught.value.code, caught.value.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
            assert caught.value.retry_after == 1.0


def test_a_second_signal_cuts_the_grace_short(shelf, serve, connect):
    """The second Ctrl-C means now."""
    shelf.add("slow", seconds_per_token=0.2)
    running = serve("slow", grace=60)
    stream = connect(running).stream("x" * 100, model="slow")
    begin = time.monotonic()
    running.loop.call_soon_threadsafe(running.hurry.set)
    running.stop()
    assert time.monotonic() - begin < 5
    with pytest.raises(ServerError, match="ended this request early"):
        stream.generation()


@pytest.mark.parametrize("how", ["close", "deadline", "unary"])
def test_a_client_that_leaves_has_its_request_cancelled_in_the_engine(shelf, serve, connect, journal, how):
    """A closed stream, a deadline that passes, a whole answer that nobody waits for any more."""
    shelf.add("slow", seconds_per_token=0.05)
    running = serve("slow")
    client = connect(running, timeout=0.4 if how != "close" else 20)
    if how == "close":
        with client.stream("x" * 100, model="slow") as stream:
            next(stream)
    else:
        answer = client.generate if how == "unary" else lambda *a, **k: client.stream(*a, **k).generation()
        with pytest.raises(ServerError) as caught:
            answer("x" * 100, model="slow")
        assert caught.value.code == "DEADLINE_EXCEEDED"
    wait_until(lambda: ("cancel", "slow@1") in journal)
    (model,) = running.table.models()
    wait_until(lambda: model.active == 0)
    assert ("finish", "slow@1", "stop") not in journal[2:]


def test_a_full_server_says_so_and_when_to_come_back(shelf, serve, connect):
    """RESOURCE_EXHAUSTED with RetryInfo; when a place is free, the next one is answered."""
    shelf.add("slow", seconds_per_token=0.05)
    client = connect(serve("slow", max_requests=2))
    streams = [client.stream("hello", model="slow") for _ in range(2)]
    with pytest.raises(ServerError) as caught:
        client.generate("x", model="slow")
    error = caught.value
    assert (error.code, error.reason, error.retry_after) == ("RESOURCE_EXHAUSTED", "TOO_MANY_REQUESTS", 1.0)
    assert error.metadata == {"limit": "2"}
    assert [stream.generation().text for stream in streams] == ["slow@1:hello"] * 2
    assert client.generate("x", model="slow").text == "slow@1:x"


def test_an_engine_that_ends_a_request_early_makes_an_error_and_no_short_answer(shelf, serve, connect):
    """Half an answer is never reported as a whole one."""
    shelf.add("slow", seconds_per_token=0.02)
    running = serve("slow")
    client = connect(running)
    stream = client.stream("x" * 100, model="slow")
    next(stream)
    (engine,) = [model.engine for model in running.table.models()]
    running.loop.call_soon_threadsafe(lambda: [engine.cancel(number) for number in list(engine.running)])
    with pytest.raises(ServerError, match="ended this request early") as caught:
        stream.generation()
    assert caught.value.code == "UNAVAILABLE"


def test_many_clients_are_answered_at_once(shelf, serve, connect):
    """Requests run beside one another: 40 answers of 0.2 s take far less than 8 s."""
    shelf.add("slow", seconds_per_token=0.02)
    client = connect(serve("slow"))
    begin = time.monotonic()
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda number: client.generate(f"n{number}", model="slow").text, range(40)))
    assert answers == [f"slow@1:n{number}" for number in range(40)]
    assert time.monotonic() - begin < 4


def test_two_servers_cannot_share_a_port(shared_server):
    """By itself gRPC would let them, and share out the connections between them."""
    second = Server(shared_server.table, ServerOptions(listen=Address.parse(shared_server.target)))
    with pytest.raises(ModelwrightError, match="address already in use"):
        shared_server.run(second.bind())


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "192.0.2.1:50051", "[::]:0", "example.org:50051"])
def test_other_machines_are_kept_out_unless_the_user_insists(shared_server, listen):
    """Nothing is encrypted, and nobody is asked who they are."""
    server = Server(shared_server.table, ServerOptions(listen=Address.parse(listen)))
    with pytest.raises(UsageError, match="--insecure"):
        shared_server.run(server.bind())


@pytest.mark.parametrize("text", ["", "127.0.0.1", ":50051", "127.0.0.1:", "127.0.0.1:65536", "::1:50051", "a b:1"])
def test_an_address_to_listen_on_has_a_host_and_a_port(text, wording):
    """The error for anything else says what is expected."""
    with pytest.raises(UsageError) as caught:
        Address.parse(text)
    wording(caught.value)


@pytest.mark.parametrize(
    ("text", "loopback"), [("127.0.0.1:1", True), ("[::1]:1", True), ("localhost:1", True), ("10.0.0.1:1", False)]
)
def test_an_address_reads_and_writes_the_same(text, loopback):
    """IPv6 keeps its brackets."""
    address = Address.parse(text)
    assert (str(address), address.is_loopback) == (text, loopback)


@pytest.mark.parametrize(
    "config",
    [
        {"broken": True},
        {"mute": True},
        {"context": 0},
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_a_model_that_cannot_be_served_ends_the_start_with_its_reason(shelf, serve, config, wording):
    """Before the server answers anyone."""
    shelf.add("math", **config)
    with pytest.raises(ModelwrightError) as caught:
        serve("math")
    wording(caught.value)


def test_a_model_whose_tokenizer_was_changed_is_not_served(shelf, serve):
    """Its record names the renderer that it was trained with."""
    shelf.add("math")
    folder = shelf.folder / "math-1"
    (folder / "modelwright.json").write_text('{"renderer": "0123456789abcdef"}')
    shelf.registry.add(NewModel(name="changed", fingerprint="f"), folder)
    with pytest.raises(ModelwrightError, match="not the one that the model was trained with"):
        serve("changed")


def test_rendering_a_long_prompt_does_not_hold_up_others(shelf, serve, connect, monkeypatch):
    """Tokens are made beside the event loop."""
    shelf.add("math")
    running = serve("math")
    client = connect(running)
    (model,) = running.table.models()
    encode, rendering, go = model.renderer.encode, threading.Event(), threading.Event()

    def slow_encode(text):
        rendering.set()
        assert go.wait(10)
        return encode(text)

    monkeypatch.setattr(model.renderer, "encode", slow_encode)
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(client.tokenize, "long", model="math")
        assert rendering.wait(10)
        assert client.chat("short", model="math").text.startswith("math@1:")
        go.set()
        assert len(long.result(timeout=10).token_ids) == 4
