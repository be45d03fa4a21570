"""Shards that are done are kept: a killed preparation goes on, and what did not change is not done again."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modelwright.core.api.files import sha256_file
from modelwright.core.cli import main
from modelwright.core.stages.prepare.cache import Cache

FILES, ROWS = 8, 250
RUN = """
name = "prep"
seed = 1
[model.scratch]
tokenizer = "bpe"
vocab_size = 400
[data]
format = "general"
workers = 2
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


@pytest.fixture
def project(tmp_path, rows_file):
    """Eight files of rows, some of which say the same, some nothing."""
    (tmp_path / "rows").mkdir()
    for number in range(FILES):
        rows = [
            {"prompt": f"What is {number} and {n % 240}?", "completion": "so " * (n % 30) + f"it is {number + n % 240}"}
            for n in range(ROWS)
        ]
        rows[7] = {"prompt": "no answer"}
        rows_file(tmp_path / "rows" / f"{number}.jsonl", rows)
    (tmp_path / "run.toml").write_text(RUN)
    return tmp_path


def command(*more):
    return [sys.executable, "-m", "modelwright.core", "prepare", "run.toml", "--set", "data.max_rejected=0.1", *more]


def do(project, *more, code=0, home=None):
    """The command in this process; gives what it says on standard error."""
    error = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(error):
        patch.chdir(project)
        if home:
            patch.setenv("MODELWRIGHT_HOME", str(home))
        with contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as ended:
            main([*command(*more)[3:]])
    assert ended.value.code == code, error.getvalue()
    return error.getvalue()


def prepare(project, *more, home=None):
    """Prepares in this process, and alone unless `more` says otherwise; gives the digests of what it wrote."""
    alone = () if any("workers" in each for each in more) else ("--set", "data.workers=1")
    do(project, *more, *alone, home=home)
    return contents((home or Path(os.environ["MODELWRIGHT_HOME"])) / "runs/prep/prepare")


def contents(folder):
    """The digest of every file by its name."""
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def entries(home, kind):
    """The kept shards, each with the time at which it was written: one that was made again has another."""
    found = (home / "cache" / kind).glob("[0-9a-f]*/entry.json")
    return {path.parent.name: path.stat().st_mtime_ns for path in found}


def test_the_output_is_the_same_bytes_however_many_processes_work_on_it(project):
    """In the order of the data, with the same draws."""
    once = prepare(project, "--set", "data.workers=1", home=project / "one")
    assert "train/packs.arrow" in once
    assert "rejected.jsonl" in once
    assert "removed.jsonl" in once
    for workers in (2, 3):
        assert prepare(project, "--set", f"data.workers={workers}", home=project / str(workers)) == once


KILLED_AT = [("examples", 1), ("examples", 5), ("examples", FILES), ("tokens", 2), ("tokens", 7)]


@pytest.mark.long
@pytest.mark.parametrize(("kind", "count"), KILLED_AT)
def test_a_killed_preparation_goes_on_and_comes_to_the_same_bytes(project, home, kind, count):
    """What was done is not done again, and nothing half done is taken for done."""
    whole = prepare(project, home=project / "undisturbed")
    process = subprocess.Popen(command(), cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(entries(home, kind)) < count and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {each: entries(home, each) for each in ("examples", "tokens")}
    assert kept[kind]
    assert prepare(project) == whole
    assert all(kept[each].items() <= entries(home, each).items() for each in kept)
    assert not list((home / "runs/prep").glob(".tmp-*"))
    assert not list((home / "cache").glob("*/.tmp-*"))


def test_a_worker_that_is_killed_is_one_clear_line_and_the_same_command_goes_on(wording, project, home):
    """Memory may run out; nothing of what was done is lost."""
    process = subprocess.Popen(command(), cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while not entries(home, "examples"):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
    error = process.communicate()[1].splitlines()[-1]
    assert process.returncode == 1
    assert "signal 9" in error
    wording(error.strip().splitlines()[-1])
    kept = entries(home, "examples")
    assert kept
    assert prepare(project) == prepare(project, home=project / "undisturbed")
    assert kept.items() <= entries(home, "examples").items()


def test_one_changed_byte_changes_its_shard_alone(project, home):
    """The other files' examples and tokens are those of before."""
    prepare(project)
    before = {kind: entries(home, kind) for kind in ("examples", "tokens")}
    path = project / "rows/3.jsonl"
    path.write_bytes(path.read_bytes().replace(b"and 9?", b"and 8!", 1))
    # The tokenizer is trained on the data: with another byte it would be another tokenizer.
    prepare(project)
    assert len(entries(home, "examples").keys() - before["examples"].keys()) == 1
    assert before["examples"].items() <= entries(home, "examples").items()


@pytest.mark.parametrize(
    ("change", "examples", "tokens"),
    [
        ("data.tokens.max_length=128", 0, FILES),
        ("data.tokens.packing='bucket'", 0, 0),
        ("data.holdout.fraction=0.1", 0, FILES),
        ("data.quality.deduplicate=false", 0, FILES),
        ("model.chat_template='TEMPLATE'", 0, FILES),
        ("data.options.system='Be brief.'", FILES, FILES),
        ("data.workers=2", 0, 0),
    ],
)
def test_what_an_option_changes_is_done_again_and_nothing_else(project, home, change, examples, tokens):
    """By content, not by times or names."""
    (project / "own.jinja").write_text(
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    prepare(project)
    before = {kind: entries(home, kind) for kind in ("examples", "tokens")}
    prepare(project, "--set", change.replace("TEMPLATE", f"{project}/own.jinja"))
    new = {kind: len(entries(home, kind).keys() - before[kind].keys()) for kind in before}
    assert new == {"examples": examples, "tokens": tokens}


@pytest.mark.parametrize("change", ["metrics=['exact_match']", "name='renamed'", "format='math'"])
def test_another_metric_or_test_set_gives_other_verdicts(project, home, change):
    """Built-in metrics and formats come with one package: their names count."""
    table = {"name": "'sums'", "path": "'sums.jsonl'", "metrics": "['math_accuracy']", "format": "'general'"}
    (project / "sums.jsonl").write_text('{"question": "What is 1 and 1?", "answer": "#### 2"}\n')

    def chosen():
        suite = ", ".join(f"{key} = {value}" for key, value in table.items())
        return (
            "--set",
            f"evaluate=[{{ {suite} }}]",
            "--set",
            "data.quality.verify_answers=true",
            "--set",
            ("data.quality.decontaminate=true"),
        )

    prepare(project, *chosen())
    before = entries(home, "examples")
    key, _, value = change.partition("=")
    table[key] = value
    prepare(project, *chosen())
    assert len(entries(home, "examples").keys() - before.keys()) == FILES


def test_a_fresh_preparation_waits_for_nobody_and_disturbs_nobody(wording, project, home):
    """It replaces what others may be reading."""
    prepare(project)
    with (home / "cache/.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        error = do(project, "--fresh", code=1)
    wording(error.splitlines()[-1], home=home)


def test_the_store_is_locked_by_one_who_may_read_the_lock(tmp_path):
    """NFS gives a shared lock to none but those who opened the file for reading; there is no NFS here to show it."""
    with Cache(tmp_path / "cache").locked() as cache:
        assert fcntl.fcntl(cache.lock, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR


def test_the_same_file_twice_is_prepared_fresh_once(project, home):
    """Both have one entry, and the second must not take it away from the first."""
    (project / "copy").mkdir()
    (project / "copy/0.jsonl").write_bytes((project / "rows/0.jsonl").read_bytes())
    twice = ("--set", 'data.sources=[{ path = "rows/0.jsonl" }, { path = "copy/0.jsonl" }]')
    once = prepare(project, *twice)
    assert prepare(project, *twice, "--fresh") == once
    assert len(entries(home, "examples")) == 1


@pytest.mark.long
def test_workers_of_a_killed_runner_hold_the_store_until_they_end(project, home):
    """Nobody takes for left over what they are still writing."""
    process = subprocess.Popen(command(), cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while not entries(home, "examples"):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    workers = [int(child) for child in children.read_text().split()]
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    process.kill()
    process.wait()
    refused = subprocess.run(
        [sys.executable, "-m", "modelwright.core", "cache", "prune"], capture_output=True, text=True, check=False
    )
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    assert "is in use" in refused.stderr
    assert prepare(project) == prepare(project, home=project / "undisturbed")


def test_another_run_of_the_same_data_takes_what_is_there(project, home):
    """It links the files: they are on the disk once."""
    once = prepare(project)
    (project / "run.toml").write_text(RUN.replace('"prep"', '"other"'))
    do(project, "--set", "data.workers=1")
    other = contents(home / "runs/other/prepare")
    assert {**other, "labels.html": ""} == {**once, "labels.html": ""}
    shard = "prepare/train/00000.arrow"
    assert (home / "runs/prep" / shard).stat().st_ino == (home / "runs/other" / shard).stat().st_ino


def test_damaged_entries_are_made_again(project, home):
    """A disk that goes bad costs time, not truth."""
    once = prepare(project)
    for path in (home / "cache").glob("*/*/*.arrow"):
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    for path in (home / "cache/prepared").glob("*/report.json"):
        path.chmod(0o644)
        path.write_bytes(b"{}")
    (home / "runs/prep/done/prepare.json").unlink()
    assert prepare(project) == once


def test_fresh_does_all_of_it_again(project, home):
    """For every kind of entry; and what it makes takes its place."""
    once = prepare(project)
    before = entries(home, "examples")
    assert prepare(project, "--fresh") == once
    after = entries(home, "examples")
    assert after.keys() == before.keys()
    assert not set(after.values()) & set(before.values())
