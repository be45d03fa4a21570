"""Chat parts what a model thinks from what it answers; Generate gives what it writes."""

import pytest

from modelwright.v1 import inference_pb2, inference_pb2_grpc


@pytest.fixture
def client(shelf, serve, connect):
    shelf.add("thinker", mark="<think>\nLet me see.\n</think>\n\nIt is")
    shelf.add("endless", mark="<think>so")
    shelf.add("plain")
    return connect(serve("thinker", "endless", "plain"))


def test_an_answer_has_the_thinking_and_the_text_apart(client):
    """Every token is in the usage, of both."""
    answer = client.chat("4?", model="thinker")
    assert answer.thinking == "Let me see."
    assert answer.text == "It is:user\n4?\nassistant\n"
    assert answer.usage.completion_tokens == len(answer.token_ids) > len(answer.thinking) + len(answer.text)


def test_a_stream_gives_the_text_and_gathers_the_thinking(client):
    """Its parts have both as they come, and the whole is the same."""
    with client.chat_stream("4?", model="thinker") as stream:
        first = next(stream)
        assert first == "I"
        assert stream.thinking == "Let me see."
        assert stream.generation() == client.chat("4?", model="thinker")
    with client.chat_stream("4?", model="thinker") as stream:
        parts = list(stream.parts())
    assert all(bool(part.text) != bool(part.thinking) for part in parts)
    assert "".join(part.thinking for part in parts) == "Let me see."
    assert "".join(part.text for part in parts) == "It is:user\n4?\nassistant\n"


def test_on_the_wire_deltas_carry_thinking_and_no_token_is_lost(client):
    """Tokens of a tag that shows no text are there, too."""
    request = inference_pb2.ChatStreamRequest(model="thinker", messages=[{"role": "ROLE_USER", "content": "4?"}])
    stub = inference_pb2_grpc.InferenceServiceStub(client._channel)
    events = list(stub.ChatStream(request, timeout=20))
    deltas = [event.delta for event in events if event.HasField("delta")]
    tokens = [token for delta in deltas for token in delta.token_ids]
    assert len(tokens) == events[-1].end.usage.completion_tokens
    assert any(delta.HasField("thinking") for delta in deltas)
    assert not any(delta.HasField("thinking") and not delta.thinking for delta in deltas)


def test_thinking_that_does_not_end_is_all_thinking(client):
    """The answer did not come: its text is empty."""
    answer = client.chat("4?", model="endless", max_tokens=12)
    assert (answer.text, answer.finish) == ("", "length")
    assert answer.thinking == "so:us"


def test_a_model_that_does_not_think_has_no_thinking(client):
    """And its text is unchanged."""
    answer = client.chat("4?", model="plain")
    assert (answer.thinking, answer.text) == ("", "plain@1:user\n4?\nassistant\n")


def test_generate_gives_what_the_model_writes(client):
    """Raw text, the tags among it."""
    answer = client.generate("4?", model="thinker")
    assert answer.text == "<think>\nLet me see.\n</think>\n\nIt is:4?"
    assert answer.thinking == ""
    assert client.stream("4?", model="thinker").generation() == answer
