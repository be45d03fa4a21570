"""What a person sees of prepared tokens is what the model sees."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelwright import Example, Message
from modelwright.core.api.files import json_line
from modelwright.core.chat.renderer import Renderer, read_template
from modelwright.core.stages.prepare.preview import (
    HOLDOUT,
    TRAIN,
    PreviewRow,
    TextPart,
    _histogram,
    _quantiles,
    html_page,
    preview,
)
from modelwright.core.stages.prepare.rendering import TokenWriter
from modelwright.core.stages.prepare.tokenizers import scratch_renderer

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(str.strip)


def example(question, answered, source="rows.jsonl:1"):
    messages = [Message(role="user", content=question), Message(role="assistant", content=answered)]
    return Example(messages=messages, source=source)


def prepared(folder, examples, *, kind="bpe", held_out=lambda _: False) -> Renderer:
    """A folder as the prepare stage leaves it."""
    folder.mkdir(exist_ok=True)
    trained = [example("How much is 2 + 3?", "5")]
    renderer = scratch_renderer(kind, trained, vocab_size=300, template=read_template("chatml"))
    renderer.save(folder / "tokenizer")
    lines = "".join(json_line(each.to_row()) for each in examples)
    (folder / "examples").mkdir(exist_ok=True)
    (folder / "examples/00000.jsonl").write_text(lines, encoding="utf-8")
    for split, wanted in ((TRAIN, False), (HOLDOUT, True)):
        (folder / split).mkdir(exist_ok=True)
        writer = TokenWriter()
        for each in examples:
            if held_out(each) == wanted:
                for rendered in renderer.train(each):
                    writer.add(each.id, rendered, "")
        writer.write(folder / split / "00000.arrow")
    return renderer


def test_a_row_is_its_text_with_what_is_trained(tmp_path):
    """Special tokens are written out: the end of the turn is trained, the newline after it is not."""
    prepared(tmp_path, [example("How much is 2 + 3?", "5")])
    [one] = preview(tmp_path, 5)
    assert one == PreviewRow(
        id=one.id,
        source="rows.jsonl:1",
        tokens=one.tokens,
        trained=2,
        parts=(
            TextPart("<|im_start|>user\nHow much is 2 + 3?<|im_end|>\n<|im_start|>assistant\n", trained=False),
            TextPart("5<|im_end|>", trained=True),
            TextPart("\n", trained=False),
        ),
    )


@settings(max_examples=60, deadline=None)
@given(TEXT, TEXT)
def test_the_parts_are_the_rendering_of_any_text(tmp_path_factory, question, answered):
    """No character is lost between two parts, though tokens be bytes of one."""
    folder = tmp_path_factory.mktemp("look")
    given_example = example(question, answered)
    renderer = prepared(folder, [given_example])
    [rendered] = renderer.train(given_example)
    [one] = preview(folder, 1)
    assert "".join(part.text for part in one.parts) == renderer.spell(rendered.ids) == rendered.text
    trained = "".join(part.text for part in one.parts if part.trained)
    assert trained == f"{answered.strip()}<|im_end|>"
    assert one.trained == sum(rendered.trained)


def test_rows_are_counted_from_where_one_asks_and_end_where_they_end(tmp_path):
    """Of the training rows, or of those held out."""
    examples = [example(f"say {n}", str(n), f"rows.jsonl:{n + 1}") for n in range(9)]
    prepared(tmp_path, examples, held_out=lambda each: each.source.endswith(":3"))
    assert [one.source for one in preview(tmp_path, 3, skip=1)] == ["rows.jsonl:2", "rows.jsonl:4", "rows.jsonl:5"]
    assert [one.source for one in preview(tmp_path, 9, skip=7)] == ["rows.jsonl:9"]
    assert [one.source for one in preview(tmp_path, 9, split=HOLDOUT)] == ["rows.jsonl:3"]
    assert preview(tmp_path, 9, skip=100) == []


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", "</pre><mark>", "a & b"])
def test_the_page_marks_what_is_trained_and_runs_nothing(tmp_path, hostile):
    """Data is anybody's text."""
    prepared(tmp_path, [example(f"say {hostile}", hostile)])
    text = html_page(f"first {hostile}", preview(tmp_path, 1))
    marks = re.findall(r"<mark>(.*?)</mark>", text, re.DOTALL)[1:]  # the first one explains the colour
    escaped = hostile.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert marks == [f"{escaped}&lt;|im_end|&gt;"]
    assert "<script" not in text


LENGTHS = st.lists(st.integers(1, 5000), min_size=1, max_size=200)


@given(LENGTHS)
def test_every_row_is_in_one_bin_that_holds_its_length(lengths):
    """Bins are powers of two from 16 to the first that holds the longest."""
    bins = _histogram(np.array(lengths, dtype=np.int32))
    edges = list(bins)
    assert sum(bins.values()) == len(lengths)
    assert edges[-1] >= max(lengths)
    assert len(edges) == 1 or edges[-2] < max(lengths)
    for low, high in zip([0, *edges], edges, strict=False):
        assert bins[high] == sum(low < length <= high for length in lengths)


@given(LENGTHS)
def test_quantiles_are_lengths_that_rows_have(lengths):
    """At least that share of the rows is no longer."""
    found = _quantiles(np.array(lengths, dtype=np.int32))
    assert (found["min"], found["max"]) == (min(lengths), max(lengths))
    for name, share in (("median", 0.5), ("p90", 0.9), ("p99", 0.99)):
        assert found[name] in lengths
        assert sum(length <= found[name] for length in lengths) >= share * (len(lengths) - 1)


@pytest.mark.parametrize("count", [_quantiles, _histogram])
def test_no_rows_are_no_error(count):
    """A run whose rows are all held out has none."""
    assert sum(count(np.array([], dtype=np.int32)).values()) == 0
