"""What cannot be done is refused with the right status and a sentence, and the server goes on."""

import string

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelwright import NewModel, UsageError
from modelwright.grpc_server.client import ServerError
from modelwright.v1 import common_pb2, inference_pb2, inference_pb2_grpc

LIMIT = 64 * 1024
CHAT = "/modelwright.v1.InferenceService/Chat"
GENERATE = "/modelwright.v1.InferenceService/Generate"
STREAM = "/modelwright.v1.InferenceService/GenerateStream"


@pytest.fixture
def client(shared_server, connect):
    return connect(shared_server)


@pytest.fixture
def ask(client):
    """Sends bytes to a method; gives the error's code, ErrorInfo and message."""

    def send(method, data):
        stream = method == STREAM
        call = (client._channel.unary_stream if stream else client._channel.unary_unary)(method)
        with pytest.raises(grpc.RpcError) as caught:
            list(call(data, timeout=20))
        status = rpc_status.from_call(caught.value)
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        waits = [detail.Unpack(retry) for detail in status.details]
        assert any(detail.Unpack(info) for detail in status.details)
        assert info.domain == "modelwright"
        assert status.message == caught.value.details()
        assert not any(waits)
        return caught.value.code().name, info, status.message

    return send


def refusal(client, **options):
    options = {"prompt": "hi", "model": "math", **options}
    with pytest.raises(ServerError) as caught:
        client.generate(options.pop("prompt"), **options)
    return caught.value


@pytest.mark.parametrize(
    "sent",
    [
        {"prompt": ""},
        {"max_tokens": 0},
        {"max_tokens": -5},
        {"temperature": -0.5},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_p": float("nan")},
        {"top_k": -1},
        {"seed": -1},
        {"stop": ["x", ""]},
        {"stop": ["x"] * 33},
        {"stop": ["x", "y" * 1001]},
        {"model": ""},
        {"model": "math@newest"},
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_a_value_that_cannot_be_is_an_invalid_argument_that_names_the_field(client, sent, wording):
    """Each field's own sentence; and the next request is answered."""
    error = refusal(client, **sent)
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    wording(error.message)
    assert error.metadata["field"] in error.message
    assert client.generate("hi", model="math").text == "math@1:hi"


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ({"temperature": 0.7}, "sampling.temperature"),
        ({"top_p": 0.9}, "sampling.top_p"),
        ({"top_k": 5}, "sampling.top_k"),
        ({"seed": 1}, "sampling.seed"),
    ],
)
def test_what_the_engine_cannot_do_is_refused_and_never_ignored(client, sent, field, wording):
    """The echo engine can stop and give log-probabilities, and says so."""
    error = refusal(client, **sent)
    assert (error.code, error.reason, error.metadata) == ("INVALID_ARGUMENT", "UNSUPPORTED", {"field": field})
    wording(error.message)


def test_values_that_change_nothing_need_no_ability(client):
    """Greedy decoding said in words is greedy decoding."""
    assert client.generate("hi", model="math", temperature=0.0, top_p=1.0, top_k=0).text == "math@1:hi"


def test_the_context_bounds_prompt_and_answer_together(client, wording):
    """A prompt beyond it, max_tokens beyond the rest, and the edge, where both just fit."""
    too_long = refusal(client, prompt="x" * 200)
    assert (too_long.code, too_long.reason) == ("INVALID_ARGUMENT", "CONTEXT_EXCEEDED")
    wording(too_long.message)
    assert too_long.metadata == {"context_length": "128", "prompt_tokens": "200"}
    full = refusal(client, prompt="x" * 128)
    assert full.reason == "CONTEXT_EXCEEDED"
    greedy = refusal(client, prompt="x" * 100, max_tokens=29)
    wording(greedy.message)
    assert client.generate("x" * 100, model="math", max_tokens=28).usage.completion_tokens == 28
    assert client.generate("x" * 127, model="math").usage.completion_tokens == 1


@pytest.mark.parametrize("address", ["gsm8k", "math@2", "@assistant"])
def test_a_model_that_is_not_served_is_not_found_and_the_served_ones_are_named(client, address, wording):
    """Also where it has a stream."""
    for ask in (client.generate, client.stream, client.chat, client.tokenize):
        with pytest.raises(ServerError) as caught:
            ask("hi", model=address)
        assert (caught.value.code, caught.value.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")
        assert address in caught.value.message
        wording(caught.value.message)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "unspecified", "content": "hi"}],
        [{"role": "user", "content": "hi"}, {"role": "user", "content": ""}],
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}],
        [{"role": "user", "content": "hi", "thinking": "hm"}],
        [{"role": "tool", "content": "4"}],
        [{"role": "user", "content": "hi", "name": "Ada"}],
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_a_conversation_that_cannot_be_is_refused_by_turn(client, messages, wording):
    """The sentence counts the turns from 0, as programs do."""
    with pytest.raises(ServerError) as caught:
        client.chat(messages, model="math")
    assert caught.value.code == "INVALID_ARGUMENT"
    wording(caught.value.message)


def test_a_conversation_that_the_template_refuses_is_an_invalid_argument(shelf, serve, connect):
    """The template's own words reach the caller."""
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('No system turn, please') }}{% endif %}x"
    model = shelf.folder / "picky-1"
    shelf.add("math")
    (shelf.folder / "math-1").rename(model)
    (model / "tokenizer_config.json").write_text(f'{{"chat_template": "{template}"}}')
    shelf.registry.add(NewModel(name="picky", fingerprint="picky"), model)
    client = connect(serve("picky"))
    with pytest.raises(ServerError, match="No system turn, please") as caught:
        client.chat([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], model="picky")
    assert (caught.value.code, caught.value.reason) == ("INVALID_ARGUMENT", "TEMPLATE_REFUSED")
    assert client.chat("u", model="picky").text == "math@1:x"  # the mark that the folder was made with


def test_adapters_and_tools_are_refused_by_this_version(client, ask, wording):
    """They are in the contract, and not served yet."""
    request = inference_pb2.GenerateRequest(model="math", prompt="hi", adapter="law")
    _, info, message = ask(GENERATE, request.SerializeToString())
    assert info.metadata["field"] == "adapter"
    wording(message)
    message = common_pb2.Message(role=common_pb2.ROLE_USER, content="hi")
    request = inference_pb2.ChatRequest(model="math", messages=[message], tools=[common_pb2.Tool(name="add")])
    code, info, message = ask(CHAT, request.SerializeToString())
    assert (code, info.reason, info.metadata["field"]) == ("INVALID_ARGUMENT", "UNSUPPORTED", "tools")
    wording(message)


@pytest.mark.parametrize("method", [GENERATE, STREAM, CHAT])
def test_text_that_is_not_utf8_is_an_invalid_argument(client, ask, method, wording):
    """grpc.aio itself would answer UNKNOWN."""
    code, info, message = ask(method, b"\x0a\x04math\x1a\x02\xff\xfe")
    assert (code, info.reason) == ("INVALID_ARGUMENT", "MALFORMED_MESSAGE")
    wording(message.partition("message:")[0])
    assert client.generate("hi", model="math").text == "math@1:hi"


@pytest.mark.parametrize("size", [LIMIT + 1, LIMIT + 512 * 1024])
@pytest.mark.parametrize("method", [GENERATE, STREAM])
def test_a_message_beyond_the_limit_is_refused(client, ask, size, method, wording):
    """The sentence has the numbers; the server goes on."""
    code, info, message = ask(method, b"x" * size)
    wording(message)
    assert (code, info.reason) == ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE")
    assert dict(info.metadata) == {"bytes": str(size), "limit": str(LIMIT)}
    assert client.generate("hi", model="math").text == "math@1:hi"


def test_a_message_beyond_what_grpc_itself_reads_has_the_same_status(client):
    """It is refused before it is read whole, in gRPC's words."""
    with pytest.raises(ServerError) as caught:
        client.generate("x" * (LIMIT + 3 * 1024 * 1024), model="math")
    assert caught.value.code == "RESOURCE_EXHAUSTED"
    assert client.generate("hi", model="math").text == "math@1:hi"


def test_a_message_at_the_limit_is_read(ask):
    """The limit itself is allowed: what is wrong then is the prompt's length."""
    request = inference_pb2.GenerateRequest(model="math", prompt="x")
    request.prompt *= LIMIT - request.ByteSize() - 1
    assert request.ByteSize() == LIMIT
    assert ask(GENERATE, request.SerializeToString())[1].reason == "CONTEXT_EXCEEDED"


def test_an_unknown_field_is_refused_at_any_depth(client, ask, wording):
    """A newer client's wish is not silently dropped, at the top or deep inside."""
    request = inference_pb2.GenerateRequest(model="math", prompt="hi")
    code, info, message = ask(GENERATE, request.SerializeToString() + b"\xfa\x06\x01x")
    assert (code, info.reason, info.metadata["field"]) == ("INVALID_ARGUMENT", "UNKNOWN_FIELD", "GenerateRequest")
    wording(message)
    request.sampling.MergeFromString(b"\xfa\x06\x01x")
    assert ask(GENERATE, request.SerializeToString())[1].metadata["field"] == "GenerateRequest.sampling"
    chat = inference_pb2.ChatRequest(model="math", messages=[common_pb2.Message(content="hi")])
    chat.messages[0].MergeFromString(b"\xfa\x06\x01x")
    assert ask(CHAT, chat.SerializeToString())[1].metadata["field"] == "ChatRequest.messages"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200))
def test_no_bytes_bring_the_server_down(client, data):
    """Any message is answered or is the caller's mistake, never UNKNOWN or INTERNAL."""
    try:
        client._channel.unary_unary(GENERATE)(data, timeout=20)
    except grpc.RpcError as error:
        assert error.code().name in {"INVALID_ARGUMENT", "NOT_FOUND"}  # noqa: PT017 - an answer is fine too
    assert client.generate("hi", model="math").text == "math@1:hi"


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(address=st.text(max_size=300) | st.text(string.printable, min_size=2000, max_size=4000))
def test_errors_that_quote_long_text_stay_small_enough_to_be_sent(client, address):
    """A status travels in headers of 8 KiB; a long address is cut in it."""
    error = refusal(client, model=address)
    assert error.code in {"INVALID_ARGUMENT", "NOT_FOUND"}
    assert error.reason in {"INVALID_FIELD", "MODEL_NOT_FOUND"}
    assert len(error.message.encode()) <= 1000


def test_methods_of_the_contract_that_are_to_come_say_so(client, wording):
    """Every method of both services is there; those without an implementation are UNIMPLEMENTED."""
    inference = inference_pb2_grpc.InferenceServiceStub(client._channel)
    calls = [lambda: inference.Score(inference_pb2.ScoreRequest(), timeout=20)]
    for call in calls:
        with pytest.raises(grpc.RpcError) as caught:
            call()
        wording(caught.value.details())
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_an_engine_that_breaks_is_an_internal_error_that_tells_no_secrets(shelf, serve, connect, caplog, wording):
    """The log has the traceback; the caller learns what kind it was; other models answer."""
    shelf.add("math")
    running = serve("math")
    client = connect(running)
    running.table.models()[0].engine.mute = True
    error = refusal(client)
    assert (error.code, error.reason) == ("INTERNAL", "INTERNAL")
    assert "it does not speak" not in error.message
    wording(error.message)
    assert "it does not speak" in caplog.text
    running.table.models()[0].engine.mute = False
    assert client.generate("hi", model="math").text == "math@1:hi"


def test_what_the_engine_refuses_is_an_invalid_argument_of_the_whole_request(shelf, serve, connect, monkeypatch):
    """Its sentence reaches the caller; what is wrong in one field was found before."""
    shelf.add("math")
    running = serve("math")

    def refuse(_request):
        raise UsageError("token 999 is not in the vocabulary")

    monkeypatch.setattr(running.table.models()[0].engine, "submit", refuse)
    error = refusal(connect(running))
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert (error.message, error.metadata) == ("token 999 is not in the vocabulary", {"field": "request"})


@pytest.mark.parametrize("method", [GENERATE, STREAM])
def test_a_call_without_a_message_is_an_invalid_argument(client, method, wording):
    """Python's gRPC would leave it without an answer for ever."""
    call = client._channel.stream_stream(method)(iter(()), timeout=10)
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    wording(caught.value.details())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
