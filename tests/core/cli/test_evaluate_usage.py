"""`modelwright evaluate`: which arguments go together, and what is said where they do not."""

from __future__ import annotations

import pytest

from modelwright.core.cli import main

EVAL = """
models = "all"
[[evaluate]]
name = "s"
path = "rows.jsonl"
format = "math"
metrics = ["exact_match"]
"""


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """The last line that a command line gives, which must be refused as wrong usage."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "eval.toml").write_text(EVAL)
    (tmp_path / "run.toml").write_text('name = "x"\n')

    def run(*arguments):
        with pytest.raises(SystemExit) as error:
            main(["evaluate", *arguments])
        said = capsys.readouterr()
        assert (error.value.code, said.out) == (2, "")
        assert not list(tmp_path.glob("out*"))
        return said.err

    return run


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "--all",
        "--all --data rows.jsonl",
        "--data rows.jsonl --output out",
        "--all --model a --data rows.jsonl --output out",
        "--all --data r --output out --set seed=1",
        "--all --data r --output out --variant v",
        "--limit 0",
        "--temperature -1",
        "eval.toml --model a --limit 3",
        "eval.toml --variant v",
        "eval.toml --set lim=1",
        "run.toml --all --output out",
        "run.toml",
        "none.toml",
        "eval.toml run.toml",
    ],
)
def test_what_does_not_go_together_is_refused(refused, wording, arguments):
    """The line says which argument, and what to do."""
    for line in filter(None, refused(*arguments.split()).splitlines()):
        wording(line)


def test_a_run_file_works_as_before(modelwright, wording, tmp_path):
    """Its stage comes after those before it."""
    (tmp_path / "run.toml").write_text(
        'name = "tiny"\n[model.scratch]\n[data]\nformat = "math"\n[[data.sources]]\npath = "builtin:arithmetic/train"\n'
        "[train]\nmax_steps = 1\n"
    )
    done = modelwright("evaluate", "run.toml")
    assert done.returncode == 2
    wording(done.stderr.rstrip("\n"))


def test_help_says_what_all_and_the_defaults_mean(modelwright):
    """Without importing what evaluates."""
    text = " ".join(modelwright("evaluate", "--help").stdout.split())
    assert "evaluate [OPTIONS] [RUN.toml | EVAL.toml]" in text
    assert "exact_match(ignore_case=true)" in text
    assert "Default: math_accuracy for the format math, otherwise exact_match." in text
