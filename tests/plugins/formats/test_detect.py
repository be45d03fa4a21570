from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ids import shown

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
    ("name", "row"),
    [
        ("math", {"question": "q", "answer": "#### 1"}),
        ("math", {"problem": "p", "solution": r"\boxed{1}", "level": "1"}),
        ("math", {"problem": "p", "solution": "s", "answer": "1"}),
        ("math", {"question": "p", "solution": "s", "answer": "1"}),
        ("math", {"problem": "p", "generated_solution": "s", "expected_answer": "1"}),
        ("math", {"question": "q", "options": ["1", "2"], "correct": "A", "rationale": "r"}),
        ("math, mapped", {"question": "q", "answer": "#### 1"}),
        ("general", {"messages": CHAT, "tools": [{}]}),
        ("general", {"conversations": CHAT}),
        ("general", {"conversations": SHAREGPT, "system": "s"}),
        ("general", Example(text="t").to_row()),
        ("general", {"instruction": "i", "instances": []}),
        ("general", {"instruction": "i", "input": "", "output": "o"}),
        ("general", {"instruction": "i", "input": "n", "output": "o"}),
        ("general", {"prompt": "p", "completion": "c", "answer": 1}),
        ("general", {"prompt": CHAT[:1], "completion": CHAT[1:]}),
        ("general", {"text": "t", "label": 1}),
        ("general, mapped", {"prompt": "p", "answer": "a"}),
        ("reasoning", {"messages": CHAT}),
        ("reasoning", {"conversations": SHAREGPT}),
        ("reasoning", {"question": "q", "cot": "t", "answer": "a"}),
        ("reasoning", {"prompt": "q", "response": "<think>t</think>a"}),
        ("reasoning", {"question": "q", "answer": "so\n#### 1"}),
    ],
    ids=shown,
)
def test_rows_are_recognized_by_their_shape_and_columns(wording, name, row):
    """One line, for people."""
    wording(READERS[name].detect(row))


@pytest.mark.parametrize("name", READERS)
def test_rows_that_no_shape_fits_are_refused_as_reading_refuses_them(name):
    """With the columns that there are, and those that were expected."""
    with pytest.raises(RowError) as refused:
        READERS[name].detect({"frage": "q"})
    assert str(refused.value).endswith("frage")
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
def test_detecting_agrees_with_reading(name, row):
    """What is read is recognized, by columns that the row has; what is not recognized is read by nobody."""
    try:
        line = READERS[name].detect(row)
    except RowError as refused:
        with pytest.raises(RowError) as unread:
            READERS[name].read(row)
        assert str(unread.value) == str(refused)  # noqa: PT017 - the two are compared
        return
    assert "\n" not in line
    named = line.partition(": ")[2].split(", ")
    assert {part.split(" ← ")[-1].split(" (")[0] for part in named} <= set(row)
