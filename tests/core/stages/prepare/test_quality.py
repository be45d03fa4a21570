"""What is left out before training, why, and that nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright import Example, Message, Score
from modelwright.core.api.errors import ModelwrightError
from modelwright.core.stages.prepare.answer_check import Verification
from modelwright.core.stages.prepare.contamination import Contamination
from modelwright.core.stages.prepare.near import NearDuplicates
from modelwright.core.stages.prepare.words import question, whole, words

NATALIA = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
    "How many clips did Natalia sell altogether in April and May?"
)
WORD = st.from_regex(r"[a-z]{3,9}", fullmatch=True)
SENTENCE = st.lists(WORD, min_size=8, max_size=30)


def example(asked, answered="72", *, answer=None, source="train.jsonl:1", thinking=None):
    messages = [Message(role="user", content=asked), Message(role="assistant", content=answered, thinking=thinking)]
    return Example(messages=messages, answer=answer, source=source)


# Words


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("It costs $1,250.00.", "it costs 1250"),
        (r"\dfrac{1}{2} of $x$", r"\frac12 of x".replace(r"\frac12", "1 / 2")),
        (r"\left( 3 \cdot 4 \right)", "3 * 4"),
        (r"Find \text{ the sum}, please!", "find the sum please"),
        ("\ufb01ve \uff34en", "five ten"),
        ("3.50 and 10.", "3.5 and 10"),
        ("a\u00a0b\n\nc", "a b c"),
    ],
)
def test_ways_to_write_the_same_are_the_same_words(one, other):
    """Case, LaTeX's layout, thousands, trailing zeros, Unicode's compatibility forms."""
    assert words(one) == words(other)


@pytest.mark.parametrize(
    ("one", "other"), [("12 apples", "21 apples"), ("x + 1", "x - 1"), ("1.5", "15"), ("1,25", "125")]
)
def test_other_numbers_and_operators_are_other_words(one, other):
    """A changed number makes another problem."""
    assert words(one) != words(other)


def test_what_is_asked_and_all_that_is_said():
    """Thinking is part of what is said."""
    asked = Message(role="user", content="a"), Message(role="assistant", content="b", thinking="t")
    talk = Example(messages=(Message(role="system", content="s"), *asked, Message(role="user", content="c")))
    assert question(talk) == "a\nc"
    assert whole(talk) == "s\na\nt\nb\nc"
    assert question(Example(text="plain")) == whole(Example(text="plain")) == "plain"


# Decontamination


def contamination(*asked):
    check = Contamination()
    check.add("gsm8k", [example(text, source=f"test.jsonl:{n + 1}") for n, text in enumerate(asked)])
    return check


@pytest.mark.parametrize(
    "text",
    [
        NATALIA,
        NATALIA.upper(),
        f"Solve the problem step by step.\n\n{NATALIA}\nThink.",
        NATALIA.replace("48", "$48$"),
        NATALIA.replace("altogether ", ""),
        NATALIA.partition(". ")[0] + ".",
    ],
)
def test_a_question_of_a_test_set_is_found_with_both_texts(text):
    """Whole, in other case, within an instruction, in LaTeX, with a word less, or its longer half."""
    found = contamination("What is 1 + 1?", NATALIA).look(example(text))
    assert found is not None
    assert found.facts["other"] == "test.jsonl:2"
    assert (found.facts["suite"], found.facts["question"]) == ("gsm8k", NATALIA)
    assert text in found.facts["text"]
    assert 0.5 < found.facts["overlap"] <= 1


def test_a_question_that_stands_in_an_answer_or_in_the_thinking_is_found():
    """Wherever the model would read it."""
    check = contamination(NATALIA)
    assert check.look(example("Give me a problem.", NATALIA))
    assert check.look(example("Give me a problem.", "No.", thinking=f"I remember: {NATALIA}"))


@pytest.mark.parametrize(
    "text",
    [
        "Natalia sold 48 clips.",
        NATALIA.replace("Natalia", "Tom").replace("clips", "cards").replace("April", "June").replace("May", "July"),
        "How many clips did Natalia sell altogether in April and May?",
        "",
    ],
)
def test_what_shares_only_a_little_stays(text):
    """A phrase, another story of the same kind, the smaller part of a question."""
    assert contamination(NATALIA).look(example(text)) is None


def test_short_questions_are_found_where_they_are_all_that_is_asked():
    """Three words stand in many texts."""
    check = contamination("What is 2 + 3?")
    assert check.look(example("what is $2 + 3$"))
    assert check.look(example("What is 2 + 3? And what is 4 + 5?")) is None


@given(st.lists(SENTENCE, min_size=1, max_size=5), st.data())
def test_every_question_is_found_within_any_text(questions, data):
    """Before and after it stand other words."""
    check = contamination(*(" ".join(each) for each in questions))
    chosen = data.draw(st.integers(0, len(questions) - 1))
    before, after = data.draw(st.lists(WORD, max_size=9)), data.draw(st.lists(WORD, max_size=9))
    found = check.look(example(" ".join([*before, *questions[chosen], *after])))
    assert found is not None
    assert found.facts["overlap"] == 1.0


@given(SENTENCE, SENTENCE)
def test_texts_without_a_common_run_stay(asked, other):
    """Single words are common to all texts."""
    apart = [word for pair in zip(asked, (f"{word}x" for word in other), strict=False) for word in pair]
    assert contamination(" ".join(asked)).look(example(" ".join(apart))) is None


# Near duplicates


def test_almost_the_same_goes_and_another_number_stays():
    """A rewording of layout is the same; another number is another problem."""
    check = NearDuplicates()
    assert check.look(example(NATALIA, source="a:1")) is None
    found = check.look(example(NATALIA.replace(". ", ".\n\n").replace("then ", ""), source="a:2"))
    assert (found.facts["other"], found.reason) == ("a:1", "it is almost the same as a:1")
    assert found.facts["similarity"] >= 0.8
    short = "Tom has 5 apples and gets 3 more. How many apples does Tom have now?"
    assert check.look(example(short)) is None
    assert check.look(example(short.replace("5", "6").replace("3", "8"))) is None


@given(st.lists(SENTENCE, min_size=1, max_size=4))
def test_what_was_kept_is_found_again_and_it_is_the_same_every_time(sentences):
    """No seed of the process is in it."""
    texts = [" ".join(each) for each in sentences]
    runs = []
    for _ in range(2):
        check = NearDuplicates()
        runs.append([check.look(example(text)) is None for text in texts])
        assert all(check.look(example(text)) for text in texts)
    assert runs[0] == runs[1]


def test_of_several_that_are_alike_the_first_is_named():
    """In every process: the bytes of removed.jsonl do not hang on the order in which an index keeps its keys."""
    middle = [f"word{number}" for number in range(100)]
    first = [*middle[:92], *(f"last{number}" for number in range(8))]
    ninth = [*(f"early{number}" for number in range(8)), *middle[8:]]
    check = NearDuplicates()
    kept = [" ".join(first), *(" ".join(f"x{line}y{n}" for n in range(30)) for line in range(7)), " ".join(ninth)]
    assert [check.look(example(text, source=f"a:{line}")) for line, text in enumerate(kept, 1)] == [None] * 9
    assert check.look(example(" ".join(middle))).facts["other"] == "a:1"
    again = NearDuplicates()
    reordered = [*kept[1:], kept[0]]
    assert [again.look(example(text, source=f"b:{line}")) for line, text in enumerate(reordered, 1)] == [None] * 9
    assert again.look(example(" ".join(middle))).facts["other"] == "b:8"


# Answers


class Equal:
    def score(self, example, outputs):
        right = outputs[0].text == example.answer
        return Score(value=float(right), verdict="correct" if right else "wrong", reason="as text")


def test_a_solution_that_comes_to_another_answer_goes():
    """By the metric; without a reference there is nothing to compare with."""
    check = Verification(Equal(), "equal")
    assert check.look(example("a", "72", answer="72")) is None
    assert check.look(example("a", "72")) is None
    assert check.look(Example(text="plain", answer="72")) is None
    found = check.look(example("a", "71", answer="72"))
    assert (found.reason, found.facts) == ("equal: as text", {"answer": "72", "text": "71"})


def test_a_metric_that_fails_is_named():
    """It is the plugin's mistake."""

    class Broken:
        def score(self, _example, _outputs):
            raise KeyError("x")

    with pytest.raises(ModelwrightError, match=r"metric 'broken' failed on train.jsonl:1: KeyError: 'x'"):
        Verification(Broken(), "broken").look(example("a", answer="72"))


def test_math_accuracy_keeps_the_solutions_that_people_called_correct(shared_rows):
    """GSM8K's graded solutions: what a model wrote ends with "A: ANSWER"; people say whether that is right."""
    from modelwright.plugins.metrics.grading import MathAccuracy, MathAccuracyOptions

    check = Verification(MathAccuracy(MathAccuracyOptions()), "math_accuracy")
    agreed = []
    for row in shared_rows("gsm8k/graded_solutions.jsonl")[:600]:
        solution = row["prediction"].replace("\nA: ", "\n#### ")
        if "#### " in solution:
            kept = check.look(example("q", solution, answer=row["gold"])) is None
            agreed.append(kept == row["is_correct"])
    assert len(agreed) > 500
    assert sum(agreed) / len(agreed) > 0.98
