import json
import os
import pty
import re
import subprocess
import sys
from datetime import datetime

import pytest

from modelwright.core.api.records import wilson
from modelwright.core.api.registry import NewModel
from modelwright.core.cli import main
from modelwright.core.plugins import discover
from modelwright.core.registry import open_registry
from modelwright.core.testing.registry import new_model, write_model


@pytest.fixture
def registry(home):
    """The home's registry: what the command line opens if no other is named."""
    return open_registry(f"sqlite:///{home}/registry.db", discover())


@pytest.fixture
def filled(registry, tmp_path):
    """general@1, math@1 with metrics and the alias production, math@2."""
    folder = write_model(tmp_path / "trained")
    for name, fingerprint in (("math", "first"), ("math", "second"), ("general", "first")):
        registry.add(new_model(name, fingerprint), folder)
    registry.add_metrics("math", 1, "gsm8k", {"accuracy": wilson(0.965, 200)})
    registry.set_alias("production", "math", 1)
    return registry


@pytest.fixture
def run(capsys):
    """Runs the command line here: (exit code, standard output, standard error)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            main(["models", *arguments])
        return (end.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def printed(run):
    """Runs a command that works: the lines it prints."""

    def printed(*arguments):
        code, out, err = run(*arguments)
        assert (code, err) == (0, "")
        return [line.rstrip() for line in out.splitlines()]

    return printed


def test_list_gives_every_version_as_json_in_the_promised_shape(filled, run):
    """Others read it: the keys are exactly these."""
    code, out, err = run("list", "--json")
    tags = {"team": "nlp", "note": 'it\'s "quoted"'}
    digest = filled.get("math").digest
    figure = wilson(0.965, 200)
    expected = [
        {"name": "general", "version": 1, "digest": digest, "aliases": [], "tags": tags, "metrics": {}},
        {
            "name": "math",
            "version": 1,
            "digest": digest,
            "aliases": ["production"],
            "tags": tags,
            "metrics": {"gsm8k": {"accuracy": {"value": 0.965, "low": figure.low, "high": figure.high, "n": 200}}},
        },
        {"name": "math", "version": 2, "digest": digest, "aliases": [], "tags": tags, "metrics": {}},
    ]
    assert (code, json.loads(out), err) == (0, expected, "")


def test_list_shows_addresses_aliases_metrics_with_intervals_and_times(filled, printed):
    """One line a model, and its address as one types it."""
    created = f"{filled.get('math', 1).created:%Y-%m-%d %H:%M}"
    lines = printed("list")
    [line] = [line for line in lines if "math@1" in line]
    assert line.split() == ["math@1", "@production", "0.965", "[0.930,", "0.983]", *created.split()]
    assert [line.split()[0] for line in lines if "@1" in line or "@2" in line] == ["general@1", "math@1", "math@2"]
    assert any("gsm8k" in line for line in lines)
    assert any("accuracy" in line for line in lines)


def test_an_empty_registry_lists_as_empty_and_names_itself(run, home, wording):
    """Anyone who looks into the wrong folder sees which one it is; nothing is created."""
    code, out, err = run("list")
    assert (code, err) == (0, "")
    assert f"sqlite:///{home}/registry.db" in out
    wording(out)
    assert run("list", "--json") == (0, "[]\n", "")
    assert run("alias", "--json") == (0, "[]\n", "")
    wording(run("alias")[1])
    assert not home.exists()


@pytest.mark.parametrize("suites", [1, 6])
def test_nothing_is_cut_or_broken_on_a_terminal_of_80_columns(filled, suites):
    """A table where it fits; with more metrics than fit beside each other, a block for each model."""
    for suite in range(suites):
        filled.add_metrics("math", 2, f"suite-{suite}", {"exact_match": wilson(0.5, 100)})
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "modelwright.core", "models", "list"]
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm", "NO_COLOR": "1"}
    done = subprocess.run(command, stdout=theirs, stdin=theirs, env=environment, timeout=60, check=True)
    os.close(theirs)
    text = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.returncode == 0
    assert max(map(len, re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines())) <= 80
    assert text.count("0.500 [0.404, 0.596]") == suites
    assert "math@2" in text


def test_a_pipe_gets_one_line_a_model_however_wide(filled, printed):
    """So that grep finds a model with all its metrics."""
    for suite in range(6):
        filled.add_metrics("math", 2, f"suite-{suite}", {"exact_match": wilson(0.5, 100)})
    [line] = [line for line in printed("list") if "math@2" in line]
    assert line.count("0.500 [0.404, 0.596]") == 6


def test_show_tells_all_that_is_known_as_json(filled, run):
    """Every field of the record is there."""
    code, out, err = run("show", "@production", "--json")
    shown, model = json.loads(out), filled.get("math", 1)
    assert (code, err) == (0, "")
    assert (shown["name"], shown["version"], shown["digest"]) == ("math", 1, model.digest)
    assert (shown["aliases"], shown["metrics"]["gsm8k"]["accuracy"]["n"]) == (["production"], 200)
    assert datetime.fromisoformat(shown["created"]) == model.created
    assert shown["files"][1] == {"path": "model.safetensors", "sha256": model.files[1].sha256, "size": 7}
    for key in ("fingerprint", "base", "parent", "code_version", "data", "training", "environment", "config", "tags"):
        assert shown[key] == getattr(new_model(), key)


def test_show_tells_all_that_is_known_to_people(filled, printed):
    """Section by section, nested configuration as dotted keys."""
    lines = [" ".join(line.split()) for line in printed("show", "math@1")]
    assert lines[0] == "math@1 @production"
    for line in (
        f"digest {filled.get('math', 1).digest}",
        "base scratch",
        "parent older@1",
        "made by modelwright 0.1.0",
        "gsm8k.accuracy 0.965 [0.930, 0.983] n = 200",
        "loss 0.125",
        "model.safetensors 7 B sha256 9a129038d9a0…",
        "/data/train.jsonl sha256 abababababab…",
        "train.learning_rate 0.005",
        'names ["ä", "数"]',
        "python 3.11.7 (CPython)",
    ):
        assert line in lines


def test_show_lets_no_text_command_the_terminal(registry, tmp_path, printed):
    """Tags and configuration may come from anywhere: control characters are written, not sent."""
    hostile = "\x1b]0;owned\x07\nsecond line"
    model = NewModel(name="math", fingerprint="f", tags={"note": hostile}, config={"template": hostile})
    registry.add(model, write_model(tmp_path / "trained"))
    text = "\n".join(printed("show", "math"))
    assert "\x1b" not in text
    assert text.count(r'"\u001b]0;owned\u0007\nsecond line"') == 2


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (14_960_000_000, "15.0 GB"), (2 * 10**15, "2000.0 TB")],
)
def test_sizes_are_shown_in_decimal_units(size, shown):
    """As disks and file managers count."""
    from modelwright.core.cli.common import size_text

    assert size_text(size) == shown


def test_alias_moves_and_says_from_where_to_where(filled, printed, wording):
    """First set, moved, and where it was already."""
    for arguments in (["assistant", "math@1"], ["@assistant", "math"], ["assistant", "math@2"], ["assistant"]):
        [line] = printed("alias", *arguments)
        wording(line)
    assert filled.resolve("assistant").generation == 2


def test_alias_takes_another_alias_as_its_address(filled, printed):
    """What is good enough for staging goes to production."""
    printed("alias", "staging", "@production")
    assert filled.resolve("staging").version == 1


def test_alias_speaks_json(filled, run):
    """Setting, one, and all."""
    moved = {"alias": "production", "name": "math", "version": 2, "generation": 2}
    assert json.loads(run("alias", "production", "math@2", "--json")[1]) == {**moved, "previous": "math@1"}
    assert json.loads(run("alias", "production", "--json")[1]) == moved
    run("alias", "assistant", "general")
    first = {"alias": "assistant", "name": "general", "version": 1, "generation": 1}
    assert json.loads(run("alias", "--json")[1]) == [first, moved]


def test_alias_lists_all_that_there_are(filled, printed):
    """With the number of their moves."""
    printed("alias", "assistant", "general")
    rows = [line.split() for line in printed("alias") if "@" in line]
    assert rows == [["@assistant", "general@1", "1"], ["@production", "math@1", "1"]]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        *(("show mathe", 1), ("show @producton", 1), ("show math@7", 1), ("show Math", 2)),
        *(("alias production math@7", 1), ("alias producton", 1), ("alias 7 math", 2)),
        *(("list --registry registry.db", 2), ("list --registry nowhere://x", 2)),
    ],
)
def test_what_cannot_be_done_is_one_line_and_an_exit_code(filled, run, arguments, code, wording):
    """1 if the model is not there, 2 if the command is wrong; standard output stays empty."""
    ended, out, err = run(*arguments.split())
    assert (ended, out, err.count("\n")) == (code, "", 1)
    assert err.startswith("error: ")
    wording(err)


def test_not_found_names_the_registry(filled, run, home):
    """The wrong registry is the likeliest reason."""
    assert f"registry: sqlite:///{home}/registry.db" in run("show", "mathe")[2]


def test_the_registry_is_named_by_option_then_environment_then_home(filled, tmp_path, printed, run, monkeypatch):
    """The nearest wins."""
    for name in ("option", "environment"):
        other = open_registry(f"sqlite:///{tmp_path}/{name}/registry.db", discover())
        other.add(new_model(name), tmp_path / "trained")

    def names(*arguments):
        return {model["name"] for model in json.loads(run("list", "--json", *arguments)[1])}

    assert names() == {"general", "math"}
    monkeypatch.setenv("MODELWRIGHT_REGISTRY", f"sqlite:///{tmp_path}/environment/registry.db")
    assert names() == {"environment"}
    assert names("--registry", f"sqlite:///{tmp_path}/option/registry.db") == {"option"}


def test_listing_models_imports_no_torch(filled):
    """A second is for the registry, not for a framework that it does not need."""
    program = (
        "import sys; from modelwright.core.cli import main\n"
        "try: main(['models', 'list'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, stdout=subprocess.DEVNULL)
