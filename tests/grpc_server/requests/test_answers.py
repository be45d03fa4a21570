"""Generate, Chat, their streams, Tokenize and ListModels, on a real channel."""

import pytest

from modelwright.v1 import inference_pb2, inference_pb2_grpc


@pytest.fixture
def client(shelf, serve, connect):
    shelf.add("math")
    shelf.point("assistant", "math", 1)
    return connect(serve("math"))


def test_generate_continues_a_prompt_and_says_who_did(client, shelf):
    """A whole answer: the text, why it ended, what it took, and the digest that made it."""
    answer = client.generate("hi", model="math")
    assert answer.text == "math@1:hi"
    assert answer.finish == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, len("math@1:hi"))
    assert answer.served.address == "math@1"
    assert answer.served.digest == shelf.registry.get("math", 1).digest
    assert answer.served.alias is None
    assert answer.served.adapter_digest is None


@pytest.mark.parametrize("address", ["math", "math@1", "@assistant"])
def test_a_model_answers_by_name_by_version_and_by_alias(client, address):
    """All three forms of an address lead to it; only an alias's answer names the alias and its generation."""
    served = client.generate("hi", model=address).served
    assert served.address == "math@1"
    assert (served.alias, served.alias_generation) == (("assistant", 1) if address == "@assistant" else (None, None))


def test_a_stream_begins_with_who_serves_and_ends_with_why_it_ended(client):
    """The events in their order, as the contract fixes it."""
    request = inference_pb2.GenerateStreamRequest(model="@assistant", prompt="hi")
    stub = inference_pb2_grpc.InferenceServiceStub(client._channel)
    events = list(stub.GenerateStream(request, timeout=20))
    assert [event.WhichOneof("event") for event in events] == ["start", *["delta"] * len("math@1:hi"), "end"]
    assert events[0].start.served.alias == "assistant"
    assert events[0].start.prompt_tokens == 2
    assert "".join(event.delta.text for event in events[1:-1]) == "math@1:hi"
    assert events[-1].end.finish_reason == 1
    assert events[-1].end.usage.completion_tokens == len("math@1:hi")


def test_streaming_gives_the_pieces_and_then_the_whole(client):
    """The client's stream yields text, and knows the whole answer when it is over."""
    with client.stream("hi", model="math") as stream:
        assert stream.served.address == "math@1"
        assert stream.prompt_tokens == 2
        pieces = list(stream)
        assert len(pieces) > 1
        assert stream.generation() == client.generate("hi", model="math")


def test_chat_renders_the_conversation_by_the_models_template(client):
    """The engine sees the template's text; control tokens that a user types are ordinary text there."""
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "a<|im_end|>b"}]
    answer = client.chat(messages, model="math")
    # The engine decodes its prompt without control tokens: what is left of one is what the user typed.
    assert answer.text == "math@1:system\nBe kind.\nuser\na<|im_end|>b\nassistant\n"
    assert client.chat_stream(messages, model="math").generation() == answer


def test_max_tokens_ends_an_answer_by_length(client):
    """The answer is cut there and says so; one that ends by itself at the limit does too."""
    answer = client.generate("hi", model="math", max_tokens=4)
    assert (answer.text, answer.finish, answer.usage.completion_tokens) == ("math", "length", 4)


def test_stop_texts_and_logprobs_reach_the_engine(client):
    """What is asked for is done, in whole answers and in streams."""
    answer = client.generate("hi", model="math", stop="@", logprobs=True)
    assert (answer.text, answer.finish) == ("math", "stop")
    assert answer.logprobs == (-0.5,) * 4
    assert client.stream("hi", model="math", stop=["@", "x"], logprobs=True).generation() == answer


def test_tokenize_shows_what_the_model_would_see(client):
    """A text as Generate would see it, a conversation as Chat would."""
    text = client.tokenize("hi", model="@assistant")
    assert len(text.token_ids) == 2
    assert text.context_length == 128
    assert text.served.alias == "assistant"
    conversation = client.tokenize([{"role": "user", "content": "hi"}], model="math")
    assert len(conversation.token_ids) == client.chat("hi", model="math").usage.prompt_tokens
    assert len(conversation.token_ids) > 2


def test_the_models_and_aliases_are_listed(client, shelf):
    """What a client needs to choose: addresses, digests, abilities, the context, where aliases point."""
    (model,) = client.models()
    assert (model.address, model.state, model.pinned, model.aliases) == ("math@1", "ready", True, ("assistant",))
    assert (model.engine, model.abilities, model.context_length) == ("echo", ("logprobs", "stop"), 128)
    (alias,) = client.aliases()
    assert (alias.alias, alias.address, alias.generation) == ("assistant", "math@1", 1)
    assert alias.digest == model.digest == shelf.registry.get("math").digest


def test_the_newest_version_that_is_served_answers_to_a_bare_name(shelf, serve, connect):
    """A name means the newest of what this server has, even if the registry has more."""
    for _ in range(3):
        shelf.add("math")
    client = connect(serve("math@1", "math@2"))
    assert client.generate("hi", model="math").served.version == 2


def test_a_model_need_not_be_named_where_there_is_only_one(client):
    """The client asks the only model."""
    assert client.generate("hi").served.address == "math@1"


def test_a_proxy_of_the_environment_is_not_used_for_this_machine(shared_server, connect, monkeypatch):
    """Clusters set one, and it has no way to a server on the loopback."""
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert connect(shared_server).generate("hi").text == "math@1:hi"


def test_among_several_models_one_must_be_named(shelf, serve, connect):
    """The client does not guess: it lists them."""
    shelf.add("math")
    shelf.add("general")
    with pytest.raises(Exception, match=r"several models: name one of general@1, math@1"):
        connect(serve("math", "general")).generate("hi")
