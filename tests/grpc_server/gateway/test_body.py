"""From bytes to JSON, and from JSON to protobuf: any valid value comes through unchanged."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modelwright.grpc_server.gateway.body import MOST_LEVELS, parse_object
from modelwright.grpc_server.gateway.errors import HttpError
from modelwright.grpc_server.gateway.openai_request import read_chat, vary
from modelwright.grpc_server.gateway.responses import full_address
from modelwright.v1 import common_pb2, inference_pb2

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(value=st.dictionaries(TEXT, JSON), ascii_only=st.booleans(), indent=st.none() | st.just(2))
@example(value={"NaN": '"NaN [[[ \\', "a": "Infinity"}, ascii_only=False, indent=None)
def test_every_json_object_is_read_as_it_was_written(value, ascii_only, indent):
    """Escaped or not, on one line or many."""
    assert parse_object(json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()) == value


def read(data):
    """What comes of it: an object or the error."""
    try:
        return parse_object(data)
    except HttpError as error:
        return error


@given(data=st.binary(max_size=200) | st.text(alphabet='{}[]",:\\u0123NaIinfty- \n', max_size=60).map(str.encode))
def test_every_other_text_is_an_error_of_one_line(data):
    """Never another exception."""
    outcome = read(data)
    if isinstance(outcome, HttpError):
        assert outcome.status == 400
        assert "\n" not in str(outcome)
    else:
        assert isinstance(outcome, dict)


def test_brackets_count_outside_of_texts_only():
    """As deep as it may be, and no deeper."""
    deep = "[" * (MOST_LEVELS - 1) + "]" * (MOST_LEVELS - 1)
    assert parse_object(f'{{"a": {deep}, "b": "{"[" * 1000}"}}'.encode())["b"] == "[" * 1000
    with pytest.raises(HttpError, match="more than 64 levels deep"):
        parse_object(f'{{"a": [{deep}]}}'.encode())


@pytest.mark.parametrize("text", ['"', '"\\', '\\"', '{"a":"', "[]", '"a"', "\\u"])
def test_a_text_made_to_be_read_many_times_is_read_once(text):
    """Time grows with the length alone: a million characters of any kind take seconds at most."""
    with pytest.raises(HttpError):
        parse_object((text * (1_000_000 // len(text))).encode())


@given(parts=st.lists(TEXT.filter(bool), min_size=1, max_size=4), seed=st.integers(0, 2**63 - 1))
def test_messages_come_through_unchanged(parts, seed):
    """As one text or in parts; null is as good as absent."""
    body = {
        "model": "math",
        "messages": [
            {"role": "developer", "content": parts[0], "name": None},
            {"role": "assistant", "content": None, "reasoning_content": parts[-1]},
            {"role": "user", "content": [{"type": "text", "text": part} for part in parts]},
        ],
        "seed": seed,
        "temperature": None,
    }
    (request,) = read_chat(body).requests
    assert [message.content for message in request.messages] == [parts[0], "", "".join(parts)]
    assert [message.role for message in request.messages] == [1, 3, 2]
    assert request.messages[1].thinking == parts[-1]
    assert request.sampling.seed == seed
    assert not request.sampling.HasField("temperature")
    assert not request.messages[0].HasField("name")


@given(seed=st.integers(0, 2**62), count=st.integers(1, 16))
def test_the_seeds_of_several_answers_are_their_own(seed, count):
    """The first is the request's; none of the others is the first of a neighbour."""
    request = inference_pb2.GenerateRequest(sampling=common_pb2.Sampling(seed=seed))
    seeds = [varied.sampling.seed for varied in vary(request, count)]
    assert seeds[0] == seed
    assert len(set(seeds)) == count
    assert not {seed + step for step in range(1, 17)} & set(seeds)


def test_without_a_seed_every_answer_draws_its_own():
    """The engine draws it."""
    requests = vary(inference_pb2.GenerateRequest(), 3)
    assert not any(request.sampling.HasField("seed") for request in requests)


def test_an_address_with_its_sign_is_taken_as_it_is(web):
    """Only a plain name is looked up among the aliases."""
    for text in ("math", "math@1", "@assistant", "nobody", ""):
        assert full_address(web.table, text) == text
    assert full_address(web.table, "assistant") == "@assistant"
