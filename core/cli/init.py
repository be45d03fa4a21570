"""`modelwright init`: a new project, with a commented run.toml and sample data for each format."""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from attrs import frozen

from modelwright.core.cli.common import DiskPath
from modelwright.core.stages.prepare.builtin import builtin_rows

FORMATS = ("math", "reasoning", "general")
RUN = "run.toml"


@click.command()
@click.argument("folder", type=DiskPath(), default=Path())
@click.option(
    "--format",
    "format_name",
    type=click.Choice(FORMATS),
    default="math",
    show_default=True,
    help="Format of the sample data.",
)
def init(folder: Path, format_name: str) -> None:
    """Write a commented run.toml and sample data into FOLDER (default: the current folder).

    It works as it is: `modelwright run FOLDER/run.toml` trains a small model on the sample in a minute. Existing files
    are never overwritten.
    """
    from modelwright.core.api.errors import UsageError
    from modelwright.core.api.files import why_no_folder

    contents = _contents(format_name)
    if why := why_no_folder(folder):
        raise UsageError(f"{folder} {why}: name another folder; it is created if it does not exist")
    there = [str(folder / name) for name in contents if _is_there(folder / name)]
    # A file has the name of the folder to be made.
    there += [str(folder / "data")] if _is_there(folder / "data") and not (folder / "data").is_dir() else []
    if there:
        verb = "is" if len(there) == 1 else "are"
        raise UsageError(f"{', '.join(there)} {verb} already there and would be overwritten: name another folder")
    _write(folder, contents)
    for name in contents:
        click.echo(f"wrote {folder / name}")
    run = shlex.quote(str(folder / RUN))
    click.echo("\nNext:")
    click.echo(f"  modelwright run {run}      (a minute on a laptop)")
    click.echo("  modelwright serve first-model")
    click.echo("  modelwright chat --model first-model      (in another terminal)")
    click.echo(f"\nThen put your own rows into {folder / 'data'} and read {folder / RUN}: every key has a comment.")


def _is_there(path: Path) -> bool:
    """Whether the name is taken, even by a broken symlink."""
    return os.path.lexists(path)


def _contents(format_name: str) -> Mapping[str, str]:
    """The text of each file; run.toml comes last, so that if it is there, all files are."""
    from modelwright.core.api.files import json_line
    from modelwright.core.cli.init import SAMPLES, SIZES, TEST, TRAIN, run_text

    rows = SAMPLES[format_name].rows
    data = {
        name: "".join(map(json_line, itertools.islice(rows(split), SIZES[split])))
        for name, split in ((TRAIN, "train"), (TEST, "test"))
    }
    return {**data, RUN: run_text(format_name)}


def _write(folder: Path, contents: Mapping[str, str]) -> None:
    """Write all files or none.

    Raises:
        ModelwrightError: the folder cannot be written to.
    """
    from modelwright.core.api.files import failing_as, writing_folder

    with failing_as(f"{folder} cannot be written to"):
        if folder.exists():
            _write_into(folder, contents)
            return
        with writing_folder(folder) as staged:
            _write_into(staged, contents)


def _write_into(folder: Path, contents: Mapping[str, str]) -> None:
    """Write the files; if one cannot be written, remove those before it and the folders made for them."""
    from modelwright.core.api.files import write_text

    with contextlib.ExitStack() as undo:
        for name, text in contents.items():
            path = folder / name
            if not path.parent.exists():
                path.parent.mkdir()
                undo.callback(path.parent.rmdir)
            undo.callback(path.unlink, missing_ok=True)
            write_text(path, text)
        undo.pop_all()


SEED = 17
TRAIN, TEST = "data/train.jsonl", "data/test.jsonl"
# Enough to see a model learn, few enough to read.
SIZES = {"train": 600, "test": 60}


@frozen(kw_only=True)
class Sample:
    """A format's sample.

    Attributes:
        rows: its rows of a split.
        about: what they look like, for the run.toml.
        options: a commented line for `[data.options]`.
        metric: how answers are graded.
    """

    rows: Callable[[str], Iterator[Mapping[str, Any]]]
    about: str
    options: str
    metric: str


def _math(split: str) -> Iterator[Mapping[str, Any]]:
    """A few stories with few names and things, so that a model can learn them from a few hundred rows."""
    for row in builtin_rows("arithmetic", split, seed=SEED):
        if any(name in row["question"] for name in ("Ana ", "Ben ", "Eva ")) and (
            " gets " in row["question"] or " gives away " in row["question"]
        ):
            yield row


def _reasoning(split: str) -> Iterator[Mapping[str, Any]]:
    for row in _math(split):
        steps, _, number = row["answer"].partition("\n#### ")
        yield {"question": row["question"], "thinking": steps, "answer": number}


def _general(split: str) -> Iterator[Mapping[str, Any]]:
    for row in _math(split):
        number = row["answer"].partition("\n#### ")[2]
        messages = [
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": f"The answer is {number}."},
        ]
        yield {"messages": messages}


SAMPLES: Mapping[str, Sample] = {
    "math": Sample(
        rows=_math,
        about='{"question": …, "answer": "… steps …\\n#### 7"}; problem and solution with \\boxed{7} also work',
        options='solution = "full"          # "full": train on the steps and the answer; "answer": on the answer only',
        metric="math_accuracy",
    ),
    "reasoning": Sample(
        rows=_reasoning,
        about='{"question": …, "thinking": …, "answer": …}; <think>…</think> in the answer also works',
        options='thinking = "train"         # "train": train on thinking and answer; "mask": on the answer only',
        metric="math_accuracy",
    ),
    "general": Sample(
        rows=_general,
        about='{"messages": [{"role": "user", …}, …]}; instruction and output, prompt and completion also work',
        options='# system = "Be brief."     # a system message for every conversation',
        metric="exact_match",
    ),
}

_RUN = """\
# One run: from data to a trained, registered and evaluated model. Start it, and start it again after any change
# (finished steps are skipped), with
#
#   modelwright run run.toml
#
# Paths are relative to this file. Any key can be set from the command line: --set train.max_steps=100

name = "first-model"           # the model's name in the registry; each new training is its next version
seed = 17                      # for everything that is random

# The model to start from. This builds a small model and its tokenizer from scratch, without downloads:
[model.scratch]
hidden_size = 64
layers = 2
heads = 4
vocab_size = 512
# To fine-tune a pretrained model, replace [model.scratch] with this:
# [model]
# base = "./path/to/a/model"   # a folder with config.json, tokenizer.json and model.safetensors;
#                              # or a model in the registry ("first-model@1", "@production") or on the hub ("org/name")

[data]
format = "{format}"
# The rows look like this: {about}
[data.options]
{options}
[[data.sources]]               # repeat for more sources
path = "data/train.jsonl"      # a file, a folder, or a pattern such as "data/*.jsonl"
# limit = 1000                 # maximum number of rows to read
[data.tokens]
max_length = 128               # in tokens; longer examples are left out and counted

[train]
max_steps = 200                # or epochs = 3: passes over the data
batch_size = 32
learning_rate = 5e-3           # for a model this small; 1e-5 to 1e-4 for a pretrained one
warmup = 0.05                  # fraction of the steps over which the learning rate rises
checkpoint_every = 100         # in steps; an interrupted training resumes from the last checkpoint

[[evaluate]]                   # a test set; repeat for more
name = "test"
path = "data/test.jsonl"
metrics = ["{metric}"]
[evaluate.generation]
max_tokens = 64

[registry]
# If the condition holds, the alias moves to the new model; serve it with: modelwright serve @assistant
promote = {{ alias = "assistant", if = "test.{metric} >= 0.5" }}

# More models from the same file: each variant is merged over the keys above. `modelwright run` then trains all
# variants, and `--variant short` only that one.
# [variants.short]
# train = {{ max_steps = 50 }}
# [variants.long]
# train = {{ max_steps = 1000 }}
"""


def run_text(format_name: str) -> str:
    """The run.toml for a format's sample."""
    sample = SAMPLES[format_name]
    return _RUN.format(format=format_name, about=sample.about, options=sample.options, metric=sample.metric)
