from __future__ import annotations

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from ids import shown

from modelwright import RowError
from modelwright.core.api.answers import after_hashes, last_boxed
from modelwright.plugins.formats.math import MathColumns, MathFormat, MathOptions

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


def test_calculator_annotations_are_kept_on_request():
    """`calculator = "keep"` leaves the solution as it was written."""
    assert read_one(CLIPS, calculator="keep").messages[-1].content == CLIPS["answer"]


def test_answer_alone_keeps_the_marking_of_its_dataset():
    """`solution = "answer"` trains on the marked answer only."""
    assert read_one(CLIPS, solution="answer").messages[-1].content == "#### 72"
    assert read_one(ROOTS, solution="answer").messages[-1].content == r"\boxed{\frac{\sqrt{2}}{2}}"


@pytest.mark.parametrize(
    ("instruction", "question"),
    [
        ("Solve it.", "Solve it.\n\nWhat is $x$?"),
        ("Q: {question} {and no {field}}", "Q: What is $x$? {and no {field}}"),
    ],
)
def test_instruction_is_a_template_or_precedes_the_question(instruction, question):
    """An instruction with {question} is a template whose other braces are text; another precedes the question."""
    assert read_one(ROOTS, instruction=instruction).messages[0].content == question


def test_braces_in_a_question_are_never_filled_in():
    """A question that contains the placeholder is copied as it is."""
    row = {"question": "What does {question} {0} mean?", "answer": "#### 1"}
    assert read_one(row, instruction="A: {question}").messages[0].content == "A: What does {question} {0} mean?"


def test_system_message_comes_first():
    """The system option adds a message before the question."""
    assert turns(read_one(CLIPS, system="Be brief."))[0] == ("system", "Be brief.")


def test_reference_answer_is_kept_as_written():
    """Thousands keep their commas in the reference; the metric knows how to read them."""
    assert read_one({"question": "How many?", "answer": "#### 1,080"}).answer == "1,080"


@pytest.mark.parametrize(
    "row",
    [
        {"text": "x", "label": 1},
        {},
        {"question": "q"},
        {"question": "q", "answer": 72},
        {"question": None, "answer": "#### 1"},
        {"question": " \n", "answer": "#### 1"},
        {"question": "q", "answer": "72"},
        {"question": "q", "answer": "so ####  \n72"},
        {"problem": "p", "solution": "so 72"},
        {"problem": "p", "solution": r"\boxed{72"},
        {"problem": "p", "solution": r"\boxed{ }"},
        {f"c{i}": 1 for i in range(30)},
    ],
    ids=shown,
)
def test_unreadable_row_is_refused_with_its_reason(wording, row):
    """What a row lacks is named, with what was expected."""
    with pytest.raises(RowError) as caught:
        read_one(row)
    wording(caught.value)


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
def test_any_boxed_text_comes_out(before, content, after):
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
    """All 1,500 competition problems have an answer that is in their solution."""
    rows = shared_rows("math/sample.jsonl")
    examples = [read_one(row) for row in rows]
    assert len(examples) == 1_500
    assert all(
        example.answer and example.answer in row["solution"] for example, row in zip(examples, rows, strict=True)
    )


# Other data sets


NUMINA = {"problem": "What is $6 \\cdot 7$?", "solution": "Six sevens are 42.", "answer": "42", "source": "synthetic"}


def test_a_reference_of_its_own_goes_before_what_the_solution_comes_to():
    """NuminaMath and OpenMathInstruct; where the solution states no answer it is stated for it."""
    example = read_one(NUMINA)
    assert example.answer == "42"
    assert example.messages[-1].content == "Six sevens are 42.\n\\boxed{42}"
    other = {"problem": "p", "generated_solution": r"so \boxed{2}", "expected_answer": "3"}
    assert read_one(other).answer == "3"
    assert read_one(other).messages[-1].content == r"so \boxed{2}"
    assert read_one({**NUMINA, "answer": ""} | {"solution": r"It is \boxed{42}."}).answer == "42"
    assert (
        read_one({"question": "q", "solution": "6*7 = <<6*7=42>>42\n#### 42"}).messages[-1].content
        == "6*7 = 42\n#### 42"
    )


@pytest.mark.parametrize("none", ["proof", "notfound"])
def test_numinamath_says_that_there_is_no_answer(wording, none):
    """Its words for that are not an answer; what the solution comes to is one."""
    assert read_one({**NUMINA, "answer": none, "solution": r"It is \boxed{42}."}).answer == "42"
    with pytest.raises(RowError) as caught:
        read_one({**NUMINA, "answer": none})
    wording(caught.value)


def test_a_solution_that_is_cut_off_in_its_thinking_is_none(wording):
    """Even if another column has another answer."""
    with pytest.raises(RowError) as caught:
        read_one({**NUMINA, "solution": "<think>Six sevens"})
    wording(caught.value)


@pytest.mark.parametrize(
    ("row", "marking", "said"),
    [
        (CLIPS, "boxed", "She sold 48/2 = 24 more.\n48+24 = 72\n\\boxed{72}"),
        (CLIPS, "hashes", "She sold 48/2 = 24 more.\n48+24 = 72\n#### 72"),
        (ROOTS, "boxed", ROOTS["solution"]),
        (ROOTS, "hashes", ROOTS["solution"] + "\n#### \\frac{\\sqrt{2}}{2}"),
        (NUMINA, "hashes", "Six sevens are 42.\n#### 42"),
    ],
)
def test_the_answer_is_stated_as_configured(row, marking, said):
    """A model that learns from several data sets answers in one way."""
    example = read_one(row, marking=marking)
    assert example.messages[-1].content == said
    assert (after_hashes(said) if marking == "hashes" else last_boxed(said)) == example.answer


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "choices": ["21", "21.5", "22"], "answer": 1},
        {"question": "q", "choices": ["21", "21.5", "22"], "answer": "B"},
        {"question": "q", "choices": ["21", "21.5", "22"], "answer": "21.5"},
        {"question": "q", "choices": {"text": ["21", "21.5", "22"], "label": ["1", "2", "3"]}, "answerKey": "2"},
        {"question": "q", "options": ["A)21", "B)21.5", "C)22"], "correct": "B", "rationale": ""},
        {"question": "q", "options": ["(A) 21", "(B) 21.5", "(C) 22"], "label": "B"},
    ],
)
def test_multiple_choice_of_every_shape_is_one(row):
    """MMLU, ARC, AQuA: by place from 0, letter, text or label."""
    example = read_one(row)
    assert example.messages[0].content == "q\n\nA. 21\nB. 21.5\nC. 22"
    assert example.messages[-1].content == r"\boxed{B}"
    assert (example.answer, example.choices) == ("B", ("21", "21.5", "22"))


def test_a_rationale_is_trained_before_the_letter():
    """Unless the answer alone is wanted."""
    row = {"question": "q", "options": ["A)21", "B)22"], "correct": "B", "rationale": "21 + 1 is 22."}
    assert read_one(row, marking="hashes").messages[-1].content == "21 + 1 is 22.\n#### B"
    assert read_one(row, marking="hashes", solution="answer").messages[-1].content == "#### B"


@given(
    st.lists(
        st.text(st.characters(categories=["L", "N"]), min_size=2, max_size=8), min_size=2, max_size=26, unique=True
    ),
    st.data(),
)
def test_the_letter_names_the_right_choice(texts, data):
    """With any choices, and whether place or text says which is right."""
    place = data.draw(st.integers(0, len(texts) - 1))
    right = data.draw(st.sampled_from([place, texts[place]]))
    example = read_one({"question": "q", "choices": texts, "answerKey": right})
    assert example.choices["ABCDEFGHIJKLMNOPQRSTUVWXYZ".index(example.answer)] == texts[place]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "choices": ["a"], "answer": 0},
        {"question": "q", "choices": ["a"] * 27, "answer": 0},
        {"question": "q", "choices": "ab", "answer": 0},
        {"question": "q", "choices": ["a", ""], "answer": 0},
        {"question": "q", "choices": ["a", "b"]},
        {"question": "q", "choices": ["a", "b"], "answer": 2},
        {"question": "q", "choices": ["a", "b"], "answer": "C"},
        {"question": "q", "choices": ["a", "b"], "answer": True},
        {"question": "q", "choices": {"text": ["a", "b"], "label": ["A"]}, "answer": 0},
    ],
    ids=shown,
)
def test_choices_that_make_no_question_are_refused(wording, row):
    """What is wrong with which column."""
    with pytest.raises(RowError) as caught:
        read_one(row)
    wording(caught.value)


def test_named_columns_go_before_recognized_ones(wording):
    """And a column that is not there is named."""
    row = {"question": "no", "answer": "#### 1", "task": "yes", "way": "so 2", "truth": "2", "offer": ["1", "2"]}
    example = read_one(row, columns=MathColumns(question="task", solution="way", answer="truth"))
    assert turns(example) == [("user", "yes"), ("assistant", "so 2\n\\boxed{2}")]
    example = read_one(row, columns=MathColumns(question="task", answer="truth"))
    assert turns(example) == [("user", "yes"), ("assistant", r"\boxed{2}")]
    example = read_one(row, columns=MathColumns(question="task", choices="offer", answer="truth"))
    assert (example.answer, example.choices) == ("B", ("1", "2"))
    with pytest.raises(RowError) as caught:
        read_one(row, columns=MathColumns(question="gone", solution="way"))
    wording(caught.value)
