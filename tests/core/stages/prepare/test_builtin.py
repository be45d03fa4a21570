from __future__ import annotations

import itertools
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelwright import UsageError
from modelwright.core.stages.prepare.builtin import builtin_rows, parse_builtin, problems, split_of
from modelwright.plugins.formats.general import GeneralFormat, GeneralOptions
from modelwright.plugins.formats.math import MathFormat, MathOptions

DATA = ("arithmetic", "instructions")
READERS = {"arithmetic": MathFormat(MathOptions()), "instructions": GeneralFormat(GeneralOptions())}


def prompts(name, split, seed):
    """What a model is asked in each row of a split."""
    found = set()
    for row in builtin_rows(name, split, seed=seed):
        (example,) = READERS[name].read(row)
        found.add(tuple((message.role, message.content) for message in example.messages[:-1]))
    return found


@settings(max_examples=3, deadline=None)
@given(name=st.sampled_from(DATA), seeds=st.tuples(st.integers(0, 2**62), st.integers(0, 2**62)))
def test_no_test_problem_occurs_in_training_with_any_seeds(name, seeds):
    """The whole training split of one seed and the whole test split of another share no prompt."""
    training, testing = prompts(name, "train", seeds[0]), prompts(name, "test", seeds[1])
    assert not training & testing
    assert len(testing) > 1_500
    assert len(training) > 15_000


def test_every_problem_has_a_text_of_its_own_and_one_split():
    """No two problems read the same, so a split of problems is a split of texts, for both data sets."""
    every = list(problems())
    assert len({problem.text for problem in every}) == len(every)
    sizes = {split: sum(split_of(problem) == split for problem in every) for split in ("train", "test")}
    for name, (split, size) in itertools.product(DATA, sizes.items()):
        assert len(prompts(name, split, 0)) == size


@pytest.mark.parametrize("name", DATA)
def test_a_seed_gives_the_same_rows_again_and_another_gives_them_in_another_order(name):
    """The stream is a function of its seed; only the order depends on it."""
    first, again, other = (list(builtin_rows(name, "test", seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert sorted(map(json.dumps, first)) == sorted(map(json.dumps, other))


def test_arithmetic_answers_are_right():
    """Each solution's sum has the question's numbers, and its result is right and the answer."""
    operations = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    signs = set()
    for row in itertools.islice(builtin_rows("arithmetic", "train", seed=3), 4_000):
        (example,) = READERS["arithmetic"].read(row)
        a, sign, b, result = re.search(r"(\d+) ([+*-]) (\d+) = (\d+)\.\n####", row["answer"]).groups()
        assert sorted((int(a), int(b))) == sorted(map(int, re.findall(r"\d+", row["question"])))
        assert max(int(a), int(b)) <= 12
        assert operations[sign](int(a), int(b)) == int(result) == int(example.answer)
        signs.add(sign)
    assert signs == set(operations)


def test_instructions_are_a_mixture_with_the_same_results():
    """Alpaca with and without input, chat and completion rows; each answer has the problem's result in it."""
    texts = {"alpaca": 0, "input": 0, "messages": 0, "prompt": 0}
    for row in itertools.islice(builtin_rows("instructions", "train", seed=3), 4_000):
        (example,) = READERS["instructions"].read(row)
        kind = "input" if row.get("input") else "alpaca" if "instruction" in row else next(iter(row))
        texts[kind] += 1
        numbers = sorted(int(number) for number in re.findall(r"\d+", example.messages[-2].content))
        (result,) = map(int, re.findall(r"\d+", example.answer))
        assert result in (sum(numbers), numbers[1] - numbers[0], numbers[0] * numbers[1])
    assert min(texts.values()) > 700


def test_the_vocabulary_is_small():
    """Fewer than 400 words, digits and marks, so that a tiny model's embedding stays tiny."""
    pieces = set()
    for name in DATA:
        for row in builtin_rows(name, "train", seed=0):
            (example,) = READERS[name].read(row)
            for message in example.messages:
                pieces.update(re.findall(r"[A-Za-z]+|\d|[^\w\s]", message.content))
    assert len(pieces) < 400


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("builtin:arithmetic/train", ("arithmetic", "train")),
        ("builtin:instructions/test", ("instructions", "test")),
        ("train.jsonl", None),
        ("arithmetic/train", None),
    ],
)
def test_builtin_paths_are_distinguished_from_files(path, named):
    """Only what begins with `builtin:` is built-in data."""
    assert parse_builtin(path) == named


@pytest.mark.parametrize(
    "path", ["builtin:", "builtin:arithmetic", "builtin:arithmetics/train", "builtin:arithmetic/dev"]
)
def test_unknown_builtin_data_is_refused_with_what_there_is(wording, path):
    """A wrong name or split says which there are, when the path is read and when the rows are asked for."""
    name, _, split = path.removeprefix("builtin:").partition("/")
    for call in (lambda: parse_builtin(path), lambda: builtin_rows(name, split, seed=0)):
        with pytest.raises(UsageError) as caught:
            call()
        wording(caught.value)
