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
NOTHING = "give a RUN.toml or an EVAL.toml; or --all or --model ADDRESS, with --data PATH and --output DIR"


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
    ("arguments", "line"),
    [
        ("", NOTHING),
        ("--all", NOTHING),
        ("--all --data rows.jsonl", NOTHING),
        ("--data rows.jsonl --output out", NOTHING),
        ("--all --model a --data rows.jsonl --output out", "--all is every model: leave out --model"),
        ("--all --data r --output out --set seed=1", "--set goes with a file: give RUN.toml or EVAL.toml"),
        ("--all --data r --output out --variant v", "--variant goes with a file: give RUN.toml or EVAL.toml"),
        ("--limit 0", "Invalid value for '--limit'"),
        ("--temperature -1", "Invalid value for '--temperature'"),
        (
            "eval.toml --model a --limit 3",
            "eval.toml says what to evaluate: leave out --model, --limit (--set changes its keys), or the file",
        ),
        ("eval.toml --variant v", "eval.toml is an evaluation file, which has no variants: leave out --variant"),
        ("eval.toml --set lim=1", "lim: unknown key"),
        (
            "run.toml --all --output out",
            "run.toml is a run file, whose own model is graded on its own test sets: leave out --all, --output",
        ),
        ("run.toml", "run.toml:1 model: this table is required"),
        ("none.toml", "none.toml"),
        ("eval.toml run.toml", "unexpected extra argument (run.toml)"),
    ],
)
def test_what_does_not_go_together_is_refused(refused, arguments, line):
    """The line says which argument, and what to do."""
    assert line in refused(*arguments.split())


def test_a_run_file_works_as_before(modelwright, tmp_path):
    """Its stage comes after those before it."""
    (tmp_path / "run.toml").write_text(
        'name = "tiny"\n[model.scratch]\n[data]\nformat = "math"\n[[data.sources]]\npath = "builtin:arithmetic/train"\n'
        "[train]\nmax_steps = 1\n"
    )
    done = modelwright("evaluate", "run.toml")
    assert done.returncode == 2
    assert done.stderr == "error: tiny: prepare comes before evaluate (not done yet): run it first\n"


def test_help_says_what_all_and_the_defaults_mean(modelwright):
    """Without importing what evaluates."""
    text = " ".join(modelwright("evaluate", "--help").stdout.split())
    assert "evaluate [OPTIONS] [RUN.toml | EVAL.toml]" in text
    assert "Every name in the registry, at its newest version." in text
    assert "default: math_accuracy for the format math, else exact_match" in text
