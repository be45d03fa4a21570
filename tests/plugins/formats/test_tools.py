from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ids import shown

from modelwright import RowError
from modelwright.plugins.formats.conversations import read_calls, read_tools
from modelwright.plugins.formats.general import GeneralColumns, GeneralFormat, GeneralOptions
from modelwright.plugins.formats.reasoning import ReasoningFormat, ReasoningOptions

FUNCTION = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {"a": {}}}}
TOOL = {"type": "function", "function": FUNCTION}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"b": 1, "a": null}'}}
KEPT_CALL = {**CALL, "function": {"name": "add", "arguments": {"b": 1, "a": None}}}
USER = {"role": "user", "content": "2 + 2?"}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "4"}
ANSWER = {"role": "assistant", "content": "Four."}
SAYS_CALL = {"from": "function_call", "value": json.dumps({"name": "add", "arguments": {"b": 1}})}


def read_one(row, **options):
    (example,) = GeneralFormat(GeneralOptions(**options)).read(row)
    return example


def test_openai_conversation_keeps_tools_calls_and_results():
    """Calls have objects for arguments, whose order stays; a result has the name of the tool that its id belongs to."""
    example = read_one({"messages": [USER, CALLING, RESULT, ANSWER], "tools": [TOOL]})
    question, calling, result, answer = example.messages
    assert json.loads(example.tools) == [TOOL]
    assert (question.content, calling.content, answer.content) == ("2 + 2?", "", "Four.")
    assert calling.tool_calls == json.dumps([KEPT_CALL])
    assert (result.role, result.content, result.tool_call_id, result.name) == ("tool", "4", "c1", "add")
    assert example.answer == "Four."


@pytest.mark.parametrize("result", ["observation", "tool", "function_response"])
@pytest.mark.parametrize("tools", [json.dumps([FUNCTION]), [FUNCTION], [TOOL], json.dumps([TOOL]), [json.dumps(TOOL)]])
def test_sharegpt_conversation_keeps_tools_calls_and_results(result, tools):
    """A call is JSON text; the tools are, too, or a list."""
    said = [{"from": "human", "value": "2 + 2?"}, SAYS_CALL, {"from": result, "value": "4"}]
    row = {"conversations": [*said, {"from": "gpt", "value": "Four."}], "tools": tools, "system": "Add."}
    example = read_one(row)
    assert [message.role for message in example.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert json.loads(example.tools) == [TOOL]
    (call,) = json.loads(example.messages[2].tool_calls)
    assert call == {"type": "function", "function": {"name": "add", "arguments": {"b": 1}}}
    assert (example.messages[3].content, example.messages[3].name) == ("4", "add")


def test_calls_of_the_older_form_are_read():
    """`function_call` and the role `function`."""
    calling = {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": ""}}
    result = {"role": "function", "name": "add", "content": {"sum": 4, "error": None}}
    messages = read_one({"messages": [USER, calling, result, ANSWER]}).messages
    assert json.loads(messages[1].tool_calls)[0]["function"] == {"name": "add", "arguments": {}}
    assert (messages[2].role, messages[2].name, messages[2].content) == ("tool", "add", '{"sum": 4}')


def test_a_conversation_may_end_with_a_call():
    """What is trained then is the call; there is no text to grade against."""
    example = read_one({"messages": [USER, CALLING], "tools": [TOOL]})
    assert (example.messages[-1].content, example.answer) == ("", None)
    thinking = read_one({"messages": [USER, {**CALLING, "content": "<think>Add.</think>"}]})
    assert thinking.messages[-1].content == "<think>Add.</think>"


def test_thinking_before_a_call_is_parted_from_it():
    """The format `reasoning` reads the same conversations."""
    row = {"messages": [USER, {**CALLING, "content": "<think>Add.</think>"}, RESULT, ANSWER], "tools": [TOOL]}
    (example,) = ReasoningFormat(ReasoningOptions()).read(row)
    calling = example.messages[1]
    assert (calling.thinking, calling.content, json.loads(calling.tool_calls)) == ("Add.", "", [KEPT_CALL])
    assert json.loads(example.tools) == [TOOL]


def test_several_calls_are_answered_each_by_its_id():
    """In any order of the results; without ids a result of several calls stays without a name."""
    other = {"id": "c2", "function": {"name": "mul", "arguments": {}}}
    calling = {**CALLING, "tool_calls": [CALL, other]}
    results = [{**RESULT, "tool_call_id": "c2"}, RESULT]
    messages = read_one({"messages": [USER, calling, *results, ANSWER]}).messages
    assert [message.name for message in messages[2:4]] == ["mul", "add"]
    nameless = {"role": "tool", "content": "4"}
    assert read_one({"messages": [USER, calling, nameless, ANSWER]}).messages[2].name is None


def test_nulls_of_arrow_are_left_out_and_those_of_json_text_kept():
    """Parquet fills a list of objects up with the keys of them all; nobody meant those."""
    tools = [{"name": "add", "parameters": {"properties": {"a": {"enum": [1, None]}, "of_another": None}}}]
    calls = [{"function": {"name": "add", "arguments": {"a": 1, "of_another": None}}, "id": None}]
    assert "of_another" not in read_tools(tools, "tools") + read_calls(calls, "calls")
    assert "[1, null]" in read_tools(tools, "tools")
    assert "of_another" in read_tools(json.dumps(tools), "tools")


def test_tools_stand_beside_any_turns_and_may_be_named():
    """Also beside a prompt and a completion; empty ones are none."""
    row = {"prompt": "2 + 2?", "completion": "Four.", "tools": [TOOL]}
    assert json.loads(read_one(row).tools) == [TOOL]
    named = GeneralColumns(prompt="prompt", completion="completion", tools="offer")
    assert read_one({**row, "offer": "[]"}, columns=named).tools is None
    assert json.loads(read_one({**row, "offer": TOOL}, columns=named).tools) == [TOOL]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, RESULT, ANSWER]},
        {"messages": [USER, CALLING, {**RESULT, "tool_call_id": "c9"}, ANSWER]},
        {"messages": [USER, CALLING, {**RESULT, "content": 4}, ANSWER]},
        {"messages": [USER, CALLING, {**RESULT, "tool_call_id": 1}, ANSWER]},
        {"messages": [USER, CALLING, RESULT]},
        {"messages": [{**USER, "tool_calls": [CALL]}, ANSWER]},
        {"messages": [USER, {**ANSWER, "tool_calls": [{}]}]},
        {"messages": [USER, {**ANSWER, "tool_calls": [CALL, 1]}]},
        {"messages": [USER, {**ANSWER, "tool_calls": "add(1)"}]},
        {"messages": [USER, {**ANSWER, "tool_calls": 1}]},
        {"messages": [USER, {**ANSWER, "tool_calls": [{"name": "add", "arguments": "b=1"}]}]},
        {"messages": [USER, {**ANSWER, "tool_calls": [{"name": "add", "arguments": "[1]"}]}]},
        {"messages": [USER, {**ANSWER, "tool_calls": [{"name": "add", "arguments": {"a": float("nan")}}]}]},
        {"messages": [USER, {**ANSWER, "tool_calls": [{"name": "add", "id": 1}]}]},
        {"conversations": [{"from": "human", "value": "x"}, {"from": "function_call", "value": ""}]},
        {"messages": [USER, ANSWER], "tools": ["add"]},
        {"messages": [USER, ANSWER], "tools": [{"type": "x"}]},
        {"messages": [USER, ANSWER], "tools": "[NaN]"},
        {"messages": [USER, ANSWER], "tools": "[" * 100_000},
        {"messages": [USER, ANSWER], "tools": 1},
    ],
    ids=shown,
)
def test_broken_tools_are_refused_with_their_place(wording, row):
    """Nothing of a call is guessed or dropped."""
    with pytest.raises(RowError) as caught:
        read_one(row)
    wording(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["[]", "{}", "[{"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "function", "arguments", "parameters", "id", "type"]) | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@pytest.mark.parametrize("read", [read_tools, read_calls])
@given(value=json_values, as_text=st.booleans())
def test_any_value_for_tools_becomes_json_or_a_reason(read, value, as_text):
    """What is read is read again as the same."""
    try:
        text = read(json.dumps(value) if as_text else value, "here")
    except RowError:
        return
    if text is not None:
        assert isinstance(json.loads(text), list)
        assert read(text, "here") == text


arguments = st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=5), max_size=4)


@given(arguments)
def test_arguments_in_json_text_are_kept_to_the_letter(given_arguments):
    """Nulls, order and all characters."""
    text = read_calls([{"name": "f", "arguments": json.dumps(given_arguments)}], "here")
    (call,) = json.loads(text)
    assert list(call["function"]["arguments"].items()) == list(given_arguments.items())
