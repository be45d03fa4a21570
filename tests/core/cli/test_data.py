"""`modelwright data show` and `data stats`, as a person and as a program read them."""

import json
import re
import shutil

import pytest
from ids import shown
from tiny_run import tiny_run

from modelwright.core import runner
from modelwright.core.cli import main
from modelwright.core.config import read_run

RUN = tiny_run("""
name = "sums"
[data]
format = "general"
sources = [{ path = "rows.jsonl" }, { path = "more.jsonl" }]
holdout.fraction = 0.1
""")
ROWS = [{"prompt": f"say {n}", "completion": f"it is {n}"} for n in range(50)]
MORE = {"prompt": "say [more]", "completion": "it is\nmore"}
LONG = {"prompt": "say it", "completion": "it " * 200}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a run, its rows, and a home in which it is prepared."""
    folder = tmp_path_factory.mktemp("project")
    for name, rows in (("rows", [*ROWS, ROWS[0], LONG]), ("more", [MORE])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.toml").write_text(RUN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELWRIGHT_HOME", str(folder / "home"))
        read = read_run(folder / "run.toml")
        opened = runner.open_run(read.configs[0], read.plugins)
        runner.check([opened], ["prepare"])
        runner.execute(opened, only="prepare")
    return folder


@pytest.fixture
def prepared(project, tmp_path, monkeypatch):
    """A prepared run in the working directory: a copy of the project."""
    shutil.copytree(project, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home" / "runs" / "sums"


@pytest.fixture
def data(capsys):
    """Runs `modelwright data …`: (exit code, standard output, standard error)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            main(["data", *map(str, arguments)])
        return (end.value.code, *capsys.readouterr())

    return run


def test_rows_are_shown_with_what_is_trained_between_brackets(prepared, data):
    """Where no terminal shows colours; text is not markup."""
    code, out, err = data("show", "run.toml", "--n", 100)
    assert (code, err) == (0, "")
    more = out[out.index("more.jsonl:1") :]
    assert more == (
        "more.jsonl:1   23 tokens, 7 trained\n"
        "<|im_start|>user\nsay [more]<|im_end|>\n<|im_start|>assistant\n⟦it is\nmore<|im_end|>⟧\n\n"
    ).replace("23 tokens, 7", re.search(r"\d+ tokens, \d+", more)[0])


@pytest.mark.parametrize("named", ["run.toml", "sums", "home/runs/sums"])
def test_a_run_is_a_file_a_name_or_a_folder(prepared, data, named):
    """As everywhere."""
    code, out, _ = data("show", named, "--n", 2, "--skip", 1, "--json")
    rows = json.loads(out)
    assert code == 0
    assert len(rows) == 2
    assert rows[0].keys() == {"id", "source", "tokens", "trained", "parts"}
    assert [part["trained"] for part in rows[0]["parts"]] == [False, True, False]


def test_the_numbers_add_up(wording, prepared, data):
    """For a program; a person gets the same in tables."""
    code, out, err = data("stats", "sums", "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    report = found["report"]
    assert (report["read"], report["removed"]["duplicate"], report["too_long"]) == (53, 1, 1)
    assert report["rows"] + report["holdout_rows"] == 51
    assert found["sources"] == {"rows.jsonl": 51, "more.jsonl": 1}
    assert sum(found["histogram"].values()) == report["rows"]
    trained = report["trained_by_role"]["assistant"]
    assert trained["end"] == report["rows"]
    assert trained["answer"] + trained["end"] == report["trained_tokens"]

    code, out, _ = data("stats", "sums")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert code == 0
    assert lines[0] == f"53 rows read, {report['rows']} training rows, {report['tokens']:,} tokens"
    assert "longer than [data.tokens] max_length 1" in lines
    assert "duplicate 1" in lines
    assert "more.jsonl 1" in lines
    assert json.loads((prepared / "prepare" / "dropped.jsonl").read_text())["source"] == "rows.jsonl:52"
    [dropped] = map(json.loads, (prepared / "prepare" / "dropped.jsonl").read_text().splitlines())
    assert dropped["source"] == "rows.jsonl:52"
    wording(dropped["reason"])


def test_a_page_is_written_and_preparing_writes_one(prepared, data, tmp_path):
    """Three rows of every preparation are there to be looked at."""
    assert (prepared / "prepare" / "labels.html").read_text().count("<article>") == 3
    assert data("show", "sums", "--n", 4, "--html", "rows.html") == (0, "wrote rows.html\n", "")
    assert (tmp_path / "rows.html").read_text().count("<article>") == 4


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("show", "nobody"), 2),
        (("show", ""), 2),
        (("stats", "a/b"), 2),
        (("stats", "home"), 2),
        (("show", "nobody.toml"), 2),
        (("show", "sums", "--variant", "x"), 2),
        (("show", "run.toml", "--variant", "x"), 2),
        (("show", "sums", "--html", "."), 2),
    ],
    ids=shown,
)
def test_what_cannot_be_shown_is_one_line(wording, prepared, data, arguments, code):
    """What, and what is expected."""
    ended, out, err = data(*arguments)
    assert (ended, out, err.count("\n")) == (code, "", 1), err
    wording(err.removesuffix("\n"))


def test_several_variants_are_to_be_chosen_from(wording, prepared, data, tmp_path):
    """A run.toml may be several runs."""
    path = tmp_path / "run.toml"
    path.write_text(f"{RUN}[variants.a]\nseed = 1\n[variants.b]\nseed = 2\n")
    code, out, err = data("show", "run.toml")
    assert (code, out) == (2, "")
    wording(err.removesuffix("\n"))
    wording(data("show", "run.toml", "--variant", "a")[2].removesuffix("\n"))
