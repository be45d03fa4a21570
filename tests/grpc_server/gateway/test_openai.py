"""The official openai client, unchanged, against the REST API."""

import asyncio

import openai
import pytest
from openai import AsyncOpenAI


def texts(stream):
    return [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]


HELLO = [{"role": "user", "content": "hello"}]
# What the echo engine answers: its mark, then the prompt with the template's text, without its control tokens.
ECHO = "math@1:user\nhello\nassistant\n"


def test_a_chat_is_answered_and_says_by_whom(web):
    """Text, finish reason, usage, the model's address, its digest, and in a field of our own all of it."""
    answer = web.openai().chat.completions.create(model="math", messages=HELLO)
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason, choice.message.role) == (ECHO, "stop", "assistant")
    assert (answer.object, answer.model) == ("chat.completion", "math@1")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens == len(ECHO)
    (model,) = web.table.models()
    assert model.version.digest.startswith(answer.system_fingerprint)
    said = answer.model_extra["modelwright"]
    assert said == {"name": "math", "version": 1, "digest": model.version.digest, "alias": None, "generation": None}


def test_a_streamed_chat_is_the_same_answer_piece_by_piece(web):
    """The role first, the finish reason last, then, where asked for, the usage."""
    stream = web.openai().chat.completions.create(
        model="math", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].model_extra["modelwright"]["name"] == "math"
    assert "".join(texts(chunks)) == ECHO
    assert len([text for text in texts(chunks) if text]) == len(ECHO)
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-2:] == [None, "stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(ECHO)
    assert {chunk.usage for chunk in chunks[:-1]} == {None}
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_the_asynchronous_client_works_too(web):
    """Whole and streamed, many at once."""

    async def scenario():
        async with web.openai(AsyncOpenAI) as client:
            whole = [client.chat.completions.create(model="@assistant", messages=HELLO) for _ in range(8)]
            answers = [answer.choices[0].message.content for answer in await asyncio.gather(*whole)]
            stream = await client.chat.completions.create(model="math@1", messages=HELLO, stream=True)
            return answers, [chunk.choices[0].delta.content or "" async for chunk in stream]

    answers, pieces = asyncio.run(scenario())
    assert answers == [ECHO] * 8
    assert "".join(pieces) == ECHO


def test_the_streaming_helper_of_the_client_gathers_the_answer(web):
    """`client.chat.completions.stream`, which checks every event against OpenAI's types."""
    with web.openai().chat.completions.stream(model="math", messages=HELLO) as stream:
        assert stream.get_final_completion().choices[0].message.content == ECHO


def test_a_completion_continues_a_text(web):
    """Whole and streamed; several prompts and several answers to each come in one answer."""
    client = web.openai()
    answer = client.completions.create(model="math", prompt="2 + 3 =", max_tokens=20)
    assert (answer.choices[0].text, answer.object) == ("math@1:2 + 3 =", "text_completion")
    stream = client.completions.create(model="math", prompt="2 + 3 =", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "math@1:2 + 3 ="
    answer = client.completions.create(model="math", prompt=["one", "three"], n=2)
    assert [choice.text for choice in answer.choices] == ["math@1:one"] * 2 + ["math@1:three"] * 2
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.prompt_tokens == len("one") + len("three")


def test_several_answers_stream_side_by_side(web):
    """N = 3: each choice is whole, and has its own start and end."""
    stream = web.openai().chat.completions.create(model="math", messages=HELLO, n=3, stream=True)
    answers, finishes = ["", "", ""], [None, None, None]
    for chunk in stream:
        (choice,) = chunk.choices
        answers[choice.index] += choice.delta.content or ""
        finishes[choice.index] = choice.finish_reason or finishes[choice.index]
    assert answers == [ECHO] * 3
    assert finishes == ["stop"] * 3


def test_log_probabilities_of_the_chosen_tokens_can_be_had(web):
    """In chats, streamed or not, and in completions."""
    client = web.openai()
    answer = client.chat.completions.create(model="math", messages=HELLO, logprobs=True)
    tokens = answer.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == ECHO
    assert {token.logprob for token in tokens} == {-0.5}
    stream = client.chat.completions.create(model="math", messages=HELLO, logprobs=True, stream=True)
    parts = [chunk.choices[0].logprobs for chunk in stream]
    assert "".join(token.token for part in parts if part for token in part.content) == ECHO
    answer = client.completions.create(model="math", prompt="2", logprobs=0)
    assert answer.choices[0].logprobs.tokens == list("math@1:2")
    assert answer.choices[0].logprobs.token_logprobs == [-0.5] * 8


def test_max_tokens_and_stop_end_an_answer(web):
    """With OpenAI's finish reasons; both names of the limit are taken."""
    client = web.openai()
    for name in ("max_tokens", "max_completion_tokens"):
        choice = client.chat.completions.create(model="math", messages=HELLO, **{name: 4}).choices[0]
        assert (choice.message.content, choice.finish_reason) == ("math", "length")
    choice = client.chat.completions.create(model="math", messages=HELLO, stop=":").choices[0]
    assert (choice.message.content, choice.finish_reason) == ("math@1", "stop")


def test_what_changes_nothing_is_accepted(web):
    """The neutral values that clients send of themselves, and notes of the caller's."""
    answer = web.openai().chat.completions.create(
        model="math",
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "he"}, {"type": "text", "text": "llo"}]},
        ],
        frequency_penalty=0,
        presence_penalty=0.0,
        logit_bias={},
        n=1,
        user="me",
        metadata={"a": "b"},
        store=False,
        parallel_tool_calls=True,
        tools=[],
        tool_choice="auto",
        response_format={"type": "text"},
        service_tier="auto",
        top_logprobs=None,
        modalities=["text"],
        safety_identifier="x",
    )
    assert answer.choices[0].message.content == "math@1:system\nbe brief\nuser\nhello\nassistant\n"


def test_an_answer_can_be_sent_back_as_it_came(web):
    """The client's own record of a turn, every empty field in it, is a turn of the next request."""
    client = web.openai()
    said = client.chat.completions.create(model="math", messages=HELLO).choices[0].message
    assert client.chat.completions.create(model="math", messages=[*HELLO, said.model_dump(), *HELLO]).choices
    assert client.chat.completions.create(model="math", messages=[*HELLO, said, *HELLO]).choices


def test_an_alias_needs_no_at_sign_unless_a_model_is_so_called(shelf, serve_http):
    """OpenAI's users give plain names; a model's own name comes first."""
    shelf.add("math")
    shelf.add("other")
    shelf.point("production", "math", 1)
    shelf.point("other", "math", 1)
    client = serve_http("math", "other").openai()

    def who(model):
        answer = client.completions.create(model=model, prompt="x")
        said = answer.model_extra["modelwright"]
        return said["name"], said["alias"], said["generation"]

    assert who("production") == ("math", "production", 1)
    assert who("@production") == ("math", "production", 1)
    assert who("other") == ("other", None, None)
    assert who("@other") == ("math", "other", 1)


def test_models_are_listed_and_described(web):
    """Every id in the list can be asked."""
    client = web.openai()
    ids = [model.id for model in client.models.list()]
    assert ids == ["@assistant", "math@1"]
    for name in [*ids, "math", "assistant"]:
        model = client.models.retrieve(name)
        assert (model.id, model.owned_by) == (name, "modelwright")
        assert model.model_extra["modelwright"]["context_length"] == 2048
        assert client.completions.create(model=name, prompt="x").choices[0].text == "math@1:x"


def test_thinking_comes_in_its_own_field(shelf, serve_http):
    """As reasoning_content, whole and streamed; and it is taken back in a turn of the assistant."""
    shelf.add("deep", mark="<think>carry the one</think>five", context=2048)
    client = serve_http("deep").openai()
    message = client.chat.completions.create(model="deep", messages=HELLO, stop=":").choices[0].message
    assert (message.content, message.model_extra["reasoning_content"]) == ("five", "carry the one")
    stream = client.chat.completions.create(model="deep", messages=HELLO, stop=":", stream=True)
    deltas = [chunk.choices[0].delta for chunk in stream]
    assert "".join(delta.content or "" for delta in deltas) == "five"
    assert "".join((delta.model_extra or {}).get("reasoning_content", "") for delta in deltas) == "carry the one"
    again = [*HELLO, message.model_dump(), *HELLO]
    assert client.chat.completions.create(model="deep", messages=again).choices


# Errors


def test_errors_raise_the_clients_own_classes(web):
    """With message, type, param and code."""
    client = web.openai()
    with pytest.raises(openai.NotFoundError, match="it serves: @assistant, math@1") as caught:
        client.chat.completions.create(model="gpt-9", messages=HELLO)
    assert (caught.value.code, caught.value.param, caught.value.type) == (
        "model_not_found",
        "model",
        "invalid_request_error",
    )
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")
    with pytest.raises(openai.BadRequestError, match=r"temperature is -1\.0: expected a finite number") as caught:
        client.chat.completions.create(model="math", messages=HELLO, temperature=-1)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="engine 'echo'"):
        client.chat.completions.create(model="math", messages=HELLO, temperature=0.5)
    with pytest.raises(openai.BadRequestError, match=r"max_completion_tokens is 4000, but the prompt has") as caught:
        client.chat.completions.create(model="math", messages=HELLO, max_completion_tokens=4000)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="streem") as caught:
        client.chat.completions.create(model="math", messages=HELLO, extra_body={"streem": True})
    assert (caught.value.code, caught.value.param) == ("unknown_field", "streem")


def test_a_stream_that_cannot_begin_is_an_ordinary_error(web):
    """Before the first event there is still a status to say it with."""
    with pytest.raises(openai.NotFoundError):
        web.openai().chat.completions.create(model="gpt-9", messages=HELLO, stream=True)


def test_a_full_server_is_a_rate_limit(shelf, serve_http, wait_until):
    """With Retry-After; each of several answers takes a place."""
    shelf.add("slow", seconds_per_token=0.05)
    web = serve_http("slow", max_requests=2)
    client = web.openai()
    with client.completions.create(model="slow", prompt="x" * 50, n=2, stream=True):
        wait_until(lambda: web.active == 2)
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(model="slow", prompt="x")
        assert caught.value.response.headers["retry-after"] == "1"
        assert caught.value.code == "too_many_requests"
    wait_until(lambda: web.active == 0)
    with pytest.raises(openai.RateLimitError):
        client.completions.create(model="slow", prompt="x", n=3)
    wait_until(lambda: web.active == 0)
    assert client.completions.create(model="slow", prompt="x").choices[0].text == "slow@1:x"


def test_an_error_in_the_middle_of_a_stream_is_raised_there(shelf, serve_http):
    """Half an answer never looks whole."""
    shelf.add("slow", seconds_per_token=0.02)
    web = serve_http("slow")
    stream = web.openai().completions.create(model="slow", prompt="x" * 100, stream=True)
    assert any(chunk.choices[0].text for chunk in stream)  # the engine has begun
    (engine,) = [model.engine for model in web.table.models()]
    web.loop.call_soon_threadsafe(lambda: [engine.cancel(number) for number in list(engine.running)])
    with pytest.raises(openai.APIError, match="ended this request early"):
        list(stream)
