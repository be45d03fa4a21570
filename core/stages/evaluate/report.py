"""report.md: what results.json says, for people, with the first few wrong answers of each model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from modelwright.core.api import files
from modelwright.core.api.records import Example
from modelwright.core.api.wording import printable
from modelwright.core.stages.evaluate.results import RESULTS, SAMPLES, Collected
from modelwright.core.stages.evaluate.suites import prompt_messages

REPORT = "report.md"

# What is shown of a prompt or an answer.
_CHARACTERS = 600
_LINES = 12

_INTERVALS = (
    "Each figure has its 95 % interval. A model in **bold** is better than every other one: the 95 % intervals of all "
    "its differences, on the same examples, exclude 0."
)
_DIFFERENCES = (
    "The difference of each model from the one with the best figure, on the same examples, with its 95 % interval. If "
    "the interval contains 0, these examples cannot tell the two models apart. About one in twenty comparisons "
    "excludes 0 by chance."
)


def write_report(output: Path, results: Mapping[str, Any], collected: Sequence[Collected]) -> None:
    """Write report.md."""
    files.write_text(output / REPORT, "\n\n".join(_parts(results, collected)) + "\n")


def figure_text(figure: Mapping[str, float], *, signed: bool = False) -> str:
    """A figure with its interval, such as `0.947 [0.930, 0.960]`."""
    value, low, high = (_number(figure[key], signed=signed) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _number(value: float, *, signed: bool) -> str:
    sign = "+" if signed else ""
    # Adding 0.0 makes a positive zero of what rounds to a negative one.
    return f"{round(value, 3) + 0.0:{sign}.3f}" if abs(value) < 1000 else f"{value:{sign}.4g}"


def _parts(results: Mapping[str, Any], collected: Sequence[Collected]) -> Iterator[str]:
    models, suites = len(results["models"]), len(results["suites"])
    yield "# Evaluation"
    yield (
        f"{_count(models, 'model')} on {_count(suites, 'suite')}, {results['ended'][:10]}, "
        f"Modelwright {results['version']}, seed {results['seed']}. "
        f"All figures: `{RESULTS}`; every answer: `{SAMPLES}`."
    )
    if results["failed"]:
        yield "## Failed"
        yield "\n".join(_failed(each) for each in results["failed"])
    yield "## Figures"
    yield _INTERVALS if models > 1 else "Each figure has its 95 % interval."
    yield _figures(results)
    if results["comparisons"]:
        yield "## Differences"
        yield _DIFFERENCES
        yield from _differences(results)
    yield "## Test sets"
    yield "\n".join(_suite_line(suite) for suite in results["suites"])
    yield "## Verdicts"
    yield _verdicts(results)
    wrong = [one for one in collected if one.wrong]
    if wrong:
        yield "## Wrong answers"
        yield "The first few of each model and suite."
        for one in wrong:
            yield from _wrong(one)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _failed(failure: Mapping[str, Any]) -> str:
    suite = f" on {plain(failure['suite'])}" if failure["suite"] else ""
    return f"- {plain(failure['model'])}{suite}: {plain(cut(failure['error'], characters=_CHARACTERS, lines=3))}"


def _columns(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(suite["name"], metric) for suite in results["suites"] for metric in suite["metrics"]]


def _figures(results: Mapping[str, Any]) -> str:
    """Models × suites, in the order of the configuration."""
    columns = _columns(results)
    best = {(each["suite"], each["metric"]): each["model"] for each in results["best"]}
    measured = {(each["model"], each["suite"]): each["metrics"] for each in results["results"]}

    def cell(model: str, suite: str, metric: str) -> str:
        figures = measured.get((model, suite))
        if figures is None:
            return "failed"
        text = f"{figure_text(figures[metric])}"
        return f"**{text}**" if best.get((suite, metric)) == model else text

    rows = [
        [plain(model["address"]), *(cell(model["address"], suite, metric) for suite, metric in columns)]
        for model in results["models"]
    ]
    return table(["model", *(f"{plain(suite)} {plain(metric)}" for suite, metric in columns)], rows)


def _differences(results: Mapping[str, Any]) -> Iterator[str]:
    directions = {
        (suite["name"], metric): facts["higher_is_better"]
        for suite in results["suites"]
        for metric, facts in suite["metrics"].items()
    }
    for suite, metric in _columns(results):
        compared = [each for each in results["comparisons"] if (each["suite"], each["metric"]) == (suite, metric)]
        figures = {
            each["model"]: each["metrics"][metric]["value"] for each in results["results"] if each["suite"] == suite
        }
        if not compared:
            continue
        leader = (max if directions[suite, metric] else min)(figures, key=lambda model: figures[model])
        rows = [
            [plain(model), figure_text(difference, signed=True), "no" if _holds_zero(difference) else "yes"]
            for model, difference in _from_leader(leader, compared)
        ]
        columns = [f"{plain(suite)} {plain(metric)}", f"difference from {plain(leader)}", "significant"]
        yield table(columns, rows)


def _from_leader(leader: str, compared: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, float]]]:
    """Each other model, and its figure less the leader's."""
    for each in compared:
        if each["other"] == leader:
            yield each["model"], each
        elif each["model"] == leader:
            yield each["other"], {"value": -each["value"], "low": -each["high"], "high": -each["low"]}


def _holds_zero(difference: Mapping[str, float]) -> bool:
    return difference["low"] <= 0 <= difference["high"]


def _suite_line(suite: Mapping[str, Any]) -> str:
    generation = suite["generation"]
    how = ["greedy"] if generation["temperature"] == 0 else [f"temperature {generation['temperature']:g}"]
    how += [f"{key} {generation[key]:g}" for key in ("top_p", "top_k") if generation[key] not in (0, 1.0)]
    how += [f"stop {plain(repr(text))}" for text in generation["stop"]]
    options = "".join(f", {plain(key)} = {plain(repr(value))}" for key, value in suite["options"].items())
    examples = "none" if suite["examples"] is None else f"{suite['examples']:,}"
    return (
        f"- **{plain(suite['name'])}**: {examples} examples of {plain(suite['path'])}, format "
        f"{plain(suite['format'])}{options}; {_count(suite['samples'], 'answer')} each, at most "
        f"{generation['max_tokens']:,} tokens, {', '.join(how)}"
    )


def _verdicts(results: Mapping[str, Any]) -> str:
    verdicts = ("correct", "wrong", "no_answer", "error")
    rows = [
        [
            plain(each["model"]),
            plain(f"{each['suite']} {metric}"),
            *(f"{counts.get(verdict, 0):,}" for verdict in verdicts),
            f"{each['finishes'].get('length', 0):,}",
            f"{each['generating_seconds']:,.1f}",
        ]
        for each in results["results"]
        for metric, counts in each["verdicts"].items()
    ]
    return table(["model", "graded", "correct", "wrong", "no answer", "error", "cut off", "seconds"], rows)


def _wrong(one: Collected) -> Iterator[str]:
    yield f"### {plain(one.model)} on {plain(one.suite)}"
    for row in one.wrong:
        example = Example.from_row(row["example"])
        metric, score = next(iter(row["scores"].items()))
        verdict = score["verdict"].replace("_", " ")
        yield f"{plain(example.source)}, {plain(metric)}: {verdict}, {plain(score['reason'])}"
        yield f"Asked:\n\n{_shown(prompt_messages(example)[-1].content)}"
        if example.answer is not None:
            yield f"Expected:\n\n{_shown(example.answer)}"
        for output in row["outputs"][:1]:
            which = f", the first of {len(row['outputs'])} answers" if row["outputs"][1:] else ""
            end = ", cut off" if output["finish"] == "length" else ""
            yield f"Got{which}{end}:\n\n{_shown(output['text'])}"


def _shown(text: str) -> str:
    return block(cut(text, characters=_CHARACTERS, lines=_LINES))


# An underscore between letters or digits means nothing in Markdown.
_SPECIAL = re.compile(r"([\\`*\[\]<>|~#!&]|(?<![^\W_])_|_(?![^\W_]))")
_FENCE = re.compile(r"`{3,}")


def plain(text: str) -> str:
    """`text` on one line, every character of it shown as it is."""
    return _SPECIAL.sub(r"\\\1", printable(text.replace("\n", " "), keep="\t"))


def cut(text: str, *, characters: int, lines: int) -> str:
    """The beginning of `text`, with a note of what is left out."""
    kept = "\n".join(text.split("\n")[:lines])[:characters]
    left = len(text) - len(kept)
    return f"{kept} … ({left:,} characters more)" if left else text


def block(text: str) -> str:
    """`text` as a code block, fenced by more backticks than it has in a row."""
    text = printable(text, keep="\n\t")
    longest = max((len(run) for run in _FENCE.findall(text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first column is text, the others are figures. The cells are Markdown already."""
    lines = [columns, [":--"] + ["--:"] * (len(columns) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
