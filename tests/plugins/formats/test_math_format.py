from __future__ import annotations

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from modelwright import RowError
from modelwright.core.api.answers import after_hashes, last_boxed
from modelwright.plugins.formats.math import MathFormat, MathOptions

CLIPS = {
    "question": "Natalia sold 48 clips and then half as many. How many in all?",
    "answer": "She sold 48/2 = <<48/2=24>>24 more.\n48+24 = <<48+24=72>>72\n#### 72",
}
ROOTS = {"problem": "What is $x$?", "solution": r"First \boxed{1}, so $x=\boxed{\frac{\sqrt{2}}{2}}$.", "level": "1"}


def read_one(row, **options):
    (example,) = MathFormat(MathOptions(**options)).read(row)
    return example


def turns(example):
    return [(message.role, message.content) for message in example.messages]


def test_gsm8k_row_becomes_question_and_solution():
    """The user asks, the assistant solves without calculator annotations, and the answer follows ####."""
    example = read_one(CLIPS)
    assert turns(example) == [
        ("user", CLIPS["question"]),
        ("assistant", "She sold 48/2 = 24 more.\n48+24 = 72\n#### 72"),
    ]
    assert example.answer == "72"


def test_math_row_answer_is_the_last_box_with_nested_braces():
    """MATH's answer is the content of the last box, nested braces and all."""
    example = read_one(ROOTS)
    assert turns(example) == [("user", "What is $x$?"), ("assistant", ROOTS["solution"])]
    assert example.answer == r"\frac{\sqrt{2}}{2}"


def test_calculator_annotations_are_kept_when_asked_for():
    """`calculator = "keep"` leaves the solution as it was written."""
    assert read_one(CLIPS, calculator="keep").messages[-1].content == CLIPS["answer"]


def test_answer_alone_keeps_the_marking_of_its_dataset():
    """`solution = "answer"` trains on the marked answer only."""
    assert read_one(CLIPS, solution="answer").messages[-1].content == "#### 72"
    assert read_one(ROOTS, solution="answer").messages[-1].content == r"\boxed{\frac{\sqrt{2}}{2}}"


@pytest.mark.parametrize(
    ("instruction", "asked"),
    [
        ("Solve it.", "Solve it.\n\nWhat is $x$?"),
        ("Q: {question} {and no {field}}", "Q: What is $x$? {and no {field}}"),
    ],
)
def test_instruction_is_a_template_or_stands_before_the_question(instruction, asked):
    """An instruction with {question} is a template whose other braces are text; another stands before the question."""
    assert read_one(ROOTS, instruction=instruction).messages[0].content == asked


def test_braces_in_a_question_are_never_filled_in():
    """A question that contains the placeholder is copied as it is."""
    row = {"question": "What does {question} {0} mean?", "answer": "#### 1"}
    assert read_one(row, instruction="A: {question}").messages[0].content == "A: What does {question} {0} mean?"


def test_system_message_comes_first():
    """The system option adds a message before the question."""
    assert turns(read_one(CLIPS, system="Be brief."))[0] == ("system", "Be brief.")


def test_reference_answer_stands_as_written():
    """Thousands keep their commas in the reference; the metric knows how to read them."""
    assert read_one({"question": "How many?", "answer": "#### 1,080"}).answer == "1,080"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "x", "label": 1}, "expected the columns question and answer .* this row has: text, label"),
        ({}, "this row has: none"),
        ({"question": "q"}, "problem and solution"),
        ({"question": "q", "answer": 72}, "column 'answer' must be text, not int"),
        ({"question": None, "answer": "#### 1"}, "column 'question' must be text, not NoneType"),
        ({"question": " \n", "answer": "#### 1"}, "column 'question' is empty"),
        ({"question": "q", "answer": "72"}, "column 'answer' states no answer: expected ####"),
        ({"question": "q", "answer": "so ####  \n72"}, "column 'answer' states no answer"),
        ({"problem": "p", "solution": "so 72"}, "column 'solution' states no answer: expected a complete"),
        ({"problem": "p", "solution": r"\boxed{72"}, "column 'solution' states no answer"),
        ({"problem": "p", "solution": r"\boxed{ }"}, "column 'solution' states no answer"),
        ({f"c{i}": 1 for i in range(30)}, "c11 and 18 more"),
    ],
)
def test_unreadable_row_is_refused_with_its_reason(row, reason):
    """What a row lacks is named, with what was expected."""
    with pytest.raises(RowError, match=reason):
        read_one(row)


@pytest.mark.parametrize(("key", "value"), [("solution", "steps"), ("calculator", "drop"), ("instruction", "")])
def test_options_refuse_other_values(key, value):
    """An option outside its values is an error that names the option."""
    with pytest.raises(ValueError, match=key):
        evolve(MathOptions(), **{key: value})


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{1} and \boxed{2}", "2"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{1\right.}", r"\left\{1\right."),
        (r"\boxed {4}", "4"),
        (r"\boxed 5", "5"),
        (r"\boxed{6} then \boxed{7", "6"),
        (r"{{ \boxed{8}", "8"),
        (r"\boxed{9}} }", "9"),
        (r"\boxed{", None),
        (r"boxed{1}", None),
        ("", None),
    ],
)
def test_last_box_is_the_last_complete_one(text, content):
    """Braces nest, escaped ones do not count, and an unclosed box is passed over."""
    assert last_boxed(text) == content


contents = st.recursive(
    st.text(st.characters(blacklist_characters="{}\\", blacklist_categories=["Cs"]), max_size=5)
    | st.sampled_from([r"\{", r"\}", r"\\", r"\frac"]),
    lambda inner: st.lists(inner, max_size=3).map(lambda parts: "{" + "".join(parts) + "}"),
    max_leaves=8,
)


@given(
    before=st.text(max_size=20), content=contents, after=st.text(st.characters(blacklist_characters="\\"), max_size=9)
)
def test_whatever_is_boxed_comes_out(before, content, after):
    """A box with balanced content is found after any text and before any text without another box."""
    assert last_boxed(f"{before} \\boxed{{{content}}}{after}") == content.strip()


@given(st.lists(st.sampled_from(["\\boxed", "\\boxed{", "{", "}", "\\", "#", "####", " ", "\n", "7"])).map("".join))
def test_any_text_has_an_answer_or_none(text):
    """No arrangement of markers breaks the reading."""
    assert last_boxed(text) is None or isinstance(last_boxed(text), str)
    assert after_hashes(text) is None or after_hashes(text).strip() == after_hashes(text) != ""


def test_every_gsm8k_row_is_read(shared_rows):
    """All 7,473 training problems have a question, a solution and a number for an answer."""
    rows = shared_rows("gsm8k/train.jsonl")
    examples = [read_one(row) for row in rows]
    assert len(examples) == 7_473
    assert all(example.answer.replace(",", "").lstrip("-").replace(".", "").isdigit() for example in examples)
    assert not any("<<" in example.messages[-1].content for example in examples)


def test_every_math_row_is_read(shared_rows):
    """All 1,500 competition problems have an answer that stands in their solution."""
    rows = shared_rows("math/sample.jsonl")
    examples = [read_one(row) for row in rows]
    assert len(examples) == 1_500
    assert all(
        example.answer and example.answer in row["solution"] for example, row in zip(examples, rows, strict=True)
    )
