from __future__ import annotations

import pytest

from modelwright import RowError
from modelwright.core.stages.prepare.examples import read_examples
from modelwright.core.stages.prepare.sources import Row
from modelwright.plugins.formats.general import GeneralFormat, GeneralOptions
from modelwright.plugins.formats.math import MathFormat, MathOptions
from modelwright.plugins.formats.reasoning import ReasoningFormat, ReasoningOptions

USER = {"role": "user", "content": "2 + 2?"}
SAID = {"role": "assistant", "content": "<think>two and two</think>4"}
GENERAL = GeneralFormat(GeneralOptions())
READERS = [GENERAL, ReasoningFormat(ReasoningOptions())]


@pytest.fixture(params=READERS, ids=["general", "reasoning"])
def reader(request):
    return request.param


def test_an_assistant_that_says_nothing_is_refused(wording, reader):
    """To learn it would be to learn silence; a turn that is not trained may be empty."""
    silent = {"role": "assistant", "content": " "}
    with pytest.raises(RowError) as caught:
        reader.read({"messages": [USER, silent, USER, SAID]})
    wording(caught.value)
    with pytest.raises(RowError) as caught:
        reader.read({"messages": [USER, silent]})
    wording(caught.value)
    (example,) = reader.read({"messages": [USER, {**silent, "train": False}, USER, SAID]})
    assert example.messages[1].train is False


@pytest.mark.parametrize("said", ["<think>two and", " \n<think>two and", "<think>two and two</think>\n"])
def test_thinking_without_an_answer_is_refused(wording, reader, said):
    """In any place: in a column, in the last message or in one before."""
    rows = [
        {"prompt": "2 + 2?", "completion": said},
        {"messages": [USER, {**SAID, "content": said}]},
        {"conversations": [USER, {**SAID, "content": said}, USER, SAID]},
    ]
    for row in rows:
        with pytest.raises(RowError) as caught:
            reader.read(row)
        wording(caught.value)


def test_who_begins_and_who_goes_on_is_kept_as_it_was(reader):
    """The chat template decides whether it can show that; nothing is put in order, merged or dropped here."""
    greeting = {"role": "assistant", "content": "Hello."}
    (example,) = reader.read({"messages": [greeting, USER, USER, SAID]})
    assert [message.role for message in example.messages] == ["assistant", "user", "user", "assistant"]


def test_nul_bytes_are_characters():
    """They are what the row says, and JSON and tokenizers have them."""
    (example,) = GENERAL.read({"prompt": "a\0b", "completion": "\0c"})
    assert [message.content for message in example.messages] == ["a\0b", "\0c"]


@pytest.mark.parametrize(
    ("reader", "value"),
    [
        (GENERAL, {"prompt": "\ud800", "completion": "a"}),
        (GENERAL, {"text": "a\udfff"}),
        (GENERAL, {"messages": [USER, {**SAID, "tool_calls": r'[{"name": "f", "arguments": {"a": "\ud800"}}]'}]}),
        (GENERAL, {"messages": [USER, SAID], "tools": r'[{"name": "\udc00"}]'}),
        (MathFormat(MathOptions()), {"question": "q", "answer": "so\n#### \ud800"}),
        (READERS[1], {"prompt": "p", "response": "<think>\ud800</think>4"}),
    ],
)
def test_lone_surrogates_are_refused_where_rows_become_examples(reader, value):
    """Also those that JSON text hides: no tokenizer could take them."""
    reasons = []
    row = Row(file="rows.jsonl", line=1, value=value)
    assert list(read_examples([row], reader, format_name="f", reject=lambda _row, why: reasons.append(why))) == []
    [reason] = reasons
    assert "surrogate" in reason
