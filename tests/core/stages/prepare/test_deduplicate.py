"""What stays and what goes of shards of examples: the first of each content, and what no check objected to."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from modelwright import Example, Message
from modelwright.core.api.files import json_line
from modelwright.core.stages.prepare.deduplicate import Deduplicator, NearDuplicates, Seen
from modelwright.core.stages.prepare.reading import EXAMPLES

NATALIA = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
    "How many clips did Natalia sell altogether in April and May?"
)

WORD = st.from_regex(r"[a-z]{3,9}", fullmatch=True)
SENTENCE = st.lists(WORD, min_size=8, max_size=30)


def example(question, line=1):
    messages = [Message(role="user", content=question), Message(role="assistant", content="42")]
    return Example(messages=messages, source=f"train.jsonl:{line}")


def sift(deduplicator, folder, examples, verdicts=None):
    """Sift a shard as it comes from the cache; the texts that stay."""
    folder.mkdir()
    (folder / EXAMPLES).write_text("".join(json_line(each.to_row()) for each in examples))
    facts = {
        "ids": [each.id for each in examples],
        "lines": [int(each.source.rpartition(":")[2]) for each in examples],
        "verdicts": verdicts or {},
    }
    stay = deduplicator.filter("train.jsonl", facts, folder / EXAMPLES, folder / "stay.jsonl")
    if not (folder / "stay.jsonl").exists():
        assert not stay
        return []
    rows = [json.loads(line) for line in (folder / "stay.jsonl").read_text().splitlines()]
    assert len(rows) == stay
    return [Example.from_row(row).messages[0].content for row in rows]


def test_all_but_the_first_of_one_content_go_and_the_first_is_named(wording, tmp_path):
    """In any shard."""
    deduplicator = Deduplicator("exact", tmp_path / "removed.jsonl")
    assert sift(deduplicator, tmp_path / "0", [example("a", 1), example("b", 2), example("a", 5)]) == ["a", "b"]
    assert sift(deduplicator, tmp_path / "1", [example("b", 7)]) == []
    assert sift(deduplicator, tmp_path / "2", [example("c", 8), example("a", 9)]) == ["c"]
    removed = [json.loads(line) for line in (tmp_path / "removed.jsonl").read_text().splitlines()]
    wording(removed[0].pop("reason"))
    assert removed[0] == {
        "check": "duplicate", "id": example("a").id, "source": "train.jsonl:5", "other": "train.jsonl:1",
    }  # fmt: skip
    assert [line["other"] for line in removed] == ["train.jsonl:1", "train.jsonl:2", "train.jsonl:1"]
    assert deduplicator.counts == {"duplicate": 3}


def test_the_first_is_named_by_its_own_line_where_a_row_gives_several_examples(tmp_path):
    """Lines 1, 1 and 3 are not neighbours, though they span as many as there are."""
    deduplicator = Deduplicator("exact", tmp_path / "removed.jsonl")
    sift(deduplicator, tmp_path / "0", [example("a", 1), example("b", 1), example("c", 3)])
    sift(deduplicator, tmp_path / "1", [example("b", 9)])
    [removed] = [json.loads(line) for line in (tmp_path / "removed.jsonl").read_text().splitlines()]
    assert removed["other"] == "train.jsonl:1"


def test_duplicates_stay_unless_removal_is_configured(tmp_path):
    """And no file is written of what did not happen."""
    deduplicator = Deduplicator(deduplicate=False, removed=tmp_path / "removed.jsonl")
    assert sift(deduplicator, tmp_path / "0", [example("a"), example("a")]) == ["a", "a"]
    assert not (tmp_path / "removed.jsonl").exists()


def test_an_example_goes_for_one_reason_and_takes_no_near_duplicate_with_it(tmp_path):
    """A solution that is wrong goes; the one that is almost the same, and right, stays."""
    deduplicator = Deduplicator("near", tmp_path / "removed.jsonl")
    near = NATALIA.replace(". ", ".\n\n")
    wrong = {"0": ["unverified", "math_accuracy: 41 is not 42", {"answer": "42"}]}
    assert sift(deduplicator, tmp_path / "0", [example(NATALIA), example(near, 2)], wrong) == [near]
    assert sift(deduplicator, tmp_path / "1", [example(NATALIA.replace("then ", ""), 3), example("b", 4)]) == ["b"]
    removed = [json.loads(line) for line in (tmp_path / "removed.jsonl").read_text().splitlines()]
    assert [(line["check"], line["source"]) for line in removed] == [
        ("unverified", "train.jsonl:1"), ("near-duplicate", "train.jsonl:3"),
    ]  # fmt: skip
    assert removed[0]["answer"] == "42"
    assert removed[1]["other"] == "train.jsonl:2"
    assert deduplicator.counts == {"unverified": 1, "near-duplicate": 1}


@given(st.lists(st.lists(st.integers(0, 40), max_size=20), max_size=12))
def test_the_first_place_of_a_content_is_found_again(shards):
    """As in a plain dictionary."""
    seen, expected, place = Seen(), dict[int, int](), 0
    for shard in shards:
        places = range(place, place + len(shard))
        place += len(shard)
        for value, at in zip(shard, places, strict=True):
            expected.setdefault(value, at)
        found = seen.first([f"{value:016x}" for value in shard], places).tolist()
        assert found == [expected[value] for value in shard]


# Near duplicates


def from_source(question, source="a:1"):
    return Example(messages=example(question).messages, source=source)


def test_almost_the_same_goes_and_another_number_stays(wording):
    """A rewording of layout is the same; another number is another problem."""
    check = NearDuplicates()
    assert check.check(from_source(NATALIA)) is None
    found = check.check(from_source(NATALIA.replace(". ", ".\n\n").replace("then ", ""), source="a:2"))
    assert found.facts["other"] == "a:1"
    wording(found.reason)
    assert found.facts["similarity"] >= 0.8
    short = "Tom has 5 apples and gets 3 more. How many apples does Tom have now?"
    assert check.check(from_source(short)) is None
    assert check.check(from_source(short.replace("5", "6").replace("3", "8"))) is None


@given(st.lists(SENTENCE, min_size=1, max_size=4))
def test_what_was_kept_is_found_again_and_it_is_the_same_every_time(sentences):
    """No seed of the process is in it."""
    texts = [" ".join(each) for each in sentences]
    runs = []
    for _ in range(2):
        check = NearDuplicates()
        runs.append([check.check(from_source(text)) is None for text in texts])
        assert all(check.check(from_source(text)) for text in texts)
    assert runs[0] == runs[1]


def test_of_several_that_are_alike_the_first_is_named():
    """In every process: the bytes of removed.jsonl do not hang on the order in which an index keeps its keys."""
    middle = [f"word{number}" for number in range(100)]
    first = [*middle[:92], *(f"last{number}" for number in range(8))]
    ninth = [*(f"early{number}" for number in range(8)), *middle[8:]]
    check = NearDuplicates()
    kept = [" ".join(first), *(" ".join(f"x{line}y{n}" for n in range(30)) for line in range(7)), " ".join(ninth)]
    assert [check.check(from_source(text, source=f"a:{line}")) for line, text in enumerate(kept, 1)] == [None] * 9
    assert check.check(from_source(" ".join(middle))).facts["other"] == "a:1"
    again = NearDuplicates()
    reordered = [*kept[1:], kept[0]]
    assert [again.check(from_source(text, source=f"b:{line}")) for line, text in enumerate(reordered, 1)] == [None] * 9
    assert again.check(from_source(" ".join(middle))).facts["other"] == "b:8"
