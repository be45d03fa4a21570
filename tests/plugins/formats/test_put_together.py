"""Rows of files that were put together, of CSV files and of other makers: empty columns, JSON text, other names."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from ids import shown

from modelwright import Example, RowError
from modelwright.core.stages.prepare.examples import Rejected, read_examples
from modelwright.core.stages.prepare.readers import read_file
from modelwright.core.stages.prepare.sources import Row
from modelwright.plugins.formats.general import GeneralFormat, GeneralOptions
from modelwright.plugins.formats.math import MathFormat, MathOptions
from modelwright.plugins.formats.reasoning import ReasoningFormat, ReasoningOptions

CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SHAREGPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
READERS = {
    "general": GeneralFormat(GeneralOptions()),
    "math": MathFormat(MathOptions()),
    "reasoning": ReasoningFormat(ReasoningOptions(require_thinking=False)),
}
ROWS = [
    ("general", {"text": "t"}),
    ("general", {"messages": CHAT}),
    ("general", {"conversations": SHAREGPT}),
    ("general", {"instruction": "i", "instances": [{"input": "n", "output": "o"}]}),
    ("general", {"instruction": "i", "input": "n", "output": "o"}),
    ("general", {"prompt": CHAT[:1], "completion": CHAT[1:]}),
    ("general", {"question": "p", "answer": "c", "history": [["q", "a"]], "tools": [{"name": "f"}], "system": "s"}),
    ("general", Example(text="t", source="f:1").to_row()),
    ("math", {"question": "q", "answer": "so\n#### 1"}),
    ("math", {"problem": "p", "solution": r"so \boxed{1}"}),
    ("math", {"question": "p", "generated_solution": "s", "expected_answer": 1}),
    ("math", {"question": "q", "choices": ["1", "2"], "answer": "B"}),
    ("reasoning", {"messages": CHAT}),
    ("reasoning", {"question": "q", "chain_of_thought": "t", "answer": "a"}),
    ("reasoning", {"prompt": "q", "response": "<think>t</think>a"}),
    ("reasoning", {"problem": "q", "generated_solution": "so\n#### 1", "expected_answer": "1"}),
]
NAMES = sorted(
    {name for _, row in ROWS for name in row} - {"id", "source"} | {"conversation", "output", "cot", "solution", "text"}
)
blanks = st.sampled_from([None, "", " \n", [], {}, math.nan])


@pytest.mark.parametrize(("name", "row"), ROWS, ids=shown)
@example(empty={"answer": float("nan")})
@given(empty=st.dictionaries(st.sampled_from(NAMES), blanks, max_size=12))
def test_empty_columns_change_nothing(name, row, empty):
    """A file that was put together has the columns of all its parts, and a row fills those of its own."""
    reader = READERS[name]
    assert list(reader.read({**empty, **row})) == list(reader.read(row))
    assert reader.detect({**empty, **row}) == reader.detect(row)


def test_text_beside_half_a_pair_is_refused(wording):
    """Alpaca has its prompt in `text` as well: an empty answer must not make it a text to learn."""
    row = {"instruction": "Say hi.", "input": "", "output": "", "text": "### Instruction: Say hi."}
    with pytest.raises(RowError) as caught:
        READERS["general"].read(row)
    wording(caught.value)


@pytest.mark.parametrize("value", [math.inf, -math.inf])
@pytest.mark.parametrize("name", READERS)
def test_an_answer_that_no_number_can_be_is_refused(wording, name, value):
    """1e400 in JSON: `inf` is not what was written."""
    row = {"problem": "p", "solution": r"so \boxed{1}", "answer": value}
    with pytest.raises(RowError) as caught:
        READERS[name].read(row)
    wording(caught.value)


@pytest.mark.parametrize("name", READERS)
def test_an_answer_that_is_nan_is_missing(name):
    """What pandas writes where there is none."""
    row = {"problem": "p", "solution": r"so \boxed{1}"}
    assert READERS[name].read({**row, "answer": math.nan}) == READERS[name].read(row)


def test_a_rejected_row_is_valid_json(tmp_path):
    """Also with numbers that JSON does not have."""
    rejected = Rejected(tmp_path / "rejected.jsonl")
    row = Row(file="a", line=1, value={"answer": math.nan, "score": math.inf})
    assert list(read_examples([row], READERS["general"], format_name="general", reject=rejected.add)) == []

    def refuse(name):
        raise AssertionError(name)

    json.loads((tmp_path / "rejected.jsonl").read_text(), parse_constant=refuse)


@pytest.mark.parametrize(("name", "row"), [each for each in ROWS if "source" not in each[1]], ids=shown)
def test_lists_may_be_json_text(tmp_path, name, row):
    """CSV has no lists, and some Parquet files hold JSON text."""
    text = {column: value if isinstance(value, str) else json.dumps(value) for column, value in row.items()}
    file = io.StringIO()
    writer = csv.DictWriter(file, list(text))
    writer.writeheader()
    writer.writerow(text)
    (tmp_path / "a.csv").write_text(file.getvalue())
    (read,) = read_file(tmp_path / "a.csv", lambda _columns: None)
    assert list(READERS[name].read(read.read().value)) == list(READERS[name].read(row))


def test_a_text_that_only_looks_like_json_is_a_text():
    """A list of numbers to sort, or messages that somebody asks about."""
    for text in ("[1, 2]", "[INST] hi", "{}", '[{"role": "x"}]', json.dumps(CHAT) + " Who speaks?"):
        (example,) = READERS["general"].read({"prompt": text, "completion": text})
        assert [message.content for message in example.messages] == [text, text]


@pytest.mark.parametrize("text", ["[{'role': 'user', 'content': 'q'}]", "[", '["hi"]', '{"role": "user"}'])
def test_messages_that_are_no_json_are_refused(wording, text):
    """Python's own notation is what pandas writes into CSV."""
    with pytest.raises(RowError) as caught:
        READERS["general"].read({"messages": text})
    wording(caught.value)


@pytest.mark.parametrize(
    ("names", "role"),
    [
        ("user User human Human prompter", "user"),
        ("assistant Assistant gpt GPT chatgpt bard bing model ai AI chatbot bot", "assistant"),
        ("tool function observation ipython", "tool"),
        ("system System developer", "system"),
    ],
)
def test_speakers_have_many_names(names, role):
    """In any case, and with spaces around."""
    for name in (each for plain in names.split() for each in (plain, f" {plain.upper()} ")):
        at = ["system", "user", "assistant", "tool"].index(role)
        talk = [{"role": "system", "content": "s"}, *CHAT, {"role": "tool", "content": "t"}, CHAT[1]]
        talk[at] = {**talk[at], "role": name}
        (example,) = READERS["general"].read({"messages": talk})
        assert [message.role for message in example.messages] == ["system", "user", "assistant", "tool", "assistant"]


def test_parts_of_a_content_have_the_names_of_each_api():
    """OpenAI's chat completions and its responses."""
    question = {"role": "user", "content": [{"type": "input_text", "text": "How "}, {"type": "text", "text": "many?"}]}
    said = {"role": "assistant", "content": [{"type": "output_text", "text": "Two."}]}
    (example,) = READERS["general"].read({"messages": [question, said]})
    assert [message.content for message in example.messages] == ["How many?", "Two."]


def test_reference_answers_have_their_columns():
    """Beside the solution."""
    for column in ("answer", "expected_answer", "final_answer"):
        row = {"problem": "p", "generated_solution": "so it is #### 7", column: "7"}
        for name in ("general", "reasoning"):
            (example,) = READERS[name].read(row)
            assert example.answer == "7"
    (general,) = READERS["general"].read({"messages": CHAT, "answer": "7"})
    assert general.answer == "7"
