"""Jobs that prepare parts side by side, and one that merges them, come to the bytes of a single process."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

from modelwright.core.api.files import sha256_file
from modelwright.core.cli import main
from modelwright.core.runs.events import read_events

FILES, ROWS, PARTS = 8, 120, 4
RUN = """
name = "prep"
seed = 1
[model]
base = "base"
[data]
format = "general"
workers = 1
max_rejected = 0.1
[data.quality]
deduplicate = "near"
min_characters = 8
[data.holdout]
fraction = 0.2
[data.tokens]
packing = "pack"
max_length = 256
[[data.sources]]
path = "rows"
weight = 1.5
[train]
max_steps = 1
"""
SCRATCH = '[model.scratch]\ntokenizer = "bpe"\nvocab_size = 400'
WORDS = "one two three four five six seven eight nine ten eleven twelve apples pears plums nuts"


def row(file, number):
    """A conversation; every third one is, but for a word, in the file before, too."""
    file -= number % 3 == 0
    known = WORDS.split()
    words = [known[(file * 31 + number * 7 + step * step) % len(known)] for step in range(12 + number % 20)]
    return {"prompt": f"How much is {' '.join(words)}?", "completion": f"It is {' and '.join(words)}, {number % 50}."}


@pytest.fixture
def project(tmp_path, rows_file):
    """Eight files of rows: some say the same, some nothing, one is too short and one too long for the context."""
    (tmp_path / "rows").mkdir()
    for file in range(FILES):
        rows = [row(file, number) for number in range(ROWS)]
        rows[7] = {"prompt": "no answer"}
        rows[9] = {"prompt": "a", "completion": "b"}
        rows[11] = {"prompt": f"all of {file}", "completion": "so " * 400}
        rows_file(tmp_path / "rows" / f"{file}.jsonl", rows)
    (tmp_path / "run.toml").write_text(RUN.replace('[model]\nbase = "base"', SCRATCH))
    return tmp_path


@pytest.fixture
def with_base(project):
    """The same rows for a model that has its tokenizer already."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    one_process(project, home=project / "first")
    base = project / "base"
    shutil.copytree(project / "first/runs/prep/prepare/tokenizer", base)
    torch.manual_seed(1)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=400, **sizes)).save_pretrained(base)
    (project / "run.toml").write_text(RUN)
    return project


def command(*more):
    return [sys.executable, "-m", "modelwright.core", "prepare", "run.toml", *map(str, more)]


def begin(project, *more):
    return subprocess.Popen(command(*more), cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process, code=0):
    """What a process says on standard error."""
    _, error = process.communicate(timeout=240)
    assert process.returncode == code, error
    return error


def do(project, *more, code=0, home=None, stdout=None):
    """The command in this process; gives what it says on standard error."""
    error = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(error):
        patch.chdir(project)
        if home:
            patch.setenv("MODELWRIGHT_HOME", str(home))
        with contextlib.redirect_stdout(stdout or io.StringIO()), pytest.raises(SystemExit) as ended:
            main([*command(*more)[3:]])
    assert ended.value.code == code, error.getvalue()
    return error.getvalue()


def one_process(project, home):
    do(project, home=home)
    return contents(home)


def contents(home):
    """The digest of every file that the stage wrote, by its name."""
    folder = home / "runs/prep/prepare"
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def entries(home, kind):
    """The kept shards, each with the time at which it was written: one that was made again has another."""
    found = (home / "cache" / kind).glob("[0-9a-f]*/entry.json")
    return {path.parent.name: path.stat().st_mtime_ns for path in found}


def wait_for_entry(home, process):
    deadline = time.monotonic() + 60
    while not entries(home, "examples"):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)


def prepare_in_parts(project, home):
    """Four jobs, then the merge; gives what the jobs have kept."""
    for number in range(1, PARTS + 1):
        assert f"{number}/{PARTS} 2 of {FILES} shards, {2 * ROWS} rows" in do(project, "--shard", f"{number}/{PARTS}")
    assert not (home / "runs/prep/prepare").exists()
    assert not (home / "runs/prep/done").exists()
    kept = {kind: entries(home, kind) for kind in ("examples", "renderings", "tokens")}
    do(project, "--merge")
    return kept


def test_four_jobs_and_a_merge_give_the_bytes_of_one_process(project, home):
    """With near-duplicates across the parts, a holdout, and a tokenizer that is made from all of the data."""
    whole = one_process(project, home=project / "one")
    kept = prepare_in_parts(project, home)
    assert contents(home) == whole
    assert {"train/packs.arrow", "holdout/00000.arrow", "removed.jsonl", "rejected.jsonl", "dropped.jsonl"} <= set(
        whole
    )
    removed = [
        json.loads(line)["check"] for line in (home / "runs/prep/prepare/removed.jsonl").read_text().splitlines()
    ]
    assert {"duplicate", "near-duplicate", "length"} == set(removed)
    assert {kind: len(found) for kind, found in kept.items()} == {"examples": FILES, "renderings": 0, "tokens": 0}
    assert entries(home, "examples") == kept["examples"]


def test_with_a_base_the_jobs_render_too(with_base, home):
    """Its tokenizer is known: what is left to the merge is to find duplicates and to write."""
    whole = one_process(with_base, home=with_base / "one")
    kept = prepare_in_parts(with_base, home)
    assert contents(home) == whole
    assert {kind: len(found) for kind, found in kept.items()} == {"examples": FILES, "renderings": FILES, "tokens": 0}
    assert entries(home, "renderings") == kept["renderings"]


def test_no_job_waits_for_another(project, home):
    """One that hangs while it holds the cache keeps nobody from finishing."""
    still = begin(project, "--shard", "1/2")
    wait_for_entry(home, still)
    still.send_signal(signal.SIGSTOP)
    try:
        do(project, "--shard", "2/2")
    finally:
        still.send_signal(signal.SIGCONT)
    end(still)
    assert len(entries(home, "examples")) == FILES


@pytest.mark.long
def test_a_killed_job_is_named_and_goes_on_where_it_was(project, home):
    """The merge does not do its work: an allocation for merging is small."""
    whole = one_process(project, home=project / "one")
    killed = begin(project, "--shard", "2/2")
    wait_for_entry(home, killed)
    killed.kill()
    killed.communicate()
    kept = entries(home, "examples")
    assert 0 < len(kept) < FILES // 2
    do(project, "--shard", "1/2")
    refused = do(project, "--merge", code=1).splitlines()
    missing = FILES - len(entries(home, "examples"))
    assert f"{missing} of {FILES} shards" in refused[-1]
    assert "2/2" in refused[-1]
    assert [path.name for path in (home / "runs/prep").glob("*prepare*")] == []
    do(project, "--shard", "2/2")
    do(project, "--merge")
    assert contents(home) == whole
    assert kept.items() <= entries(home, "examples").items()
    assert not list((home / "cache").glob("*/.tmp-*"))


def test_a_merge_of_nothing_says_what_comes_first(wording, project, home):
    """And an ordinary preparation does all of it by itself."""
    refused = do(project, "--merge", code=1).splitlines()[-1]
    wording(refused)
    do(project)
    assert "removed.jsonl" in contents(home)
    do(project, "--merge")  # it is done


def test_rows_that_came_after_the_jobs_are_missing(wording, project, home, rows_file):
    """What was read is no longer all of the data."""
    for number in (1, 2):
        do(project, "--shard", f"{number}/2")
    rows_file(project / "rows/8.jsonl", [row(8, number) for number in range(ROWS)])
    refused = do(project, "--merge", code=1).splitlines()[-1]
    wording(refused)


def test_more_jobs_than_shards_have_nothing_to_do_and_say_so(wording, project, home):
    """An array of a fixed size suits small data, too."""
    output = io.StringIO()
    error = do(project, "--shard", f"{FILES + 1}/{FILES + 1}", "--json", stdout=output)
    wording(error.splitlines()[-1])
    (reported,) = json.loads(output.getvalue())
    assert reported == {"run": "prep", "shard": "9/9", "shards": 0, "of": FILES, "rows": 0, "examples": 0}
    assert entries(home, "examples") == {}


def test_a_job_that_is_stopped_stops_alone_and_goes_on(wording, project, home):
    """A cluster may take the machine away from one job of an array."""
    stopped = begin(project, "--shard", "1/1")
    wait_for_entry(home, stopped)
    stopped.terminate()
    wording(end(stopped, code=75).splitlines()[-1])
    assert not (home / "runs/prep/stop").exists()
    kept = entries(home, "examples")
    assert len(kept) < FILES
    do(project, "--shard", "1/1")
    assert kept.items() <= entries(home, "examples").items()


def test_every_event_of_a_job_says_which_part_it_does(project, home):
    """Several write at once."""
    jobs = [begin(project, "--shard", f"{number}/2") for number in (1, 2)]
    for job in jobs:
        end(job)
    events = read_events(home / "runs/prep/events", stage="prepare")
    kinds = {part: [event.kind for event in events if event.data["shard"] == part] for part in ("1/2", "2/2")}
    expected = ["begun", *["reading"] * (FILES // 2), "shard", "ended"]
    assert kinds == {"1/2": expected, "2/2": expected}
    reported = [event.data for event in events if event.kind == "shard"]
    assert sum(data["rows"] for data in reported) == FILES * ROWS
    assert len({event.writer for event in events}) == 2


def test_a_job_leaves_alone_what_others_are_writing(project, home):
    """Where each machine keeps its locks to itself, nobody would know whether they are at work: the merge tidies up."""
    (home / "cache/examples/.tmp-other").mkdir(parents=True)
    do(project, "--shard", "1/1")
    assert (home / "cache/examples/.tmp-other").is_dir()
    do(project, "--merge")
    assert not (home / "cache/examples/.tmp-other").exists()


def test_every_variant_is_prepared_in_parts(project, home):
    """As by every other command."""
    with (project / "run.toml").open("a") as file:
        file.write('[variants.brief]\ndata.options.system = "Be brief."\n[variants.plain]\n')
    for number in (1, 2):
        do(project, "--shard", f"{number}/2")
    assert len(entries(home, "examples")) == 2 * FILES
    do(project, "--merge")
    assert sorted(path.parents[1].name for path in (home / "runs").glob("*/done/prepare.json")) == [
        "prep-brief",
        "prep-plain",
    ]
