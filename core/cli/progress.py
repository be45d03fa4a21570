"""What a person sees while a run works: bars on a terminal, plain lines elsewhere; all from the run's events."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from modelwright.core.cli.common import figure_text
from modelwright.core.cli.data import label_text, print_examples
from modelwright.core.runs.events import Event

LINE_EVERY = 5.0


def describe(event: Event) -> str | None:
    """An event as a line for a person; None for those that only bars show."""
    words = _LINES.get(event.kind)
    return words(event.data) if words else None


def step_text(data: Any) -> str:
    """The numbers of a training step."""
    loss = "dropped" if data["loss"] is None else f"loss {data['loss']:.4f}"
    used = f", MFU {data['mfu']:.0%}" if data.get("mfu") else ""
    return f"{loss}, {data['tokens'] / data['seconds']:,.0f} tokens/s{used}"


def _prepared(data: Any) -> str:
    kinds = [
        f"{kind} {n / data['tokens']:.0%}" for named in data["trained_by_role"].values() for kind, n in named.items()
    ]
    trained = f"{data['trained_tokens']:,} trained ({', '.join(kinds)})"
    parts = [f"{data['rows']:,} rows for training, {data['tokens']:,} tokens, {trained}"]
    left_out = [(data[key], name) for key, name in _LEFT_OUT]
    left_out.append((data["holdout_rows"], f"held out ({data['holdout_prompts']:,} prompts)"))
    left_out += [(n, _REMOVED.get(name, name)) for name, n in data["removed"].items()]
    return ", ".join(parts + [f"{n:,} {name}" for n, name in left_out if n])


def _shards(data: Any) -> str:
    if not data["shards"]:
        return f"nothing to do: the data has only {data['of']} shard{'s' if data['of'] != 1 else ''}"
    return f"{data['shards']} of {data['of']} shards, {data['rows']:,} rows read, {data['examples']:,} examples"


def _started(data: Any) -> str:
    where = f"{data['processes']} × {data['device']}" if data.get("processes", 1) > 1 else data["device"]
    trained = data.get("trainable", data["parameters"])
    of = "" if trained == data["parameters"] else f"{trained:,} of "
    how = "".join(f", {data[key]}" for key in ("precision", "attention") if key in data)
    return f"{of}{data['parameters']:,} parameters on {where}{how}, {data['steps']:,} steps"


def _graded(data: Any) -> str:
    return f"{_pair(data)}: " + ", ".join(named_figures(data["metrics"]))


def _pair(data: Any) -> str:
    """The suite, and in an evaluation of several models whose it is."""
    return f"{data['model']} on {data['suite']}" if "model" in data else str(data["suite"])


def _failed(data: Any) -> str:
    subject = _pair(data) if data["suite"] else data.get("model", "the model")
    return f"{subject} failed: {data['error']}"


def named_figures(metrics: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Each metric with its figure, from the plain values that events and outputs hold."""
    return [f"{name} {figure_text(each['value'], each['low'], each['high'])}" for name, each in metrics.items()]


_LEFT_OUT = (
    ("rejected", "rejected"),
    ("too_long", "too long"),
    ("undrawn", "left out by sampling weight"),
)
# What the checks of `[data.quality]` leave out, by their names.
_REMOVED = {
    "duplicate": "duplicates",
    "near-duplicate": "near-duplicates",
    "contaminated": "with questions of test sets",
    "length": "outside the length limits",
    "insane": "repetitive or garbled",
    "unverified": "whose answer differs",
}
_LINES: dict[str, Callable[[Any], str]] = {
    "notice": lambda data: data["text"],
    "shard": _shards,
    "prepared": _prepared,
    "labels": label_text,
    "started": _started,
    "preflight": lambda data: f"preflight passed in {data['seconds']:.1f} s",
    "bad_step": lambda data: (
        f"step {data['step']} dropped: {data['why']} (examples: {', '.join(data['examples'][:4])} …)"
    ),
    "holdout": lambda data: f"held-out loss {data['loss']:.4f} after step {data['step']:,}",
    "best": lambda data: f"result: the model of step {data['best_step']:,}, which has the lowest held-out loss",
    "resumed": lambda data: f"resumes after step {data['step']:,}",
    "registered": lambda data: f"{data['address']}, sha256 {data['digest'][:12]}",
    "graded": _graded,
    "failed": _failed,
    "promoted": lambda data: f"@{data['alias']} now points to this model ({data['why']})",
    "not promoted": lambda data: f"alias not moved: {data['why']}",
}


class _PatientConsole(Console):
    """Falls silent when its reader leaves (`modelwright run … 2>&1 | head`): the work goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Display:
    """Listens to a run's events; use it as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or _PatientConsole(stderr=True)
        self._bars: Progress | None = None
        self._task: TaskID | None = None
        self._task_of = ""
        self._last_line = time.monotonic()
        self._last_step = ""
        if self.console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=14),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[note]}"),
                console=self.console,
                transient=True,
            )

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bars:
            with contextlib.suppress(OSError):
                self._bars.stop()

    def say(self, run: str, stage: str, text: str) -> None:
        """Write a line that stays."""
        self.console.print(Text.assemble((run, "bold"), " ", (f"{stage:<8}", "cyan"), " ", text), soft_wrap=True)

    def __call__(self, event: Event) -> None:
        """Show an event; a plugin's event that lacks the fields shown here is not shown, but is in its file.

        A terminal that has gone (a closed ssh session) ends the showing, not the work.
        """
        try:
            self._show(event)
        except OSError:
            self.console.quiet = True
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            return

    def _show(self, event: Event) -> None:
        # Of jobs that share a stage, each says which part is its own.
        stage = f"{event.stage} {event.data['shard']}" if "shard" in event.data else event.stage
        line = describe(event)
        if line is None:
            self._move(event, stage)
            return
        self._end_task()
        self.say(event.run, stage, line)
        if event.kind == "labels":
            print_examples(self.console, event.data["examples"])

    def _move(self, event: Event, stage: str) -> None:
        if event.kind == "step":
            self._last_step = step_text(event.data)
            self._advance(event, stage, event.data["step"], event.data["steps"], self._last_step)
        elif event.kind == "reading":
            self._advance(event, stage, event.data["rows"], None, "rows read")
        elif event.kind == "rendering":
            self._advance(event, stage, event.data["rendered"], event.data["examples"], "examples rendered")
        elif event.kind == "starting":
            self._advance(event, stage, 0, None, "starting")
        elif event.kind == "finished":
            self._end_task()
            self.say(event.run, stage, f"trained: {self._last_step}")
        elif event.kind == "ended":
            self._end_task()
        elif event.kind == "answered":
            self._advance(event, stage, event.data["answered"], event.data["examples"], _pair(event.data))

    def _advance(self, event: Event, stage: str, done: int, total: int | None, note: str) -> None:
        if self._bars is None:
            if done and time.monotonic() - self._last_line >= LINE_EVERY:
                self._last_line = time.monotonic()
                self.say(event.run, stage, f"{done:,}{'' if total is None else f'/{total:,}'} {note}".strip())
            return
        key = f"{event.run} {stage}"
        if self._task is None or self._task_of != key:
            self._end_task()
            name = f"[bold]{event.run}[/] [cyan]{stage}[/]"
            self._task = self._bars.add_task(name, total=total, completed=done, note=note)
            self._task_of = key
        self._bars.update(self._task, completed=done, total=total, note=note)

    def _end_task(self) -> None:
        if self._bars and self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None
