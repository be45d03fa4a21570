"""Renderings that a job has kept are what the renderer would make, and are used where they are."""

from __future__ import annotations

import pytest

from modelwright import Example, Message, RowError
from modelwright.core.api.files import json_line, write_json
from modelwright.core.chat.renderer import Renderer
from modelwright.core.stages.prepare import reading
from modelwright.core.stages.prepare.cache import Cache
from modelwright.core.stages.prepare.rendering import RENDERINGS, RENDERINGS_FILE, RenderAhead, ShardRenderer
from modelwright.core.stages.prepare.tokenizers import scratch_renderer

GONE, REFUSED = 2, 3


class NoRenderer:
    """A renderer that must not be called."""

    def __init__(self, renderer):
        self.fingerprint = renderer.fingerprint
        self.empty_thinking = renderer.empty_thinking

    def train(self, *examples):
        raise AssertionError(examples)


def said(*turns):
    return Example(messages=[Message(role=role, content=content) for role, content in turns], source="a.jsonl:1")


@pytest.fixture
def examples():
    """Several turns, plain text, one that goes for a reason of its own, one that the template refuses."""
    return [
        said(
            ("user", "How much is 2 + 3?"),
            ("assistant", "5"),
            ("user", "And 1 more?"),
            ("assistant", "6 of <|im_end|>"),
        ),
        Example(text="Ωμέγα 👍", source="a.jsonl:2"),
        said(("user", "Hi"), ("assistant", "Hello")),
        said(("tool", "5"), ("assistant", "what?")),
        said(("user", "Bye"), ("assistant", "So long")),
    ]


@pytest.fixture
def renderer(tmp_path, examples):
    template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
        "[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    made = scratch_renderer("bpe", examples, vocab_size=300, template=template)
    made.save(tmp_path / "tokenizer")
    return Renderer.from_folder(tmp_path / "tokenizer")


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


@pytest.fixture
def lines(examples):
    return [json_line(example.to_row()).encode() for example in examples]


@pytest.fixture
def entry(cache, lines):
    """The shard, as reading leaves it."""

    def write(folder):
        (folder / reading.EXAMPLES).write_bytes(b"".join(lines))
        write_json(folder / reading.FACTS, {"verdicts": {str(GONE): ["length", "too short", {}]}})

    return cache.make("examples", "some", write)


def keep(tmp_path, renderer, cache, entry, turns):
    with RenderAhead(tmp_path / "tokenizer", renderer.fingerprint, turns, cache).opened(None) as render:
        return render(entry, lambda: None)


@pytest.mark.parametrize("turns", ["auto", "all", "last", "split"])
def test_what_is_kept_is_what_the_renderer_makes(wording, tmp_path, renderer, cache, entry, lines, examples, turns):
    """Tokens, spans and anomalies; the renderer itself is not asked."""
    keep(tmp_path, renderer, cache, entry, turns)
    kept = ShardRenderer(NoRenderer(renderer), turns, cache, entry)
    for number, (line, example) in enumerate(zip(lines, examples, strict=True)):
        if number == GONE:
            continue
        if number == REFUSED:
            with pytest.raises(RowError) as caught:
                kept.train(line, example)
            wording(caught.value)
            continue
        made = renderer.train(example, turns)
        found = kept.train(line, example)
        assert [(one.ids, one.spans, one.anomalies) for one in found] == [
            (one.ids, one.spans, one.anomalies) for one in made
        ]


def test_examples_that_have_gone_are_passed_over(tmp_path, renderer, cache, entry, lines, examples):
    """Which ones stay is known later."""
    keep(tmp_path, renderer, cache, entry, "all")
    kept = ShardRenderer(NoRenderer(renderer), "all", cache, entry)
    for number in (1, 4):
        assert kept.train(lines[number], examples[number])[0].ids == renderer.train(examples[number])[0].ids


@pytest.mark.parametrize("change", ["nothing kept", "other turns", "no shard", "another line", "verdict"])
def test_what_is_not_kept_is_rendered(tmp_path, renderer, cache, entry, lines, examples, change):
    """By the renderer, as if nothing were kept."""
    if change != "nothing kept":
        keep(tmp_path, renderer, cache, entry, "all")
    shard = ShardRenderer(
        renderer, "last" if change == "other turns" else "all", cache, None if change == "no shard" else entry
    )
    line, example = lines[0], examples[0]
    if change == "another line":
        example = said(("user", "new"), ("assistant", "one"))
        line = json_line(example.to_row()).encode()
    if change == "verdict":
        line, example = lines[GONE], examples[GONE]
    assert shard.train(line, example) == renderer.train(example, "last" if change == "other turns" else "all")


def test_a_damaged_entry_is_made_again(tmp_path, renderer, cache, entry, lines, examples):
    """And not used before."""
    folder = keep(tmp_path, renderer, cache, entry, "all")
    (folder / RENDERINGS_FILE).chmod(0o644)
    (folder / RENDERINGS_FILE).write_bytes(b"[[[1],[],[]]]\n" * 5)
    assert ShardRenderer(renderer, "all", cache, entry).train(lines[0], examples[0]) == renderer.train(examples[0])
    assert keep(tmp_path, renderer, cache, entry, "all").parent.name == RENDERINGS
    kept = ShardRenderer(NoRenderer(renderer), "all", cache, entry)
    assert kept.train(lines[0], examples[0])[0].ids == renderer.train(examples[0])[0].ids
