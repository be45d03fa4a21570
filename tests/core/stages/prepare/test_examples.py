"""Examples: what a format cannot read is kept aside, what it says twice is said once."""

from __future__ import annotations

import json

import pytest

from modelwright.core.api import Example, Message, ModelwrightError, RowError
from modelwright.core.stages.prepare.examples import Rejected, read_examples
from modelwright.core.stages.prepare.sources import Row


class Words:
    """A format that makes an example of each word, and is as wrong as a test needs."""

    def read(self, row):
        """One user message a word."""
        if "text" not in row:
            raise RowError(f"expected a column text, found {', '.join(row)}")
        if row["text"] == "crash":
            raise KeyError("oops")
        if row["text"] == "none":
            return [None]
        return [Example(messages=[Message(role="user", content=word)]) for word in row["text"].split()]


def _rows(*values):
    return [Row(file="f.jsonl", line=number, value=value) for number, value in enumerate(values, 1)]


def _read(rows, tmp_path):
    rejected = Rejected(tmp_path / "rejected.jsonl")
    return list(read_examples(rows, Words(), format_name="words", reject=rejected.add)), rejected


def test_every_example_knows_its_row(tmp_path):
    """One row may give several."""
    examples, _ = _read(_rows({"text": "a b"}, {"text": "c"}), tmp_path)
    assert [(e.messages[0].content, e.source) for e in examples] == [
        ("a", "f.jsonl:1"),
        ("b", "f.jsonl:1"),
        ("c", "f.jsonl:2"),
    ]


def test_rejected_rows_are_kept_with_file_line_and_reason(tmp_path):
    """Never silently lost."""
    rows = [*_rows({"text": "a"}, {"txt": "b"}), Row(file="f.jsonl", line=9, value=None, reason="not JSON", text="{")]
    examples, rejected = _read(rows, tmp_path)
    assert len(examples) == 1
    assert [json.loads(line) for line in rejected.path.read_text().splitlines()] == [
        {"file": "f.jsonl", "line": 2, "reason": "expected a column text, found txt", "row": {"txt": "b"}},
        {"file": "f.jsonl", "line": 9, "reason": "not JSON", "row": "{"},
    ]
    assert (rejected.count, rejected.first) == (2, "f.jsonl:2: expected a column text, found txt")


def test_a_lone_surrogate_is_rejected_not_a_crash(wording, tmp_path):
    """JSON can spell what UTF-8 cannot."""
    _, rejected = _read(_rows(json.loads('{"text": "\\ud800"}')), tmp_path)
    [(reason, count)] = rejected.reasons.items()
    assert count == 1
    wording(reason)
    assert "ud800" in rejected.path.read_text()


@pytest.mark.parametrize("text", ["crash", "none"])
def test_a_format_that_fails_otherwise_is_named_with_the_row(wording, tmp_path, text):
    """It is the plugin's mistake, not the data's."""
    with pytest.raises(ModelwrightError) as caught:
        _read(_rows({"text": "a"}, {"text": text}), tmp_path)
    wording(caught.value)
