"""Texts that are too short, repeat themselves or are garbled go; what people write stays, in any language."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright import Example, Message, Score
from modelwright.core.api.errors import ModelwrightError
from modelwright.core.stages.prepare.checks import AnswerCheck, Length, Sanity, question, trained_texts, whole, words


def example(answered, **more):
    prompt = Message(role="user", content="q" * 99)
    return Example(messages=[prompt, Message(role="assistant", content=answered, **more)])


def why(text):
    found = Sanity().check(Example(text=text))
    return found and found.reason


def test_only_what_may_be_trained_is_looked_at():
    """The question may be as it likes."""
    assert trained_texts(example("so", thinking="hm")) == ["hm", "so"]
    assert trained_texts(example("so", train=False)) == []
    assert trained_texts(Example(text="plain")) == ["plain"]


@pytest.mark.parametrize(("size", "goes"), [(9, True), (10, False), (20, False), (21, True)])
def test_lengths_are_counted_in_characters_of_what_is_trained(wording, size, goes):
    """Both bounds are still allowed; it is said which one was passed."""
    removal = Length(10, 20).check(example("ä" * size))
    assert (removal is not None) == goes
    if goes:
        assert ("min_characters" if size < 10 else "max_characters") in removal.reason
        wording(removal.reason)


@pytest.mark.parametrize(
    "text",
    [
        "I am sorry.\n" * 60,
        " ".join(f"w{n} and so on" for n in range(60)),
        "no no " * 80,
        "caf\ufffd " * 9,
        "\x00\x01 text",
    ],
    ids=["a line", "a run of words", "a word", "U+FFFD", "controls"],
)
def test_what_repeats_itself_or_is_garbled_goes_with_what_it_was(wording, text):
    """The text is beside it in removed.jsonl."""
    wording(why(text))
    assert Sanity().check(Example(text=text)).facts == {"text": text}


@pytest.mark.parametrize("text", ["", "5", "2 + 2 + 2 + 2 = 8", "no no no", "tab\there\r\n", "Ωμέγα\u200d 数学 👍"])
def test_short_and_foreign_texts_stay(text):
    """A worked sum repeats itself, too."""
    assert why(text) is None


@given(st.lists(st.integers(0, 10**6), min_size=120, max_size=200, unique=True))
def test_words_that_are_all_different_stay(numbers):
    """For any of them."""
    assert why(" ".join(map(str, numbers))) is None


def test_what_people_wrote_stays(shared_rows):
    """Of GSM8K's and MATH's solutions nearly nothing goes."""
    texts = [row["answer"] for row in shared_rows("gsm8k/train.jsonl")]
    texts += [row["solution"] for row in shared_rows("math/sample.jsonl")]
    gone = [text for text in texts if why(text)]
    assert len(gone) <= len(texts) / 1000, gone[:5]


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


def test_the_question_and_the_whole_conversation():
    """Thinking is part of what is said."""
    prompt = Message(role="user", content="a"), Message(role="assistant", content="b", thinking="t")
    talk = Example(messages=(Message(role="system", content="s"), *prompt, Message(role="user", content="c")))
    assert question(talk) == "a\nc"
    assert whole(talk) == "s\na\nt\nb\nc"
    assert question(Example(text="plain")) == whole(Example(text="plain")) == "plain"


# Answers


def problem(prompt, answered="72", *, answer=None, source="train.jsonl:1", thinking=None):
    messages = [Message(role="user", content=prompt), Message(role="assistant", content=answered, thinking=thinking)]
    return Example(messages=messages, answer=answer, source=source)


class Equal:
    def score(self, example, outputs):
        right = outputs[0].text == example.answer
        return Score(value=float(right), verdict="correct" if right else "wrong", reason="as text")


def test_a_solution_that_comes_to_another_answer_goes():
    """By the metric; without a reference there is nothing to compare with."""
    check = AnswerCheck(Equal(), "equal")
    assert check.check(problem("a", "72", answer="72")) is None
    assert check.check(problem("a", "72")) is None
    assert check.check(Example(text="plain", answer="72")) is None
    found = check.check(problem("a", "71", answer="72"))
    assert (found.reason, found.facts) == ("equal: as text", {"answer": "72", "text": "71"})


def test_a_metric_that_fails_is_named(wording):
    """It is the plugin's mistake."""

    class Broken:
        def score(self, _example, _outputs):
            raise KeyError("x")

    with pytest.raises(ModelwrightError) as caught:
        AnswerCheck(Broken(), "broken").check(problem("a", answer="72"))
    wording(caught.value)


def test_math_accuracy_keeps_the_solutions_that_people_called_correct(shared_rows):
    """GSM8K's graded solutions: what a model wrote ends with "A: ANSWER"; people say whether that is right."""
    from modelwright.plugins.metrics.grading import MathAccuracy, MathAccuracyOptions

    check = AnswerCheck(MathAccuracy(MathAccuracyOptions()), "math_accuracy")
    agreed = []
    for row in shared_rows("gsm8k/graded_solutions.jsonl")[:600]:
        solution = row["prediction"].replace("\nA: ", "\n#### ")
        if "#### " in solution:
            kept = check.check(problem("q", solution, answer=row["gold"])) is None
            agreed.append(kept == row["is_correct"])
    assert len(agreed) > 500
    assert sum(agreed) / len(agreed) > 0.98
