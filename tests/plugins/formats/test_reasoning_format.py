from __future__ import annotations

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from ids import shown

from modelwright import Example, RowError
from modelwright.core.plugins import discover
from modelwright.plugins.formats.general import GeneralFormat, GeneralOptions
from modelwright.plugins.formats.math import MathFormat, MathOptions
from modelwright.plugins.formats.reasoning import ReasoningColumns, ReasoningFormat, ReasoningOptions

USER = {"role": "user", "content": "2 + 2?"}
TAGGED = "<think>\ntwo and two\n</think>\n\n4"


def read_one(row, **options):
    (example,) = ReasoningFormat(ReasoningOptions(**options)).read(row)
    return example


def said(example):
    """The question, the thinking, the answer and the reference."""
    question, answered = example.messages
    assert (question.role, answered.role) == ("user", "assistant")
    return question.content, answered.thinking, answered.content, example.answer


@pytest.mark.parametrize("prompt", ["prompt", "question", "problem", "instruction"])
@pytest.mark.parametrize("thinking", ["thinking", "reasoning", "reasoning_content", "cot", "rationale"])
@pytest.mark.parametrize("answer", ["answer", "response", "output", "solution", "completion"])
def test_three_columns_are_recognized_by_their_names(prompt, thinking, answer):
    """Under any of a data set's names."""
    row = {prompt: "2 + 2?", thinking: "\ntwo and two", answer: "4", "level": 1}
    assert said(read_one(row)) == ("2 + 2?", "two and two", "4", "4")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2 + 2?", "response": TAGGED},
        {"problem": "2 + 2?", "solution": TAGGED},
        {"instruction": "2 + 2?", "input": "", "output": TAGGED},
        {"prompt": "2 + 2?", "completion": "two and two\n</think>\n\n4"},
        {"question": "2 + 2?", "thinking": None, "response": TAGGED},
        {"question": "2 + 2?", "thinking": "two and two", "response": TAGGED},
        {"question": "2 + 2?", "thinking": "<think>two and two</think>", "response": "4"},
        {"question": "2 + 2?", "solution": "no tags", "response": "", "output": TAGGED},
        {"question": "2 + 2?", "response": "no tags", "solution": TAGGED},
        {"messages": [USER, {"role": "assistant", "content": TAGGED}]},
        {"messages": [USER, {"role": "assistant", "content": "4", "thinking": "two and two"}]},
        {"messages": [USER, {"role": "assistant", "content": "4", "reasoning": "two and two"}]},
        {"messages": [USER, {"role": "assistant", "content": "4", "reasoning_content": "two and two"}]},
        {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": TAGGED}]},
    ],
)
def test_thinking_is_found_at_its_place(row):
    """In tags, also where the opening one stood in the prompt, in a column, or in a message's field."""
    assert said(read_one(row)) == ("2 + 2?", "two and two", "4", "4")


def test_worked_solutions_are_thinking_and_their_final_answers_the_answer():
    """GSM8K's bare, without calculator annotations; MATH's in a box, since LaTeX needs one to be read."""
    clips = {"question": "How many?", "answer": "48/2 = <<48/2=24>>24\n48+24 = <<48+24=72>>72\n#### 72"}
    assert said(read_one(clips)) == ("How many?", "48/2 = 24\n48+24 = 72", "72", "72")
    roots = {"problem": "What is $x$?", "solution": r"So $x=\boxed{\frac{1}{2}}$."}
    assert said(read_one(roots)) == ("What is $x$?", roots["solution"], r"\boxed{\frac{1}{2}}", r"\frac{1}{2}")


@pytest.mark.parametrize(
    ("row", "reference"),
    [
        ({"question": "q", "cot": "t", "response": r"It is \boxed{7}."}, "7"),
        ({"question": "q", "cot": "t", "response": "It is 7.\n#### 7"}, "7"),
        ({"question": "q", "cot": "t", "response": "It is 7."}, "It is 7."),
        ({"question": "q", "response": "<think>t</think>\n<answer> 7 </answer>"}, "7"),
        ({"question": "q", "cot": "t", "response": r"<answer>\boxed{7}</answer>"}, "7"),
        ({"question": "q", "cot": "t", "response": "It is 7.", "answer": "7"}, "7"),
        ({"question": "q", "cot": "t", "response": "It is 7.", "answer": 7}, "7"),
        ({"question": "q", "cot": "t", "response": "It is 7.", "answer": "so\n#### 7"}, "7"),
        ({"question": "q", "cot": "t", "response": "#### Heading\nIt is 7."}, "#### Heading\nIt is 7."),
        ({"messages": [USER, {"role": "assistant", "content": TAGGED}], "answer": "four"}, "four"),
    ],
)
def test_the_reference_is_the_final_answer(row, reference):
    """Behind #### on the last line or in a box; the column answer goes first where it is not what is said."""
    assert read_one(row).answer == reference


def test_columns_are_named_by_an_option():
    """It wins over anything that would be recognized."""
    row = {"q": "2 + 2?", "deep": "two and two", "a": "4", "messages": "no list", "thinking": "another"}
    columns = ReasoningColumns(prompt="q", thinking="deep", answer="a")
    assert said(read_one(row, columns=columns)) == ("2 + 2?", "two and two", "4", "4")
    tagged = ReasoningColumns(prompt="q", answer="a")
    assert said(read_one({**row, "a": TAGGED}, columns=tagged)) == ("2 + 2?", "two and two", "4", "4")


def test_system_messages_contexts_and_references_have_columns():
    """Recognised by their names, or named."""
    row = {"system": "Think.", "instruction": "Who?", "context": "Tom came.", "cot": "t", "output": "Tom", "ref": "he"}
    named = {"prompt": "instruction", "input": "context", "thinking": "cot", "answer": "output", "system": "system"}
    for example in (read_one(row), read_one(row, columns=ReasoningColumns(**named, reference="ref"))):
        assert [message.content for message in example.messages] == ["Think.", "Who?\n\nTom came.", "Tom"]
    assert (read_one(row).answer, example.answer) == ("Tom", "he")
    chat = {"messages": [USER, {"role": "assistant", "content": TAGGED}], "system": "Think."}
    assert read_one(chat).messages[0].content == "Think."


def test_masked_thinking_is_seen_and_not_trained():
    """Each assistant turn with thinking says so; the row's own mask is kept in either case."""
    row = {"messages": [USER, {"role": "assistant", "content": "4"}, USER, {"role": "assistant", "content": TAGGED}]}
    assert [m.train_thinking for m in read_one(row, thinking="mask").messages] == [True, True, True, False]
    assert all(message.train_thinking for message in read_one(row).messages)
    row["messages"][-1] = {"role": "assistant", "content": "4", "thinking": "so", "train_thinking": False}
    assert [m.train_thinking for m in read_one(row).messages] == [True, True, True, False]


def test_instruction_and_system_are_put_as_in_the_other_formats():
    """The instruction at the first question, the system message where the row brings none."""
    example = read_one({"prompt": "2 + 2?", "response": TAGGED}, instruction="Q: {question}", system="Think.")
    assert [(m.role, m.content) for m in example.messages] == [
        ("system", "Think."),
        ("user", "Q: 2 + 2?"),
        ("assistant", "4"),
    ]


def test_rows_without_thinking_are_read_where_that_is_allowed(wording):
    """`require_thinking = false`: the answer alone."""
    for row in ({"prompt": "2 + 2?", "response": "4"}, {"messages": [USER, {"role": "assistant", "content": "4"}]}):
        with pytest.raises(RowError) as caught:
            read_one(row)
        wording(caught.value)
        assert said(read_one(row, require_thinking=False)) == ("2 + 2?", None, "4", "4")


@pytest.mark.parametrize(
    "row",
    [
        {"text": "x"},
        {"prompt": "p", "thinking": "t"},
        {"prompt": " ", "response": TAGGED},
        {"prompt": "p", "response": None},
        {"prompt": "p", "response": 4, "thinking": "t"},
        {"prompt": "p", "response": "4", "thinking": ["t"]},
        {"prompt": "p", "response": "4"},
        {"prompt": "p", "response": "<think>\n</think>4"},
        {"prompt": "p", "response": "so <think>t</think>4"},
        {"question": "q", "answer": "#### 72"},
        {"problem": "p", "solution": r"$\boxed{72}$"},
        {"prompt": "p", "response": "<think>t"},
        {"prompt": "p", "response": "<think>t</think>\n"},
        {"prompt": "p", "response": TAGGED, "thinking": "other"},
        {"messages": [USER, {"role": "assistant", "content": "<think>t"}]},
        {"messages": [USER, {"role": "assistant", "content": "4", "reasoning": 1}]},
        {"messages": [USER]},
        {"prompt": "p", "response": TAGGED, "answer": {"x": 1}},
    ],
    ids=shown,
)
def test_unreadable_row_is_refused_with_its_reason(wording, row):
    """What is wrong is named with its place."""
    with pytest.raises(RowError) as caught:
        read_one(row)
    wording(caught.value)


def test_named_columns_must_be_there(wording):
    """The option is quoted with what the row has instead."""
    with pytest.raises(RowError) as caught:
        read_one({"q": "2 + 2?", "a": "4"}, columns=ReasoningColumns(prompt="q", thinking="deep", answer="a"))
    wording(caught.value)


@pytest.mark.parametrize(("key", "value"), [("thinking", "drop"), ("instruction", ""), ("system", "")])
def test_options_refuse_other_values(key, value):
    """An option outside its values is an error that names the option."""
    with pytest.raises(ValueError, match=key):
        evolve(ReasoningOptions(), **{key: value})


@pytest.mark.parametrize(("name", "count"), [("gsm8k/train.jsonl", 7_473), ("math/sample.jsonl", 1_500)])
def test_every_math_problem_has_thinking_and_the_reference_of_the_format_math(shared_rows, name, count):
    """All rows of GSM8K and MATH are read."""
    rows = shared_rows(name)
    reader = MathFormat(MathOptions())
    examples = [read_one(row) for row in rows]
    assert len(examples) == count
    for example, row in zip(examples, rows, strict=True):
        (by_math,) = reader.read(row)
        assert example.answer == by_math.answer
        assert example.messages[-1].thinking


def test_what_it_reads_travels_through_interchange():
    """A prepared file keeps the thinking, for this format and for `general`."""
    example = read_one({"prompt": "2 + 2?", "response": TAGGED}, thinking="mask")
    assert read_one(example.to_row()) == example
    (again,) = GeneralFormat(GeneralOptions()).read(example.to_row())
    assert again == example


names = st.sampled_from(
    [
        *(
            "messages",
            "conversations",
            "prompt",
            "question",
            "problem",
            "instruction",
            "input",
            "instances",
            "thinking",
        ),
        *(
            "cot",
            "reasoning",
            "answer",
            "response",
            "output",
            "completion",
            "solution",
            "tools",
            "id",
            "source",
            "text",
        ),
    ]
)
texts = st.sampled_from([TAGGED, "<think>", "</think>", "a</think>b", "#### 7", "so\n#### 7", r"so \boxed{7}", "4", ""])
message = st.dictionaries(
    st.sampled_from(["role", "content", "from", "value", "thinking", "train", "train_thinking", "tool_calls"]),
    st.sampled_from(["user", "assistant", "system", "human", "gpt", "tool"]) | texts | st.booleans() | st.none(),
)
values = st.recursive(
    texts | st.text(max_size=5) | st.none() | st.booleans() | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | names, inner, max_size=3),
    max_leaves=5,
)
turns = st.lists(message, max_size=3) | st.just([USER, {"role": "assistant", "content": TAGGED}])


@pytest.mark.parametrize("name", ["reasoning", "general", "math"])
@given(row=st.dictionaries(names, values | turns, max_size=6))
def test_any_row_gives_examples_or_a_reason(name, row):
    """No row fails in any other way."""
    reader = _READERS[name]
    try:
        examples = list(reader.read(row))
    except RowError:
        return
    assert examples
    for example in examples:
        assert isinstance(example, Example)
        assert Example.from_row(example.to_row()) == example


_READERS = {
    "reasoning": ReasoningFormat(ReasoningOptions()),
    "general": GeneralFormat(GeneralOptions()),
    "math": MathFormat(MathOptions()),
}


def test_the_format_is_found_by_its_name():
    """It comes in by the package's entry point."""
    from modelwright import FormatSpec

    (example,) = discover(strict=True).get(FormatSpec, "reasoning").create().read({"prompt": "p", "response": TAGGED})
    assert example.messages[-1].thinking == "two and two"
