from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright import Example, RowError
from modelwright.plugins.formats.general import GeneralColumns, GeneralFormat, GeneralOptions
from modelwright.plugins.formats.math import MathColumns, MathFormat, MathOptions
from modelwright.plugins.formats.reasoning import ReasoningColumns, ReasoningFormat, ReasoningOptions

CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SHAREGPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
READERS = {
    "general": GeneralFormat(GeneralOptions()),
    "math": MathFormat(MathOptions()),
    "reasoning": ReasoningFormat(ReasoningOptions(require_thinking=False)),
    "general, mapped": GeneralFormat(GeneralOptions(columns=GeneralColumns(prompt="prompt", completion="answer"))),
    "math, mapped": MathFormat(MathOptions(columns=MathColumns(question="question", solution="answer"))),
    "reasoning, mapped": ReasoningFormat(ReasoningOptions(columns=ReasoningColumns(prompt="prompt", answer="answer"))),
}


@pytest.mark.parametrize(
    ("name", "row", "line"),
    [
        ("math", {"question": "q", "answer": "#### 1"}, "GSM8K: question, answer"),
        ("math", {"problem": "p", "solution": r"\boxed{1}", "level": "1"}, "MATH: problem, solution"),
        ("math", {"problem": "p", "solution": "s", "answer": "1"}, "NuminaMath: problem, solution, answer"),
        ("math", {"question": "p", "solution": "s", "answer": "1"}, "worked solutions: question, solution, answer"),
        (
            "math",
            {"problem": "p", "generated_solution": "s", "expected_answer": "1"},
            "OpenMathInstruct: problem, generated_solution, expected_answer",
        ),
        (
            "math",
            {"question": "q", "options": ["1", "2"], "correct": "A", "rationale": "r"},
            "multiple choice: question, rationale, correct, options",
        ),
        (
            "math, mapped",
            {"question": "q", "answer": "#### 1"},
            "columns as mapped: question ← question, solution ← answer",
        ),
        ("general", {"messages": CHAT, "tools": [{}]}, "chat: messages (role/content), tools"),
        ("general", {"conversations": CHAT}, "chat: conversations (role/content)"),
        ("general", {"conversations": SHAREGPT, "system": "s"}, "sharegpt: conversations (from/value), system"),
        ("general", Example(text="t").to_row(), "a row of modelwright prepare"),
        ("general", {"instruction": "i", "instances": []}, "self-instruct: instruction, instances"),
        ("general", {"instruction": "i", "input": "", "output": "o"}, "alpaca: instruction, output"),
        ("general", {"instruction": "i", "input": "n", "output": "o"}, "alpaca: instruction, input, output"),
        ("general", {"prompt": "p", "completion": "c", "answer": 1}, "pair: prompt, completion, answer"),
        ("general", {"prompt": CHAT[:1], "completion": CHAT[1:]}, "pair of messages: prompt, completion"),
        ("general", {"text": "t", "label": 1}, "plain text: text"),
        ("general, mapped", {"prompt": "p", "answer": "a"}, "columns as mapped: prompt ← prompt, completion ← answer"),
        ("reasoning", {"messages": CHAT}, "chat: messages (role/content)"),
        ("reasoning", {"conversations": SHAREGPT}, "sharegpt: conversations (from/value)"),
        ("reasoning", {"question": "q", "cot": "t", "answer": "a"}, "thinking in a column: question, answer, cot"),
        (
            "reasoning",
            {"prompt": "q", "response": "<think>t</think>a"},
            "thinking in <think>…</think>: prompt, response",
        ),
        ("reasoning", {"question": "q", "answer": "so\n#### 1"}, "worked solution: question, answer"),
    ],
)
def test_rows_are_told_by_their_shape_and_columns(name, row, line):
    """One line, for people."""
    assert READERS[name].recognise(row) == line


@pytest.mark.parametrize("name", READERS)
def test_rows_that_no_shape_fits_are_refused_as_reading_refuses_them(name):
    """With the columns that there are, and those that were expected."""
    with pytest.raises(RowError) as refused:
        READERS[name].recognise({"frage": "q"})
    assert str(refused.value).endswith("this row has: frage")
    with pytest.raises(RowError) as unread:
        READERS[name].read({"frage": "q"})
    assert str(unread.value) == str(refused.value)


NAMES = (
    "messages conversations prompt completion question answer problem solution instruction input output context "
    "instances history system tools text thinking cot response choices options generated_solution"
)
columns = st.sampled_from(NAMES.split())
texts = st.sampled_from(["", "a", "<think>t</think>a", "<think>t", "so\n#### 7", r"so \boxed{7}", "[]", "\0", "\ud800"])
values = texts | st.none() | st.integers() | st.sampled_from([CHAT, SHAREGPT, CHAT[:1], ["1", "2"], [["q", "a"]], [{}]])


@pytest.mark.parametrize("name", READERS)
@given(row=st.dictionaries(columns, values, max_size=6))
def test_recognising_agrees_with_reading(name, row):
    """What is read is recognised, by columns that the row has; what is not recognised is read by nobody."""
    try:
        line = READERS[name].recognise(row)
    except RowError as refused:
        with pytest.raises(RowError) as unread:
            READERS[name].read(row)
        assert str(unread.value) == str(refused)  # noqa: PT017 - the two are compared
        return
    assert "\n" not in line
    named = line.partition(": ")[2].split(", ")
    assert {part.split(" ← ")[-1].split(" (")[0] for part in named} <= set(row)
