"""Data sets that the package `datasets` reads: on a hub that a test serves, in its caches, in folders, saved ones."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from stand_in_hub import FIRST, SECOND, Hub, serving
from tiny_run import tiny_run

from modelwright import ModelwrightError, UsageError
from modelwright.core import runner
from modelwright.core.config import ConfigError, read_run
from modelwright.core.config.data import SourceConfig
from modelwright.core.config.schema import SuiteConfig
from modelwright.core.plugins import discover
from modelwright.core.stages.evaluate.from_flags import Flags, config_from_flags
from modelwright.core.stages.evaluate.suites import read_suite, suite_digests
from modelwright.core.stages.prepare.sources import check_source, read_source, source_digests, source_lineage

README = """---
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train*
  - split: test
    path: main/test*
- config_name: hard
  data_files:
  - split: train
    path: hard/train*
---
"""


def jsonl(rows: int, plus: int) -> bytes:
    lines = ({"question": f"How much is {n} + {plus}?", "answer": f"#### {n + plus}"} for n in range(rows))
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


FILES = {
    "README.md": README.encode(),
    "main/train-0.jsonl": jsonl(40, 1),
    "main/test-0.jsonl": jsonl(8, 2),
    "hard/train-0.jsonl": jsonl(5, 3),
}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch) -> Path:
    """Caches of the test's own for both packages, which read the environment when they are imported."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "arrow"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def folder(tmp_path) -> Path:
    return write(tmp_path / "sums", FILES)


def source(dataset, **keys) -> SourceConfig:
    return SourceConfig(dataset=str(dataset), **keys)


def numbers(dataset, **keys) -> list[int]:
    """The number that each row asks about."""
    return [int(row.value["question"].split()[3]) for row in read_source(source(dataset, **keys), 1)]


SLICES = [
    ("train[:10%]", [*range(4)]),
    ("test[2:5]", [2, 3, 4]),
    ("test[-2:]+train[:1]", [6, 7, 0]),
    ("test", [*range(8)]),
]


@pytest.mark.parametrize(("split", "found"), SLICES)
def test_a_split_is_named_as_the_package_does(folder, split, found):
    """Percents, numbers, sums; the same of a data set that was saved."""
    assert numbers(folder, config="main", split=split) == found
    datasets.load_dataset(str(folder), "main").save_to_disk(folder.parent / "saved")
    assert numbers(folder.parent / "saved", split=split) == found


def test_rows_are_named_after_the_data_set_wherever_it_lies(folder):
    """So that a moved folder finds its prepared shards; they are numbered within the slice."""
    [row] = read_source(source(folder, config="hard", split="train[3:4]"), 1)
    assert (row.file, row.line) == ("sums/hard/train[3:4]", 1)


def test_the_only_split_is_the_default_and_limit_and_fraction_count(folder):
    """As for files."""
    assert numbers(folder, config="hard") == [*range(5)]
    assert numbers(folder, config="hard", limit=2) == [0, 1]
    half = numbers(folder, config="main", split="train", fraction=0.5)
    assert 10 < len(half) < 30
    assert half == numbers(folder, config="main", split="train", fraction=0.5)


def test_one_split_that_was_saved(folder):
    """It is what `save_to_disk` of a Dataset writes; its split keeps its name."""
    saved = folder.parent / "saved"
    datasets.load_dataset(str(folder), "main", split="test").save_to_disk(saved)
    assert numbers(saved) == numbers(saved, split="test") == [*range(8)]


def test_the_digests_are_those_of_the_content(folder):
    """A moved folder has the same; changed rows, rows in another split, and another slice have others."""
    main = {"config": "main", "split": "train"}
    digests = source_digests(source(folder, **main), 1)
    (folder.parent / "elsewhere").mkdir()
    moved = folder.rename(folder.parent / "elsewhere" / "sums")
    assert source_digests(source(moved, **main), 1) == digests
    assert source_digests(source(moved, config="main", split="train[:9]"), 1) != digests
    assert str(moved / "main/train-0.jsonl") in source_lineage(source(moved, **main), 1)
    (moved / "main/test-0.jsonl").rename(moved / "main/train-1.jsonl")
    write(moved, {"main/test-0.jsonl": jsonl(1, 1)})
    assert source_digests(source(moved, **main), 1) != digests


def test_streamed_rows_are_the_same(folder):
    """So are their digests: to stream or not prepares nothing again."""
    plain, streamed = (source(folder, config="main", split="test", streaming=each) for each in (False, True))
    assert list(read_source(streamed, 1)) == list(read_source(plain, 1))
    assert source_digests(streamed, 1) == source_digests(plain, 1)


def test_values_are_those_of_the_same_file_as_a_path(tmp_path):
    """Typed columns become JSON as those of a Parquet file do; what JSON cannot hold is a rejected row."""
    rows = {"text": ["a", "b"], "calls": [[{"name": "x", "of": {"a": 1}}], []], "blob": [b"\xff", b"ok"]}
    (tmp_path / "typed").mkdir()
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "typed" / "train.parquet")
    read = list(read_source(source(tmp_path / "typed"), 1))
    files = list(read_source(SourceConfig(path=str(tmp_path / "typed" / "train.parquet")), 1))
    assert [(row.line, row.value, row.reason) for row in read] == [(row.line, row.value, row.reason) for row in files]
    assert "not UTF-8" in read[0].reason


def test_a_test_set(folder):
    """`[[evaluate]]` takes the same keys."""
    suite = SuiteConfig(
        name="sums", dataset=str(folder), config="main", split="test", format="math", metrics=("exact_match",), limit=2
    )
    assert [example.answer for example in read_suite(suite, discover(), seed=1)] == ["2", "3"]


def suite_of(**flags):
    """The suite that flags of `modelwright evaluate` mean, and what is said."""
    config, said = config_from_flags(Flags(models=("a",), **flags), discover())
    return config.evaluate[0], said


def test_a_test_set_by_flags(folder, caches):
    """`evaluate --dataset` has the same keys, and the hub's is pinned as in a run file; the suite has its name."""
    suite, said = suite_of(dataset=str(folder), config="main", split="test[:2]", format_name="math")
    assert (suite.name, suite.format, len(said)) == ("sums", "math", 2)
    assert [example.answer for example in read_suite(suite, discover(), seed=1)] == ["2", "3"]
    cached(caches, FIRST, FILES, "main", "v1")
    suite, _ = suite_of(dataset="org/sums", config="hard", revision="v1", format_name="math")
    assert (suite.name, suite.dataset, suite.revision) == ("sums", "org/sums", "v1")
    hard = {"config": "hard", "split": None}
    assert suite_digests(suite, 1) == source_digests(source("org/sums", **hard, revision=FIRST), 1)


@pytest.mark.parametrize(
    "flags",
    [
        {"config": "main", "split": "valid"},
        {"config": "main"},
        {"config": "easy"},
        {"config": "hard", "revision": "v1"},
        {"dataset": ""},
        {"dataset": "org/none"},
        {"data": "rows.jsonl"},
        {"data": "rows.jsonl", "dataset": None, "split": "test"},
        {"dataset": None},
    ],
    ids=lambda flags: " ".join(f"--{key} {value}" for key, value in flags.items()),
)
def test_flags_that_name_no_test_set(folder, flags, wording):
    """The same line as for a run file, by the flag."""
    with pytest.raises(ModelwrightError) as error:
        suite_of(**{"dataset": str(folder), **flags})
    assert len(error.value.lines) == 1
    wording(error.value)


@pytest.mark.parametrize(
    "keys",
    [
        {"config": "main", "split": "valid"},
        {"config": "main", "split": "train[:x]"},
        {"config": "main"},
        {"config": "easy"},
        {},
        {"config": "main", "split": "train[:5]", "streaming": True},
    ],
    ids=lambda keys: " ".join(f"{key}={value}" for key, value in keys.items()) or "nothing",
)
def test_what_a_data_set_lacks(folder, keys, wording):
    """One line that lists what there is, before any row is read."""
    with pytest.raises(UsageError) as error:
        check_source(source(folder, **keys))
    wording(error.value)


def test_a_folder_that_cannot_be_read(folder, wording):
    """Not there, a file, with code of its own, without data, damaged; or keys that a saved one does not have."""
    coded, empty, broken = (folder.parent / name for name in ("coded", "empty", "broken"))
    write(coded, {"coded.py": b"raise SystemExit", "a.jsonl": jsonl(1, 1)})
    write(empty, {"notes": b"nothing"})
    write(broken, {"train.jsonl": b'{"a": 1}\n{"a"\n'})
    saved = folder.parent / "saved"
    datasets.load_dataset(str(folder), "hard", split="train").save_to_disk(saved)
    cases = [source(folder / "no"), source(folder / "README.md"), source(coded), source(empty), source(broken)]
    for case in [*cases, source(saved, config="main")]:
        with pytest.raises(ModelwrightError) as error:
            list(read_source(case, 1))
        wording(error.value)


@pytest.mark.parametrize(
    "keys",
    [
        "limit = 1",
        'path = "a.jsonl"\ndataset = "a/b"',
        'path = "a.jsonl"\nconfig = "main"',
        'path = "a.jsonl"\nstreaming = true',
        'dataset = "./here"\nrevision = "main"',
    ],
)
def test_keys_that_do_not_go_together(tmp_path, keys, wording):
    """The configuration says so, with the line."""
    file = tmp_path / "run.toml"
    file.write_text(tiny_run("data.sources = []").replace("sources = []", "") + f"[[data.sources]]\n{keys}\n")
    with pytest.raises(ConfigError) as error:
        read_run(file)
    wording(error.value)


def test_training_data_are_kept_clear_of_a_data_set(folder, rows_file, monkeypatch):
    """`decontaminate_against` takes tables with these keys beside paths; another split prepares again."""
    monkeypatch.chdir(folder.parent)
    (folder.parent / "sums.jsonl").write_bytes(jsonl(8, 2))
    others = [{"question": f"Name {n}?", "answer": "#### 1"} for n in range(9)]
    rows_file(folder.parent / "rows.jsonl", [*map(json.loads, jsonl(8, 2).splitlines()), *others])
    (folder.parent / "run.toml").write_text(tiny_run('[data]\nformat = "math"\n[[data.sources]]\npath = "rows.jsonl"'))

    def removed(table):
        read = read_run(folder.parent / "run.toml", overrides=[f"data.quality.decontaminate_against=[{table}]"])
        opened = runner.open_run(read.configs[0], read.plugins)
        runner.check([opened], ["prepare"])
        done = runner.execute(opened, only="prepare")
        assert done.performed
        return done.outputs["prepare"]["removed"]["contaminated"]

    assert removed('{ dataset = "./sums", config = "main", split = "test[:3]" }') == 3
    assert removed('"sums.jsonl", { dataset = "./sums", config = "hard" }') == 8


@pytest.mark.parametrize(
    "item",
    ['{ dataset = "./sums", config = "main" }', '{ config = "main" }', '{ dataset = "./sums", limit = 1 }', '""', "1"],
)
def test_a_wrong_data_set_to_keep_clear_of(folder, item, monkeypatch, wording):
    """As for a source; `limit` is none of its keys, since all of a test set counts."""
    monkeypatch.chdir(folder.parent)
    (folder.parent / "run.toml").write_text(tiny_run('[data]\nformat = "math"'))

    def check():
        read = read_run(folder.parent / "run.toml", overrides=[f"data.quality.decontaminate_against=[{item}]"])
        runner.check([runner.open_run(config, read.plugins) for config in read.configs], ["prepare"])

    with pytest.raises(UsageError) as error:
        check()
    wording(error.value)


# The hub


def cached(caches: Path, commit: str, files: dict[str, bytes], *branches: str) -> None:
    """Lay files of a commit of org/sums into the hub's cache, as a download does."""
    repository = caches / "datasets--org--sums"
    write(repository / "snapshots" / commit, files)
    write(repository / "refs", {branch: commit.encode() for branch in branches})


def test_a_download_is_read_without_a_network_and_pinned_by_its_commit(caches):
    """`revision` is a branch, a tag or the commit; the same commit has the same digests."""
    cached(caches, FIRST, FILES, "main", "v1")
    cached(caches, SECOND, {**FILES, "hard/train-0.jsonl": jsonl(2, 1)}, "dev")
    hard = {"dataset": "org/sums", "config": "hard", "split": "train"}
    assert numbers(**hard, revision=FIRST) == [*range(5)]
    assert numbers(**hard, revision=SECOND) == [0, 1]
    digests = {name: source_digests(source(**hard, revision=name), 1) for name in (FIRST, "v1", "dev", SECOND)}
    assert digests[FIRST] == digests["v1"] != digests["dev"] == digests[SECOND]
    assert [*source_lineage(source(**hard, revision="v1"), 1)] == [f"org/sums@{FIRST}/hard/train"]


@pytest.mark.parametrize("name", ["org/none", "nothing", "org/sums"])
def test_what_is_not_cached_and_no_network(caches, name, wording):
    """What to do; `org/sums` has another commit in the cache."""
    cached(caches, FIRST, FILES, "main")
    with pytest.raises(ModelwrightError) as error:
        check_source(source(name, revision=SECOND))
    wording(error.value)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub at work for other processes."""
    repositories = {"org/sums": dict(FILES), "org/coded": {"coded.py": b"raise SystemExit", "a.jsonl": jsonl(1, 1)}}
    with serving(Hub(repositories), tmp_path / "hf", monkeypatch) as served:
        yield served


@pytest.fixture
def prepare(modelwright, tmp_path, home):
    """Prepares a source in another process; gives the outputs, or the exit code and the line of the error."""

    def prepare(keys):
        (tmp_path / "run.toml").write_text(tiny_run(f"[[data.sources]]\n{keys}"))
        done = modelwright("prepare", "run.toml")
        if done.returncode:
            return done.returncode, done.stderr.splitlines()[-1]
        return json.loads((home / "runs/tiny/done/prepare.json").read_text())["outputs"]

    return prepare


def test_a_data_set_of_the_hub_is_prepared_and_pinned(hub, prepare, monkeypatch, home):
    """Only its config is downloaded; later without a network, other splits too; a branch that moved is read again."""
    keys = 'dataset = "org/sums"\nconfig = "main"\nsplit = "train[:50%]"'
    first = prepare(keys)
    assert (first["read"], [*first["sources"]]) == (20, [f"org/sums@{FIRST}/main/train[:50%]"])
    assert not any("hard" in request for request in hub.requested if "resolve" in request)
    hub.requested.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    other = prepare(keys.replace("train[:50%]", "test"))
    assert (other["read"], hub.requested) == (8, [])

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    hub.branches["main"] = SECOND
    shards = sorted((home / "cache/examples").iterdir())
    moved = prepare(keys)
    assert [*moved["sources"]] == [f"org/sums@{SECOND}/main/train[:50%]"]
    assert moved["digest"] == first["digest"]
    assert sorted((home / "cache/examples").iterdir()) == shards


@pytest.mark.parametrize(
    "keys",
    ['dataset = "org/sums"\nconfig = "easy"', 'dataset = "org/sums"\nrevision = "gone"', 'dataset = "org/coded"'],
)
@pytest.mark.usefixtures("hub")
def test_what_the_hub_does_not_have(prepare, keys, home, wording):
    """One line, which lists the configs there are, and nothing is written."""
    code, line = prepare(keys)
    assert (code, home.exists()) == (2, False)
    wording(line)
