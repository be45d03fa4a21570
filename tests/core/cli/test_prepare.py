"""`modelwright prepare` without a run.toml: raw rows to files of examples, whole or not at all."""

from __future__ import annotations

import gzip
import json
import random
import signal
import subprocess
import sys
import time

import pytest

from modelwright.core.cli import main
from modelwright.core.stages.prepare.readers import READABLE

MATH = [{"question": f"What is {n} + 1?", "answer": f"{n} + 1 = {n + 1}.\n#### {n + 1}"} for n in range(40)]
CHAT = [
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": f"Good {n}"}]} for n in range(9)
]


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def raw(tmp_path, rows_file):
    return rows_file(tmp_path / "raw.jsonl", MATH)


def leftovers(folder):
    return [file.name for file in folder.rglob(".tmp-*")]


def test_one_format_writes_one_file_of_examples(modelwright, raw, tmp_path):
    """Folders are made; the counts are printed."""
    done = modelwright("prepare", "--format", "math", "--input", raw, "--output", "made/here/math.jsonl")
    assert done.returncode == 0, done.stderr
    examples = read(tmp_path / "made/here/math.jsonl")
    assert len(examples) == 40
    assert examples[0]["answer"] == "1"
    assert examples[0]["source"] == "raw.jsonl:1"
    assert done.stdout.strip().splitlines()[-1].split() == ["math", "40", "40", "0", "0", "made/here/math.jsonl"]
    assert [file.name for file in (tmp_path / "made/here").iterdir()] == ["math.jsonl"]


def test_what_prepare_writes_is_a_source_of_the_format_general(modelwright, raw, tmp_path):
    """Thinking and reference come back as they were, so the ids do too."""
    first = modelwright("prepare", "--format", "reasoning", "--input", raw, "--output", "one.jsonl")
    again = modelwright("prepare", "--format", "general", "--input", "one.jsonl", "--output", "two.jsonl")
    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    one, two = read(tmp_path / "one.jsonl"), read(tmp_path / "two.jsonl")
    assert [{**row, "source": ""} for row in one] == [{**row, "source": ""} for row in two]
    assert one[3]["messages"][1] == {"role": "assistant", "content": "4", "thinking": "3 + 1 = 4."}


def test_instruction_limit_fraction_and_seed_shape_what_is_written(modelwright, raw, tmp_path):
    """The seed draws the fraction, the same rows every time; then the limit cuts."""
    base = ("prepare", "--format", "math", "--input", raw, "--instruction", "Solve: {question}")
    made = {}
    for name, more in {
        "half": ("--fraction", 0.5),
        "again": ("--fraction", 0.5),
        "other": ("--fraction", 0.5, "--seed", 5),
        "few": ("--fraction", 0.5, "--limit", 3),
    }.items():
        done = modelwright(*base, *more, "--output", f"{name}.jsonl")
        assert done.returncode == 0, done.stderr
        made[name] = read(tmp_path / f"{name}.jsonl")
    assert made["half"] == made["again"] != made["other"]
    assert 8 < len(made["half"]) < 32
    assert made["few"] == made["half"][:3]
    assert made["few"][0]["messages"][0]["content"].startswith("Solve: What is")


def test_options_are_checked_against_the_formats(modelwright, raw, tmp_path):
    """TOML values, tables by dotted keys."""
    done = modelwright(
        *("prepare", "--format", "reasoning", "--input", raw, "--output", "out.jsonl", "--option", 'thinking="mask"'),
        *("--option", 'columns.prompt="question"', "--option", 'columns.answer="answer"'),
    )
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "out.jsonl")[0]["messages"][1]["train_thinking"] is False


def test_several_inputs_of_any_kind_become_one_file_without_duplicates(modelwright, raw, tmp_path, rows_file):
    """A limit is each input's; what two inputs share is written once."""
    with gzip.open(tmp_path / "more.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in [*MATH[:5], {"question": "q", "answer": "so\n#### 7"}])
    inputs = ("--input", raw, "--input", "more.jsonl.gz", "--input", "builtin:arithmetic/test")
    done = modelwright("prepare", "--format", "math", *inputs, "--limit", 30, "--output", "out.jsonl", "--json")
    assert done.returncode == 0, done.stderr
    (printed,) = json.loads(done.stdout)
    counts = {"rows": 66, "examples": 61, "duplicates": 5, "rejected": 0}
    assert printed == {"format": "math", "output": "out.jsonl", **counts, "rejected_file": None, "reason": None}
    assert len(read(tmp_path / "out.jsonl")) == 61


def test_rejected_rows_are_kept_beside_the_output(wording, modelwright, tmp_path, rows_file):
    """With file, line and reason, also where they are too many; the old output stays then."""
    rows_file(tmp_path / "raw.jsonl", [*MATH, {"question": "How many?"}])
    order = ("prepare", "--format", "math", "--input", "raw.jsonl", "--output", "out.jsonl")
    (tmp_path / "out.jsonl").write_text("old\n")
    refused = modelwright(*order)
    assert refused.returncode == 1
    wording(refused.stderr.strip())
    assert (tmp_path / "out.jsonl").read_text() == "old\n"
    (kept,) = read(tmp_path / "out.rejected.jsonl")
    assert (kept["file"], kept["line"], kept["row"]) == ("raw.jsonl", 41, {"question": "How many?"})
    assert modelwright(*order, "--max-rejected", 0.05).returncode == 0
    assert len(read(tmp_path / "out.jsonl")) == 40
    assert (tmp_path / "out.rejected.jsonl").exists()
    rows_file(tmp_path / "raw.jsonl", MATH)
    assert modelwright(*order).returncode == 0
    assert not (tmp_path / "out.rejected.jsonl").exists()
    assert not leftovers(tmp_path)


def test_all_formats_write_a_file_each_where_they_can(modelwright, raw, tmp_path):
    """Math rows suit every format; chat rows only `general`, and the others say why."""
    done = modelwright("prepare", "--all-formats", "--input", raw, "--output", "every")
    assert done.returncode == 0, done.stderr
    assert sorted(file.name for file in (tmp_path / "every").iterdir()) == [
        "general.jsonl",
        "math.jsonl",
        "reasoning.jsonl",
    ]


def test_a_format_that_cannot_read_the_rows_writes_no_file(wording, modelwright, tmp_path, rows_file):
    """Its first reason is reported, and the others go on."""
    rows_file(tmp_path / "raw.jsonl", CHAT)
    done = modelwright("prepare", "--all-formats", "--input", "raw.jsonl", "--output", "every")
    assert done.returncode == 0, done.stderr
    assert [file.name for file in (tmp_path / "every").iterdir()] == ["general.jsonl"]
    for line in done.stdout.splitlines()[-2:]:
        wording(line)


def test_rows_that_no_format_can_read_are_an_error(wording, modelwright, tmp_path, rows_file):
    """Each says why; with --json on standard output alone."""
    rows_file(tmp_path / "raw.jsonl", [{"words": "plain"}])
    done = modelwright("prepare", "--all-formats", "--input", "raw.jsonl", "--output", "every", "--json")
    assert done.returncode == 1
    wording(done.stderr.strip())
    printed = json.loads(done.stdout)
    assert [(row["format"], row["output"]) for row in printed] == [
        ("general", None),
        ("math", None),
        ("reasoning", None),
    ]
    for row in printed:
        wording(row["reason"])


PLUGIN = """
from attrs import frozen
from modelwright import Example, FormatSpec, hookimpl

@frozen
class Options:
    key: str

class Broken:
    def __init__(self, options): pass
    def read(self, row):
        raise KeyError("oops")

class Plain:
    def __init__(self, options): pass
    def read(self, row):
        return [Example(text=row["question"])]

@hookimpl
def modelwright_formats():
    yield FormatSpec(name="broken", summary="", factory="more_formats:Broken")
    yield FormatSpec(name="asking", summary="", factory="more_formats:Plain", options=Options)
    yield FormatSpec(name="plain", summary="", factory="more_formats:Plain")
"""


def test_formats_of_plugins_are_among_all_formats(wording, modelwright, raw, tmp_path, install_plugin):
    """One that fails, or has an option that must be given, stops no other; plain text is read back by `general`."""
    install_plugin("more-formats", PLUGIN)
    done = modelwright("prepare", "--all-formats", "--input", raw, "--output", "every", "--json")
    assert done.returncode == 0, done.stderr
    reasons = {row["format"]: row["reason"] for row in json.loads(done.stdout)}
    wording(reasons["broken"])
    wording(reasons["asking"])
    assert [name for name, reason in reasons.items() if reason is None] == ["general", "math", "plain", "reasoning"]
    again = modelwright("prepare", "--format", "general", "--input", "every/plain.jsonl", "--output", "again.jsonl")
    assert again.returncode == 0, again.stderr
    assert read(tmp_path / "again.jsonl")[0]["text"] == "What is 0 + 1?"
    lacking = modelwright(
        "prepare", "--format", "plain", "--input", raw, "--output", "x.jsonl", "--instruction", "Solve it."
    )
    assert lacking.returncode == 2
    wording(lacking.stderr.strip())


MATH_OUT = ("--format", "math", "--input", "raw.jsonl", "--output", "out.jsonl")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--format", "math", "--input", "raw.jsonl"),
        ("--format", "math", "--output", "out.jsonl"),
        ("--all-formats", *MATH_OUT),
        ("run.toml", "--limit", 3, "--format", "math"),
        ("run.toml", "--seed", 17),
        (*MATH_OUT, "--set", "seed=3", "--fresh"),
        ("--format", "maths", *MATH_OUT[2:]),
        ("--format", "math", "--input", "none.jsonl", "--output", "o.jsonl"),
        ("--format", "math", "--input", "builtin:x/y", "--output", "o.jsonl"),
        (*MATH_OUT[:4], "--output", "raw.jsonl"),
        (*MATH_OUT[:4], "--output", "./x/../raw.jsonl"),
        (*MATH_OUT[:2], "--input", "raw*.jsonl", "--output", "raw.jsonl"),
        (*MATH_OUT[:2], "--input", "raw.rejected.jsonl", "--output", "raw.jsonl"),
        (*MATH_OUT[:4], "--output", "out.json"),
        (*MATH_OUT[:4], "--output", "folder.jsonl"),
        (*MATH_OUT[:4], "--output", "raw.jsonl/out.jsonl"),
        ("--all-formats", "--input", "raw.jsonl", "--output", "raw.jsonl"),
        (*MATH_OUT, "--option", "solution=answer"),
        (*MATH_OUT, "--option", "solution"),
        (*MATH_OUT, "--option", 'solution="a"'),
        (*MATH_OUT, "--option", 'solutions="full"'),
        (*MATH_OUT, "--option", 'system="a"', "--option", 'system="b"'),
        (*MATH_OUT, "--instruction", "a", "--option", 'instruction="b"'),
        (*MATH_OUT, "--instruction", ""),
        ("--all-formats", "--input", "raw.jsonl", "--output", "every", "--option", 'system="a"'),
        (*MATH_OUT, "--limit", 0),
        (*MATH_OUT, "--fraction", 0),
        (*MATH_OUT, "--fraction", "nan"),
        (*MATH_OUT, "--max-rejected", 2),
    ],
    ids=lambda arguments: " ".join(map(str, arguments)),
)
def test_wrong_usage_is_said_and_nothing_is_written(wording, raw, tmp_path, monkeypatch, capsys, arguments):
    """Exit code 2, and the folder as it was."""
    (tmp_path / "raw.rejected.jsonl").write_text(json.dumps(MATH[0]) + "\n")
    (tmp_path / "folder.jsonl").mkdir()
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["prepare", *map(str, arguments)])
    output, error = capsys.readouterr()
    assert (ended.value.code, output) == (2, "")
    wording(error.rstrip("\n"), readable=READABLE)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("content", ["", "{}\n", "not JSON\n", "[1]\n"])
def test_rows_that_cannot_be_used_leave_no_output(wording, modelwright, tmp_path, content):
    """Exit code 1, with the first reason."""
    (tmp_path / "raw.jsonl").write_text(content)
    done = modelwright("prepare", *MATH_OUT)
    assert done.returncode == 1, done.stdout
    wording(done.stderr.rstrip("\n"))
    assert not (tmp_path / "out.jsonl").exists()
    assert not leftovers(tmp_path)


def test_rows_that_may_all_be_lost_still_give_something_or_an_error(wording, modelwright, tmp_path, rows_file):
    """An empty file of examples is never written."""
    rows_file(tmp_path / "raw.jsonl", CHAT)
    done = modelwright("prepare", *MATH_OUT, "--max-rejected", 1)
    assert done.returncode == 1
    wording(done.stderr.strip())
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.long
def test_a_killed_preparation_leaves_the_old_file_or_the_new(tmp_path, rows_file):
    """SIGKILL at any moment: readers of the output see a whole one."""
    rows_file(tmp_path / "raw.jsonl", [*MATH, {"question": "How many?"}] * 300)
    order = [sys.executable, "-m", "modelwright.core", "prepare", *MATH_OUT, "--max-rejected", "0.5"]
    chance = random.Random(17)
    begin = time.monotonic()
    subprocess.run(order, cwd=tmp_path, check=True, capture_output=True)
    whole, took = (tmp_path / "out.jsonl").read_bytes(), time.monotonic() - begin
    for old in (b"old\n", whole):
        (tmp_path / "out.jsonl").write_bytes(old)
        for _ in range(4):
            with subprocess.Popen(order, cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
                time.sleep(took * chance.uniform(0.3, 1))
                process.send_signal(signal.SIGKILL)
            assert (tmp_path / "out.jsonl").read_bytes() in (old, whole)
            assert len(read(tmp_path / "out.rejected.jsonl")) == 300
    subprocess.run(order, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "out.jsonl").read_bytes() == whole


def test_a_run_prepares_its_tokens_as_before(modelwright, raw, tmp_path):
    """With a RUN.toml it is the run's stage."""
    (tmp_path / "run.toml").write_text(
        'name = "r"\nseed = 1\n[model.scratch]\nvocab_size = 300\n[data]\nformat = "reasoning"\n'
        '[[data.sources]]\npath = "raw.jsonl"\n[train]\nmax_steps = 1\n'
    )
    done = modelwright("prepare", "run.toml", "--json")
    assert done.returncode == 0, done.stderr
    (printed,) = json.loads(done.stdout)
    assert printed["prepare"]["examples"] == 40
    assert printed["prepare"]["trained_by_role"]["assistant"]["thinking"] > 0
