"""Bad input at the gRPC port: it is reported, at every method, and the server goes on."""

import importlib.util
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelwright.grpc_server.client import Client, ServerError
from modelwright.v1 import common_pb2, inference_pb2, model_pb2


def load(name):
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"modelwright_tests_sweep_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


helpers = load("grpc_serving")
running, client = helpers.running, helpers.client
SERVICES = [
    inference_pb2.DESCRIPTOR.services_by_name["InferenceService"],
    model_pb2.DESCRIPTOR.services_by_name["ModelService"],
]
METHODS = [method for service in SERVICES for method in service.methods if method.name != "Score"]


# What the caller says

ADDRESSES = [
    "",
    "../math",
    "a/b",
    "/etc/passwd",
    ".",
    "..",
    "math@",
    "math@0",
    "math@-1",
    "math@1.0",
    "math@99999999999999999999",
    "math@1@2",
    "@",
    "@a/b",
    "@7",
    "Math",
    "math ",
    "math\n",
    "math\0",
    "\0",
    "mäth",
    "x" * 300,
    "x" * 300 + "!",
    "math; drop table models",
]


@pytest.mark.parametrize(
    "address",
    ADDRESSES,
    ids=lambda value: ascii(value)[:60],
)
def test_an_invalid_address_is_an_invalid_argument_in_any_field(client, address, wording):
    """In a request for a model, in the model service, and as the target of an alias."""
    calls = {
        "model": [client.generate, client.stream, client.chat, client.tokenize],
        "address": [client.get_model, client.load_model, client.unload_model],
        "target": [lambda target: client.set_alias("assistant", target)],
    }
    for field, methods in calls.items():
        for method in methods:
            with pytest.raises(ServerError) as caught:
                method("hi", model=address) if field == "model" else method(address)
            assert (caught.value.code, caught.value.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
            assert caught.value.metadata == {"field": field}
            wording(caught.value.message)
            assert "\0" not in repr(caught.value.message).replace("\\x00", "")


@pytest.mark.parametrize("name", ["a.b-c_d", "math..", "m" * 100])
def test_a_name_that_could_be_and_is_not_there_is_not_found(client, name):
    """Dots and length are allowed; nothing of it is taken for a path."""
    for call in (client.get_model, client.load_model, client.unload_model, lambda name: client.set_alias("x", name)):
        with pytest.raises(ServerError) as caught:
            call(name)
        assert (caught.value.code, caught.value.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")
        assert len(caught.value.message.encode()) <= 1000


@pytest.mark.parametrize(
    "alias", ["", "a/b", "../x", "@x", "A", "7", "x\0", "x" * 300 + "/", "é", " x", "x\n", "-x", ".x"]
)
def test_an_invalid_alias_is_an_invalid_argument(client, alias):
    """The field is named, and no route is made."""
    with pytest.raises(ServerError, match="alias is wrong: ") as caught:
        client.set_alias(alias, "math")
    assert (caught.value.code, caught.value.metadata) == ("INVALID_ARGUMENT", {"field": "alias"})
    assert client.aliases() == []


@pytest.mark.parametrize("engine", ["", "nope", "torch/../x", "e" * 300, "\0"])
def test_an_engine_that_is_not_there_is_an_invalid_argument(client, engine):
    """This server has one alone."""
    with pytest.raises(ServerError, match="engine is ") as caught:
        client.load_model("math", engine=engine)
    assert (caught.value.code, caught.value.metadata) == ("INVALID_ARGUMENT", {"field": "engine"})


def test_a_lone_surrogate_never_leaves_the_client(client):
    """No message can hold one: it is a ValueError there, of every method."""
    bad = "a\ud800"
    calls = [
        lambda: client.generate(bad, model="math"),
        lambda: client.generate("x", model=bad),
        lambda: client.generate("x", model="math", stop=bad),
        lambda: client.chat(bad, model="math"),
        lambda: client.chat([{"role": "user", "content": "x", "name": bad}], model="math"),
        lambda: client.tokenize(bad, model="math"),
        lambda: client.get_model(bad),
        lambda: client.load_model(bad),
        lambda: client.load_model("math", engine=bad),
        lambda: client.unload_model(bad),
        lambda: client.set_alias(bad, "math"),
        lambda: client.set_alias("x", bad),
        lambda: client.set_alias("x", "math", etag=bad),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"(?i)surrogate|utf-8"):
            call()


@pytest.mark.parametrize("text", ["\0", "a\0b", "\ufeffx", "\u2028", "\u202e", "e\u0301", "😀", "\x1b[2J", "\r\n", " "])
def test_odd_text_is_a_prompt_like_any_other(client, text):
    """It reaches the model byte for byte, in text and in messages: these models have a token for each byte."""
    size = len(text.encode())
    assert len(client.tokenize(text, model="math").token_ids) == size
    turns = [[{"role": "user", "content": content}] for content in ("x", text)]
    plain, odd = (len(client.tokenize(turn, model="math").token_ids) for turn in turns)
    assert odd - plain == size - 1
    assert client.generate(text, model="math", max_tokens=1).usage.prompt_tokens == size


# Bytes that are not a message, at every method


def call_with(client, method, data):
    """Send bytes to a method; gives the first response, or the status as a dictionary."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    try:
        if not method.server_streaming:
            return client._channel.unary_unary(path)(data, timeout=20)
        call = client._channel.unary_stream(path)(data, timeout=20)
        first = next(call)
        call.cancel()
    except grpc.RpcError as error:
        return status_of(error)
    return first


def status_of(error):
    """What a status of ours has: a code, a reason, the same sentence twice."""
    status = rpc_status.from_call(error)
    assert status is not None, error
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert info.domain == "modelwright"
    assert status.message == error.details()
    common_pb2.ErrorReason.Value(f"ERROR_REASON_{info.reason}")
    return {"code": error.code().name, "reason": info.reason}


REFUSED = {"INVALID_ARGUMENT", "NOT_FOUND", "ABORTED"}
FUZZ = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@FUZZ
@given(data=st.binary(min_size=1, max_size=300))
def test_bytes_of_any_kind_get_a_status_of_ours(client, method, data):
    """Never UNKNOWN, never INTERNAL, and never a change of what is served."""
    answer = call_with(client, method, data)
    assert isinstance(answer, bytes) or answer["code"] in REFUSED


def mostly(usual, odd):
    """Five times out of six the usual: what all fields have to do with must often be right at once."""
    return st.sampled_from([usual] * 5 + [odd]).flatmap(lambda one: one)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ADDRESS = mostly(st.sampled_from(["math@1", "math", "@assistant"]), st.sampled_from(["nope", "@nope", "math@7"]) | TEXT)
SAMPLING = {
    "max_tokens": mostly(st.integers(1, 60), st.integers(-(2**31), 2**31 - 1)),
    "temperature": mostly(st.just(0.0), st.floats()),
    "top_p": mostly(st.just(1.0), st.floats()),
    "top_k": mostly(st.just(0), st.integers(-(2**31), 2**31 - 1)),
    "stop": mostly(st.lists(st.sampled_from(["@", "hi"]), max_size=3), st.lists(TEXT, max_size=40)),
}
SEED = {"seed": st.integers(-(2**63), 2**63 - 1)}  # which this engine cannot take
USUAL_TURN = st.builds(common_pb2.Message, role=st.just(common_pb2.ROLE_USER), content=st.just("hi"))
ODD_TURN = st.builds(common_pb2.Message, role=st.integers(-5, 99), content=TEXT, thinking=TEXT, name=TEXT)
FIELDS = {
    "model": ADDRESS,
    "address": ADDRESS,
    "target": ADDRESS,
    "alias": mostly(st.sampled_from(["assistant", "fresh"]), TEXT),
    "engine": mostly(st.just("echo"), TEXT),
    "prompt": mostly(st.just("hi"), TEXT),
    "text": mostly(st.just("hi"), TEXT),
    "sampling": mostly(
        st.fixed_dictionaries({}, optional=SAMPLING).map(lambda values: common_pb2.Sampling(**values)),
        st.fixed_dictionaries(SEED, optional=SAMPLING).map(lambda values: common_pb2.Sampling(**values)),
    ),
    "messages": mostly(st.lists(USUAL_TURN, min_size=1, max_size=2), st.lists(ODD_TURN, max_size=4)),
}
# What most callers leave out, and what then decides everything.
SELDOM = {"adapter": TEXT, "etag": TEXT}


def request_to(method):
    """A request that could be meant, as bytes: most of what it says is right, and often all."""
    kind = getattr(inference_pb2, method.input_type.name, None) or getattr(model_pb2, method.input_type.name)
    usual, seldom = (
        {name: strategy for name, strategy in fields.items() if name in kind.DESCRIPTOR.fields_by_name}
        for fields in (FIELDS, SELDOM)
    )
    values = mostly(st.fixed_dictionaries(usual), st.fixed_dictionaries({}, optional={**usual, **seldom}))
    return values.map(lambda values: kind(**values).SerializeToString())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_messages_with_odd_values_get_a_status_of_ours_or_an_answer(changing, method):
    """Numbers at their ends, not-a-number, turns of no role, whole or with some bytes changed; and some are answered.

    A model that was unloaded is loaded again for the next.
    """
    answers = []

    @settings(FUZZ, max_examples=60)
    @given(data=st.data())
    def ask(data):
        request = bytearray(data.draw(request_to(method)))
        for _ in range(data.draw(mostly(st.just(0), st.integers(1, 3))) if request else 0):
            request[data.draw(st.integers(0, len(request) - 1))] = data.draw(st.integers(0, 255))
        answers.append(call_with(changing, method, bytes(request)))
        assert isinstance(answers[-1], bytes) or answers[-1]["code"] in REFUSED
        changing.load_model("math@1")

    ask()
    assert any(isinstance(answer, bytes) for answer in answers)
    assert method.name in WITHOUT_FIELDS or any(isinstance(answer, dict) for answer in answers)


# There is nothing in them that could be wrong.
WITHOUT_FIELDS = {"ListModels", "WatchModels"}


@pytest.fixture(scope="module")
def changing(tmp_path_factory):
    """A client of a server whose models and aliases may be changed: `math@1`, and `@assistant` that points to it."""
    shelf = helpers.serving.Shelf(tmp_path_factory.mktemp("changing"))
    shelf.add("math")
    shelf.point("assistant", "math", 1)
    running = helpers.serving.Running(shelf, ["math", "@assistant"])
    try:
        with Client(running.target, timeout=20) as client:
            yield client
            helpers.wait_until(lambda: not any(model.active_requests for model in client.models()), 1)
            helpers.wait_until(lambda: running.table.changes.watchers == 0, 1)
            assert client.generate("hi", model="math").text == "math@1:hi"
    finally:
        running.stop()


@pytest.mark.parametrize(
    "path",
    [
        "/modelwright.v1.InferenceService/Nope",
        "/modelwright.v1.InferenceService/",
        "/modelwright.v2.InferenceService/Generate",
        "/modelwright.v1.ModelService/SetAlias/",
        "/nope",
        "/",
        "//",
        "/grpc.health.v1.Health/Nope",
        "/../etc/passwd",
        "/" + "x" * 4000,
    ],
)
def test_methods_that_are_not_there_are_unimplemented(client, path):
    """As whole calls and as streams."""
    for kind in (client._channel.unary_unary, client._channel.unary_stream, client._channel.stream_stream):
        with pytest.raises(grpc.RpcError) as caught:
            list(kind(path)(b"" if "stream_stream" not in str(kind) else iter([b""]), timeout=10))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# Tokens


@FUZZ
@given(value=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60))
def test_no_guess_opens_a_server_with_a_token(guarded, value):
    """With any header."""
    call = guarded._channel.unary_unary("/modelwright.v1.ModelService/ListModels")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"", timeout=20, metadata=[("authorization", value)])
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    shelf = helpers.serving.Shelf(tmp_path_factory.mktemp("guarded"))
    shelf.add("math")
    running = helpers.serving.Running(shelf, ["math"], token="an-unguessable-token")
    with Client(running.target, timeout=20) as client:
        yield client
    running.stop()
