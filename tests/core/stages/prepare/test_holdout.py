"""What is held out: whole prompts, at least one, about the fraction that was asked for; what is shared is counted."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modelwright import Example, Message, ModelwrightError, TokenFolder
from modelwright.core import runner
from modelwright.core.config import read_run
from modelwright.core.stages.prepare.holdout import FindPrompts, draw
from modelwright.core.stages.prepare.rendering import ExamplesFile

RUN = """
name = "held"
seed = 1
[model.scratch]
vocab_size = 300
[data]
format = "general"
workers = 1
holdout.fraction = 0.2
[[data.sources]]
path = "*.jsonl"
[train]
max_steps = 1
"""


def turns(*texts):
    """A conversation; every text is of the user, and has an answer."""
    return Example(
        messages=[
            message
            for text in texts
            for message in (Message(role="user", content=text), Message(role="assistant", content=f"re: {text}"))
        ]
    )


@pytest.fixture(scope="session")
def find(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts")

    def found(examples):
        path = folder / "examples.jsonl"
        path.write_text("".join(json.dumps(each.to_row()) + "\n" for each in examples))
        with FindPrompts(seed=1).opened(None) as prompts:
            return prompts(ExamplesFile(path, 1.0), lambda: None)

    return found


@pytest.fixture
def prepare(tmp_path, rows_file):
    def run(rows, *overrides):
        rows_file(tmp_path / "rows.jsonl", rows)
        (tmp_path / "run.toml").write_text(RUN)
        read = read_run(tmp_path / "run.toml", overrides=overrides)
        opened = runner.open_run(read.configs[0], read.plugins)
        return runner.execute(opened, only="prepare").outputs["prepare"], opened.folder.stage("prepare")

    return run


def questions(folder, split):
    """The first user turns behind the rows of a split."""
    asked = {}
    for path in (folder / "examples").glob("*.jsonl"):
        for row in map(json.loads, path.read_text().splitlines()):
            asked[row["id"]] = row["text"] if "text" in row else row["messages"][0]["content"]
    tokens = TokenFolder(folder / split)
    return [asked[tokens[number].id] for number in range(len(tokens))]


def test_no_held_out_question_is_trained_with_another_answer(prepare):
    """40 questions with 5 answers each."""
    rows = [{"prompt": f"How much is {q}?", "completion": f"By way {a}: {q}"} for a in range(5) for q in range(40)]
    outputs, folder = prepare(rows)
    trained, held = questions(folder, "train"), questions(folder, "holdout")
    assert set(trained).isdisjoint(held)
    assert (len(trained), len(held), len(set(held))) == (160, 40, 8)
    assert (outputs["holdout_prompts"], outputs["holdout_shared"], outputs["notices"]) == (8, 0, [])


def test_several_files_and_weights_draw_as_one(prepare, tmp_path, rows_file):
    """A question in two files is on one side; examples that the weight leaves out do not count."""
    rows_file(tmp_path / "more.jsonl", [{"prompt": f"say {n}", "completion": f"no, {n}"} for n in range(60)])
    rows = [{"prompt": f"say {n}", "completion": f"it is {n}"} for n in range(60)]
    sources = f'{{path="{tmp_path}/rows.jsonl", weight=2}}, {{path="{tmp_path}/more.jsonl", weight=0.5}}'
    outputs, folder = prepare(rows, f"data.sources=[{sources}]")
    trained, held = questions(folder, "train"), questions(folder, "holdout")
    assert set(trained).isdisjoint(held)
    drawn = 120 - outputs["undrawn"]
    assert 0 <= drawn / 5 - len(held) < 2
    assert len(trained) > drawn  # twice, those of the first file


def test_a_fraction_below_one_example_holds_one_out_and_says_so(wording, prepare):
    """Early stopping and the held-out loss need one."""
    rows = [{"prompt": f"say {n}", "completion": f"it is {n}"} for n in range(12)]
    outputs, _ = prepare(rows, "data.holdout.fraction=0.001", "train.early_stopping=2")
    assert (outputs["rows"], outputs["holdout_rows"]) == (11, 1)
    (notice,) = outputs["notices"]
    wording(notice)


def test_a_prompt_of_most_examples_is_trained(prepare):
    """Holding it out would leave little to train on."""
    rows = [{"prompt": "Tell me a joke.", "completion": f"Joke {n}."} for n in range(80)]
    rows += [{"prompt": f"say {n}", "completion": f"it is {n}"} for n in range(20)]
    _, folder = prepare(rows, "data.holdout.fraction=0.1")
    assert len(questions(folder, "holdout")) == 10
    assert "Tell me a joke." not in questions(folder, "holdout")


def test_a_single_prompt_cannot_be_held_out(wording, prepare):
    """Some of its answers would be trained."""
    with pytest.raises(ModelwrightError) as caught:
        prepare([{"prompt": "Tell me a joke.", "completion": f"Joke {n}."} for n in range(20)])
    wording(caught.value)


def test_held_out_examples_that_are_all_left_out_are_an_error(wording, prepare):
    """Not a training without the loss that somebody asked for."""
    rows = [{"prompt": f"say {n}", "completion": "it is " * 100} for n in range(9)]
    rows += [{"prompt": "hello", "completion": f"it is {n}"} for n in range(20)]
    with pytest.raises(ModelwrightError) as caught:
        prepare(rows, "data.tokens.max_length=64", "data.holdout.fraction=0.3")
    wording(caught.value)


def test_later_turns_that_both_sides_have_are_counted(wording, prepare):
    """A question that a held-out conversation comes to may be trained elsewhere."""
    ask = [{"role": "user", "content": "And now?"}, {"role": "assistant", "content": "Now, too."}]
    rows = [
        {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"it is {n}"}, *ask]}
        for n in range(20)
    ]
    outputs, _ = prepare(rows)
    assert (outputs["holdout_prompts"], outputs["holdout_shared"]) == (4, 4)
    (notice,) = outputs["notices"]
    wording(notice)


def test_case_and_spacing_make_no_other_prompt(find):
    """Nor do a system message, later turns, or the answer; plain texts are their own prompts."""
    system = Message(role="system", content="Be brief.")
    same = [turns("What is  it?"), turns("what is it?\n"), turns("What is it?", "Why?")]
    same.append(Example(messages=[system, *turns("WHAT IS IT?").messages]))
    found = find([*same, turns("What is that?"), Example(text="What is this?"), Example(text="What is  this?")])
    prompts, at = [], 0
    for count in found.counts:
        prompts.append(found.turns[at])
        at += count
    assert prompts[0] == prompts[1] == prompts[2] == prompts[3] != prompts[4]
    assert prompts[5] == prompts[6] not in prompts[:5]


rows_of_prompts = st.lists(st.integers(0, 12), min_size=1, max_size=60)


@given(rows_of_prompts, st.floats(0.001, 0.999), st.integers(1, 59))
@example([0] * 9 + [1], 0.5, 1)
def test_prompts_are_drawn_whole_and_in_any_cut_the_same(find, prompts, fraction, cut):
    """At least one is held out and one trained; never more than the fraction, unless one prompt is more."""
    examples = [turns(f"prompt {prompt}", f"then {number}") for number, prompt in enumerate(prompts)]
    drawn = draw([find(examples)], fraction)
    (held,) = drawn.held
    sides = [{prompts[n] for n in range(len(prompts)) if (n in held) is side} for side in (True, False)]
    assert sides[0].isdisjoint(sides[1])
    assert (drawn.examples, drawn.prompts, drawn.of) == (len(held), len(sides[0]), len(set(prompts)))
    assert drawn.shared == 0
    assert sides[0]
    assert sides[1] or drawn.of == 1
    assert drawn.examples <= max(drawn.wanted, min(map(prompts.count, prompts)))
    parts = [part for part in (examples[:cut], examples[cut:]) if part]
    in_parts = draw([find(part) for part in parts], fraction).held
    joined = [n + len(parts[0]) * number for number, part in enumerate(in_parts) for n in part]
    assert joined == list(held)
