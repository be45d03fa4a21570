from __future__ import annotations

import pytest

from modelwright import Example, RowError
from modelwright.core.plugins import discover
from modelwright.plugins.formats.general import GeneralFormat, GeneralOptions

USER = {"role": "user", "content": "Hello?"}
ASSISTANT = {"role": "assistant", "content": "Good day."}


def read_one(row, **options):
    (example,) = GeneralFormat(GeneralOptions(**options)).read(row)
    return example


def turns(example):
    return [(message.role, message.content) for message in example.messages]


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        ({"instruction": "Say hi.", "input": "", "output": "hi"}, "Say hi."),
        ({"instruction": "Say hi.", "input": " \n", "output": "hi"}, "Say hi."),
        ({"instruction": "Say hi.", "input": None, "output": "hi"}, "Say hi."),
        ({"instruction": "Say hi.", "output": "hi"}, "Say hi."),
        ({"instruction": "Say hi to him.", "input": "Tom", "output": "hi"}, "Say hi to him.\n\nTom"),
        ({"prompt": "Say hi.", "completion": "hi", "id": 7}, "Say hi."),
    ],
)
def test_alpaca_and_completion_rows_become_one_turn_each(row, asked):
    """Instruction and input, or prompt, are the user's; output, or completion, the assistant's and the reference."""
    example = read_one(row)
    assert turns(example) == [("user", asked), ("assistant", "hi")]
    assert example.answer == "hi"


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_chat_rows_keep_their_turns(column):
    """A conversation keeps all its turns; the reference is what the assistant says last."""
    system = {"role": "system", "content": "Be kind."}
    last = {"role": "assistant", "content": "Bye.", "reasoning_content": "They leave."}
    example = read_one({column: [system, USER, ASSISTANT, USER, last]})
    assert turns(example) == [
        ("system", "Be kind."),
        ("user", "Hello?"),
        ("assistant", "Good day."),
        ("user", "Hello?"),
        ("assistant", "Bye."),
    ]
    assert example.messages[-1].thinking == "They leave."
    assert example.answer == "Bye."
    assert Example.from_row(example.to_row()) == example


def test_options_reach_the_first_question_and_rows_without_a_system():
    """The instruction goes to the first user turn; a row's own system message is kept before the option's."""
    options = {"system": "Mine.", "instruction": "Q: {question}"}
    assert turns(read_one({"messages": [USER, ASSISTANT, USER, ASSISTANT]}, **options)) == [
        ("system", "Mine."),
        ("user", "Q: Hello?"),
        ("assistant", "Good day."),
        ("user", "Hello?"),
        ("assistant", "Good day."),
    ]
    own = {"messages": [{"role": "system", "content": "Its own."}, USER, ASSISTANT]}
    assert turns(read_one(own, **options))[0] == ("system", "Its own.")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "plain"}, "expected the column messages .* this row has: text"),
        ({"instruction": "a"}, "this row has: instruction"),
        ({"messages": None}, "this row has: messages"),
        ({"messages": "hi"}, "column 'messages' must be a list of messages, not str"),
        ({"messages": []}, "column 'messages' is an empty conversation"),
        ({"messages": [USER, "hi"]}, r"messages\[1\] must be a message with role and content, not str"),
        ({"messages": [{"from": "human", "value": "x"}]}, r"messages\[0\] has no role; .* it has: from, value"),
        ({"messages": [USER, {"role": "bot", "content": "x"}]}, r"messages\[1\]: unknown role 'bot'"),
        ({"messages": [USER, {"role": ["user"], "content": "x"}]}, "unknown role"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "content must be text, not NoneType"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}, ASSISTANT]}, "content must be text, not list"),
        ({"messages": [USER]}, "must end with the assistant, not with role 'user'"),
        ({"messages": [ASSISTANT]}, "no message of the user"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "says last is empty"),
        ({"messages": [USER, {"role": "system", "content": "x"}, ASSISTANT]}, "a system message must be the first"),
        (
            {"messages": [USER, {"role": "tool", "content": "x"}, ASSISTANT]},
            r"messages\[1\]: tool calls are not supported",
        ),
        ({"messages": [USER, {**ASSISTANT, "tool_calls": [{}]}]}, r"messages\[1\]: tool calls are not supported"),
        ({"messages": [USER, ASSISTANT], "tools": [{"name": "x"}]}, "column 'tools': tool calls are not supported"),
        ({"messages": [USER, {**ASSISTANT, "thinking": 1}]}, "thinking must be text, not int"),
        ({"instruction": "a", "output": 3}, "column 'output' must be text, not int"),
        ({"instruction": "a", "input": {"x": 1}, "output": "b"}, "column 'input' must be text, not dict"),
        ({"prompt": "", "completion": "b"}, "column 'prompt' is empty"),
        ({"prompt": [USER], "completion": [ASSISTANT]}, "column 'prompt' must be text, not list"),
    ],
)
def test_unreadable_row_is_refused_with_its_reason(row, reason):
    """What is wrong is named with its place; tools are refused rather than dropped."""
    with pytest.raises(RowError, match=reason):
        read_one(row)


def test_formats_are_found_by_name():
    """Both formats come in by the package's entry point and read a row."""
    from modelwright import FormatSpec

    found = discover(strict=True)
    assert {"general", "math"} <= set(found.names("format"))
    (example,) = found.get(FormatSpec, "math").create().read({"question": "q", "answer": "#### 1"})
    assert example.answer == "1"
    (example,) = found.get(FormatSpec, "general").create().read({"prompt": "q", "completion": "1"})
    assert example.answer == "1"
