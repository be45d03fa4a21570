"""The prepare stage: what is dropped is counted, wrong labels stop the run, the same input gives the same bytes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from tiny_run import tiny_run

from modelwright import ModelwrightError, TokenFolder
from modelwright.core import runner
from modelwright.core.chat.renderer import Renderer
from modelwright.core.config import read_run
from modelwright.core.stages.prepare.examples import written_rows
from modelwright.core.stages.prepare.preparation import Preparation

RUN = """
name = "prep"
data.format = "general"
data.sources = [{ path = "rows.jsonl" }]
"""
ROWS = [{"prompt": f"say {n}", "completion": f"it is {n}"} for n in range(60)]


@pytest.fixture
def prepare(tmp_path, rows_file):
    def run(rows, *overrides, model=""):
        rows_file(tmp_path / "rows.jsonl", rows)
        path = tmp_path / "run.toml"
        path.write_text(tiny_run(RUN, f"[model]\n{model}"))
        read = read_run(path, overrides=overrides)
        opened = runner.open_run(read.configs[0], read.plugins)
        runner.check([opened], ["prepare"])
        outputs = runner.execute(opened, only="prepare").outputs["prepare"]
        return outputs, opened.folder.stage("prepare")

    return run


def test_every_example_becomes_a_row_whose_answer_is_trained(prepare):
    """And nothing of the prompt is."""
    outputs, folder = prepare(ROWS)
    tokens, renderer = TokenFolder(folder / "train"), Renderer.from_folder(folder / "tokenizer")
    assert len(tokens) == outputs["rows"] == len(ROWS)
    for number, row in enumerate([tokens[0], tokens[59]]):
        trained = [int(token) for token, is_trained in zip(row.input_ids, row.trained, strict=True) if is_trained]
        assert renderer.decode(trained) == ROWS[number * 59]["completion"]
        assert trained[-1] in renderer.stop_token_ids
    assert int(tokens.lengths().sum()) == outputs["tokens"]


def test_duplicates_and_long_examples_are_dropped_and_counted(prepare):
    """Never silently."""
    long = {"prompt": "say it", "completion": "it " * 200}
    outputs, _ = prepare([*ROWS, ROWS[0], long], "data.tokens.max_length=64")
    assert (outputs["rows"], outputs["removed"]["duplicate"], outputs["too_long"]) == (60, 1, 1)
    outputs, _ = prepare([*ROWS, ROWS[0]], "data.quality.deduplicate=false")
    assert (outputs["rows"], outputs["removed"]) == (61, {})


def test_rows_of_each_kind_are_counted_as_such(prepare):
    """Though all of them have the same columns, as in files that were put together."""
    talks = [
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        [{"from": "human", "value": "p"}, {"from": "gpt", "value": "b"}],
    ]
    rows = [{"text": "t", "prompt": None}, {"prompt": "p", "completion": "c"}, *({"messages": talk} for talk in talks)]
    empty = dict.fromkeys(("text", "prompt", "completion", "messages"))
    outputs, _ = prepare([empty | row for row in rows])
    assert (outputs["rejected"], list(outputs["detected"].values())) == (0, [1, 1, 1, 1])


def test_held_out_examples_are_not_trained_on(prepare):
    """Each is in one file, the same one in every run."""
    outputs, folder = prepare(ROWS, "data.holdout.fraction=0.3")
    files = [TokenFolder(folder / name) for name in ("train", "holdout")]
    ids = [{file[number].id for number in range(len(file))} for file in files]
    assert ids[0].isdisjoint(ids[1])
    assert (len(ids[0]), len(ids[1])) == (outputs["rows"], outputs["holdout_rows"])
    assert 5 < len(ids[1]) < 35


def test_the_same_input_gives_the_same_digest_and_a_changed_byte_another(prepare):
    """Everything downstream hangs on it."""
    digests = [prepare(rows)[0]["digest"] for rows in (ROWS, [*ROWS[:-1], {"prompt": "say", "completion": "x"}], ROWS)]
    assert digests[0] == digests[2] != digests[1]


def test_nothing_left_to_train_on_is_an_error_that_says_why(wording, prepare):
    """Not an empty training."""
    with pytest.raises(ModelwrightError) as caught:
        prepare(ROWS, "data.tokens.max_length=4")
    wording(caught.value)


def test_examples_that_checks_have_left_out_are_named_where_none_is_left(wording, prepare):
    """Each check by its name: "no row gave an example" would send people to the wrong place."""
    with pytest.raises(ModelwrightError) as caught:
        prepare(ROWS, "data.quality.min_characters=1000")
    wording(caught.value)


def test_a_source_that_changes_while_it_is_read_is_not_kept_as_what_it_was(
    wording, prepare, tmp_path, home, monkeypatch
):
    """The fingerprint is of the old bytes, so a run that has them again must not get the tokens of the others."""
    real, path = Preparation.read, tmp_path / "rows.jsonl"

    def changed(preparation):
        before = path.read_bytes()
        path.write_bytes(before.replace(b'it is 7"', b'it is 8"'))
        real(preparation)

    monkeypatch.setattr(Preparation, "read", changed)
    with pytest.raises(ModelwrightError) as caught:
        prepare(ROWS)
    wording(caught.value)
    assert not list((home / "cache").glob("prepared/*"))
    monkeypatch.setattr(Preparation, "read", real)
    _, folder = prepare(ROWS)
    answers = [row["messages"][1]["content"] for row in written_rows(folder / "examples")]
    assert "it is 7" in answers


def test_thinking_that_a_template_drops_stops_the_run_unless_it_is_allowed(wording, prepare, tmp_path, install_plugin):
    """The most common silent damage to reasoning data."""
    install_plugin(
        "thinking-plugin",
        """
        from modelwright import Example, FormatSpec, Message, hookimpl

        @hookimpl
        def modelwright_formats():
            yield FormatSpec(name="thoughts", summary="", factory="thinking_plugin:Thoughts")

        class Thoughts:
            def __init__(self, options): pass
            def read(self, row):
                yield Example(messages=[
                    Message(role="user", content=row["prompt"]),
                    Message(role="assistant", content=row["completion"], thinking="so " + row["prompt"]),
                ])
        """,
    )
    (tmp_path / "plain.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    chosen = ("data.format='thoughts'", f"model.chat_template='{tmp_path}/plain.jinja'")
    with pytest.raises(ModelwrightError) as caught:
        prepare(ROWS, *chosen)
    wording(caught.value)
    outputs, _ = prepare(ROWS, *chosen, "data.tokens.allow=['thinking-dropped']")
    assert outputs["anomalies"]["thinking-dropped"] == 60
    kept, _ = prepare(ROWS, chosen[0])
    assert kept["trained_by_role"]["assistant"]["thinking"] > 0


def test_a_stopped_preparation_leaves_nothing_half_done(prepare, tmp_path, monkeypatch, home):
    """The next run starts it again."""
    from modelwright.core.api import StopRequested

    real = Preparation.render

    def stop_then_render(preparation):
        (home / "runs" / "prep" / "stop").touch()
        real(preparation)

    monkeypatch.setattr(Preparation, "render", stop_then_render)
    with pytest.raises(StopRequested):
        prepare(ROWS)
    assert not (home / "runs" / "prep" / "prepare").exists()
    assert not list((home / "runs" / "prep").glob(".tmp-*"))
    monkeypatch.setattr(Preparation, "render", real)
    prepare(ROWS)


def test_the_report_and_the_examples_are_there_to_look_at(prepare):
    """JSON and JSONL, one Example a line."""
    outputs, folder = prepare(ROWS)
    assert json.loads((folder / "report.json").read_text())["trained_tokens"] == outputs["trained_tokens"]
    first = json.loads((folder / "examples/00000.jsonl").read_text().splitlines()[0])
    assert first["source"] == "rows.jsonl:1"
    assert [message["role"] for message in first["messages"]] == ["user", "assistant"]


def _times(folder):
    """How often each example is in the training rows, by its source."""
    sources = {row["id"]: row["source"] for row in written_rows(folder / "examples")}
    tokens = TokenFolder(folder / "train")
    return Counter(sources[tokens[index].id] for index in range(len(tokens)))


def test_weights_say_how_often_the_examples_of_a_source_are_trained_on(prepare, tmp_path, rows_file, monkeypatch):
    """Whole parts repeat, the rest is drawn by the seed: the same at every run, another one by another seed."""
    monkeypatch.chdir(tmp_path)
    rows_file(tmp_path / "more.jsonl", [{"prompt": f"ask {n}", "completion": f"no {n}"} for n in range(200)])
    sources = 'data.sources=[{ path = "rows.jsonl", weight = 2 }, { path = "more.jsonl", weight = 1.25 }]'
    outputs, folder = prepare(ROWS, sources)
    times = _times(folder)
    assert {times[f"rows.jsonl:{n + 1}"] for n in range(60)} == {2}
    more = Counter(times[f"more.jsonl:{n + 1}"] for n in range(200))
    assert set(more) == {1, 2}
    assert 30 <= more[2] <= 70
    assert outputs["rows"] == sum(times.values())
    _, folder = prepare(ROWS, sources, "seed=5")
    assert {key for key, n in _times(folder).items() if n == 2} != {key for key, n in times.items() if n == 2}


def test_a_weight_below_one_leaves_examples_out_and_counts_them(prepare):
    """Nothing goes silently."""
    outputs, folder = prepare(ROWS, "data.sources.0.weight=0.5")
    assert outputs["rows"] + outputs["undrawn"] == 60
    assert 15 <= outputs["rows"] <= 45
    assert set(_times(folder).values()) == {1}


def test_packs_are_made_on_request_or_if_all_is_plain_text(prepare):
    """Every row is in one pack, and none is longer than max_length; a report says how full they are."""
    plain = [{"text": f"it is {n} " * (1 + n % 9)} for n in range(60)]
    for rows, packing, packed in (
        (ROWS, "pack", True), (ROWS, "auto", False), (plain, "auto", True), (plain, "bucket", False),
    ):  # fmt: skip
        outputs, folder = prepare(rows, f"data.tokens.packing='{packing}'", "data.tokens.max_length=64")
        tokens = TokenFolder(folder / "train")
        assert (tokens.packs is not None) == packed
        assert (outputs["packs"] is not None) == packed
        if packed:
            assert sorted(row for pack in tokens.packs for row in pack.tolist()) == list(range(len(tokens)))
            assert tokens.packs.sums(tokens.lengths()).max() <= 64
            assert outputs["packs"]["packs"] == len(tokens.packs)
            assert outputs["packs"]["filled"] == pytest.approx(outputs["tokens"] / 64 / len(tokens.packs))


def test_texts_that_are_too_short_or_repeat_themselves_go_and_are_counted(prepare):
    """Each by its own check, with the reason in removed.jsonl."""
    bad = [{"prompt": "say it", "completion": "so"}, {"prompt": "say it", "completion": "I am sorry.\n" * 60}]
    overrides = ("data.quality.min_characters=4", "data.quality.sanity=true")
    outputs, folder = prepare([*ROWS, *bad], *overrides)
    assert outputs["removed"] == {"duplicate": 0, "length": 1, "insane": 1}
    removed = [json.loads(line) for line in (folder / "removed.jsonl").read_text().splitlines()]
    assert [(line["check"], line["source"]) for line in removed] == [
        ("length", "rows.jsonl:61"),
        ("insane", "rows.jsonl:62"),
    ]
    assert prepare([*ROWS, *bad])[0]["removed"] == {"duplicate": 0}


def test_the_proof_of_the_labels_is_reported_with_three_rows(prepare, home):
    """Shares, counts and rows, whether the data were prepared now or are taken from an earlier run."""
    from modelwright.core.runs.events import read_events

    outputs, folder = prepare(ROWS)
    (home / "runs/prep/done/prepare.json").unlink()
    prepare(ROWS)
    first, second = [event.data for event in read_events(home / "runs/prep/events") if event.kind == "labels"]
    assert first == second
    assert [one["source"] for one in first["examples"]] == ["rows.jsonl:1", "rows.jsonl:2", "rows.jsonl:3"]
    assert first["trained_by_role"] == outputs["trained_by_role"]
    assert (folder / "labels.html").exists()


@pytest.mark.parametrize(
    ("tail", "overrides"),
    [
        ("assistant\\n<think>\\n' }}{% endif %}{# </think> #}", ()),
        ("assistant\\n<|reason|>' }}{% endif %}", ()),
        ("assistant\\n' }}{% endif %}", ("data.tokens.end='<|stop|>'",)),
    ],
    ids=["thinking", "no counterpart", "end"],
)
def test_a_template_that_is_not_served_as_it_is_trained_says_what_settles_it(
    wording, prepare, tmp_path, tail, overrides
):
    """One line with the option; nothing is trained."""
    (tmp_path / "t.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>" + tail
    )
    with pytest.raises(ModelwrightError) as caught:
        prepare(ROWS, *overrides, model='chat_template = "t.jinja"')
    wording(caught.value)


def _talk(*turns, thinking=None, system=None):
    messages = [{"role": "system", "content": system}] if system else []
    for number, text in enumerate(turns):
        thought = {"thinking": thinking} if thinking and number % 2 else {}
        messages.append({"role": ("user", "assistant")[number % 2], "content": text, **thought})
    return {"messages": messages}


TEMPLATES = Path(__file__).parents[2] / "chat" / "templates"
TALKS = {
    "opening/qwq": {"thinking": "so"},
    "gptoss": {"thinking": "so"},
    "qwen3": {"thinking": "so"},
}


@pytest.mark.parametrize("name", TALKS)
def test_conversations_that_a_template_shows_otherwise_than_it_serves_are_split(wording, prepare, tmp_path, name):
    """By default, said and counted; with turns = "whole" the run stops, and its one line has the option."""
    rows = [_talk(f"say {n}", f"it is {n}", "again", f"{n} it is", **TALKS[name]) for n in range(20)]
    model = f'chat_template = "{TEMPLATES / name}.jinja"'
    with pytest.raises(ModelwrightError) as caught:
        prepare(rows, 'data.tokens.turns="whole"', model=model)
    assert 'set turns = "all"' in str(caught.value)
    wording(caught.value)
    outputs, _ = prepare(rows, model=model)
    assert (outputs["rows"], outputs["split"], outputs["anomalies"]) == (40, 20, {})
    (notice,) = outputs["notices"]
    wording(notice)


@pytest.mark.parametrize("shown", [{"thinking": "so"}, {"system": "be brief"}], ids=["thinking", "system"])
def test_what_splitting_does_not_settle_says_what_does(wording, prepare, tmp_path, shown):
    """Mistral shows no thinking, and the system message in the last question alone."""
    rows = [_talk(f"say {n}", f"it is {n}", "again", f"{n} it is", **shown) for n in range(20)]
    with pytest.raises(ModelwrightError) as caught:
        prepare(rows, model=f'chat_template = "{TEMPLATES}/mistral.jinja"')
    wording(caught.value)
