"""The prepare stage: sources → examples → quality → tokens, into one folder that appears whole or not at all.

    prepare/
    ├── examples/00000.jsonl …      the examples that are kept, as interchange JSONL
    ├── train/00000.arrow …         tokens and labels to train on
    ├── holdout/00000.arrow …       those of held-out examples
    ├── tokenizer/
    ├── manifest.json               sha256 and size of all files above
    ├── report.json                 all counts
    ├── labels.html                 some rows with the trained tokens marked
    └── rejected.jsonl, removed.jsonl, dropped.jsonl        what was left out, with reasons

The work is done in shards, and finished shards are cached: after a kill, or when data, template or options change, only
the affected shards are prepared again.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Container, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from attrs import asdict

from modelwright.core import home
from modelwright.core.api import files
from modelwright.core.api.components import FormatSpec
from modelwright.core.api.errors import ModelwrightError
from modelwright.core.api.records import digest_json
from modelwright.core.chat.renderer import RENDERER_VERSION, read_template
from modelwright.core.config import to_plain
from modelwright.core.config.schema import ScratchConfig
from modelwright.core.runs.stage import Run
from modelwright.core.stages.prepare import rendering
from modelwright.core.stages.prepare.cache import ENTRY, Cache, link, naming_full_disk
from modelwright.core.stages.prepare.preparation import READING_VERSION, Preparation
from modelwright.core.stages.prepare.preview import html_page, preview
from modelwright.core.stages.prepare.quality import check_inputs
from modelwright.core.stages.prepare.sources import source_digests, source_lineage, without_place

# Raise this when the same inputs give another folder than before; shards have their own versions.
VERSION = 4
# Whole preparations in the cache.
KIND = "prepared"
# An HTML page with this many rows, trained tokens marked.
LABELS, SHOWN = "labels.html", 3
REPORT, MANIFEST = "report.json", "manifest.json"

# Settings that change how the data is prepared, but not the result.
_NOT_INPUTS = ("workers",)

Emit = Callable[[str, Mapping[str, Any]], None]


class Prepare:
    """The stage that turns raw rows into training tokens and a tokenizer."""

    name = "prepare"

    def inputs(self, run: Run) -> dict[str, Any]:
        """The bytes of the sources, the format, the tokenizer, the options, and the version of this code."""
        config = run.config
        data = {key: value for key, value in to_plain(config)["data"].items() if key not in _NOT_INPUTS}
        spec = run.plugins.get(FormatSpec, config.data.format)
        scratch = config.model.scratch
        return {
            "version": [VERSION, READING_VERSION, rendering.TOKENS_VERSION, RENDERER_VERSION],
            "data": data | {"sources": [without_place(given) for given in data["sources"]]},
            "sources": [source_digests(source, config.seed) for source in config.data.sources],
            "format": run.plugins.origin(spec),
            "quality": check_inputs(config, run.plugins),
            "tokenizer": _trained_by(scratch) if scratch else run.base and run.base.digest,
            "template": config.model.chat_template and read_template(config.model.chat_template),
            "seed": config.seed,
        }

    def missing(self, run: Run, outputs: Mapping[str, Any]) -> str | None:
        """The first missing file."""
        file = files.missing_file(run.folder.stage(self.name), outputs["files"])
        return None if file is None else str(file)

    def unfinished(self, run: Run, fingerprint: str) -> str | None:  # noqa: ARG002 - the protocol's signature
        """None: finished shards are found in the cache when the stage runs again."""
        return None

    def work(self, run: Run, fingerprint: str, emit: Emit) -> dict[str, Any]:
        """Read, clean, render and write."""
        target = run.folder.stage(self.name)
        files.remove_temporaries(target.parent)
        with naming_full_disk(target.parent), Cache(home.cache()).locked(fresh=run.fresh) as cache:
            kept = cache.get(KIND, fingerprint)
            if kept is None:
                self._prepare(run, target, cache, emit)
                self._check_unchanged(run, fingerprint)
                cache.make(KIND, fingerprint, lambda folder: _link_all(target, folder))
            else:
                with files.writing_folder(target) as folder:
                    _link_all(kept, folder)
                    _write_page(run, folder)
        summary: dict[str, Any] = files.read_json(target / REPORT)
        emit("prepared", summary)
        _emit_labels(target, emit)
        return summary | {"digest": _digest(target), "sources": _lineage(run), "files": files.sizes(target)}

    def _prepare(self, run: Run, target: Path, cache: Cache, emit: Emit) -> None:
        with files.writing_folder(target) as folder, Preparation(run, folder, cache, emit) as done:
            done.read()
            trouble = _too_many_rejected(done, target)
            if trouble is None:
                done.render()
                trouble = (
                    _too_many_rejected(done, target)
                    or _mislabelled(done)
                    or _nothing_left(done)
                    or _nothing_held_out(done)
                )
            files.write_json(folder / REPORT, done.summary())
            if trouble is None:
                files.write_json(folder / MANIFEST, files.folder_manifest(folder))
            if done.report.rows:
                _write_page(run, folder)
            if trouble is not None:
                if done.report.rows:
                    _emit_labels(folder, emit)
                shutil.rmtree(folder / "train", ignore_errors=True)
        if trouble is not None:
            # The folder stays, with rejected.jsonl and report.json to look into, but is not marked as done.
            raise ModelwrightError(trouble)

    def _check_unchanged(self, run: Run, fingerprint: str) -> None:
        """Check that the inputs are still those of the fingerprint, which was computed before they were read.

        Raises:
            ModelwrightError: they changed.
        """
        if digest_json(self.inputs(run)) != fingerprint:
            raise ModelwrightError(
                f"{run.config.name}: a source, a test set or the template changed while it was being read: run the "
                "same command again"
            )


def _trained_by(scratch: ScratchConfig) -> list[Any]:
    """What a tokenizer trained on the data depends on besides the data, the version of the library included."""
    made_by: list[Any] = [scratch.tokenizer, scratch.vocab_size]
    with contextlib.suppress(PackageNotFoundError):  # --dry-run works without it
        made_by.append(version("tokenizers"))
    return made_by


def _write_page(run: Run, folder: Path) -> None:
    files.write_text(folder / LABELS, html_page(run.config.name, preview(folder, SHOWN)))


def _emit_labels(folder: Path, emit: Emit) -> None:
    """Report some rows with their trained parts: people see mistakes that counts do not show."""
    rows = preview(folder, SHOWN)
    report = files.read_json(folder / REPORT)
    counts = ("tokens", "trained_by_role", "untrained", "too_long", "anomalies")
    emit("labels", {name: report[name] for name in counts} | {"examples": [asdict(one) for one in rows]})


def _link_all(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*")):
        if path.is_file() and path.name not in (LABELS, ENTRY):
            link(path, target / path.relative_to(source))


def _lineage(run: Run) -> dict[str, str]:
    """The digest of every source file, by its path."""
    lineage: dict[str, str] = {}
    for source in run.config.data.sources:
        lineage |= source_lineage(source, run.config.seed)
    return lineage


def _too_many_rejected(done: Preparation, target: Path) -> str | None:
    trouble = done.rejected.too_many(done.rows, done.run.config.data.max_rejected, key="[data] max_rejected")
    return trouble and f"{trouble}; rejected rows are in {target / 'rejected.jsonl'}"


def _mislabelled(done: Preparation) -> str | None:
    """The error of anomalies that stop the run, if any."""
    tokens, report = done.run.config.data.tokens, done.report
    allowed = tokens.allow
    stopping = {name: count for name, count in report.anomalies.items() if name not in allowed}
    if not stopping:
        return None
    named = "; ".join(f"{name}: {count} examples, the first {report.shown[name]}" for name, count in stopping.items())
    allow = ", ".join(f'"{name}"' for name in stopping)
    ways = "; ".join([*_remedies(done, stopping), "fix the data or the template"])
    return (
        f"the trained tokens of some examples would not match the data ({named}): {ways}, or set [data.tokens] "
        f"allow = [{allow}]"
    )


def _remedies(done: Preparation, anomalies: Container[str]) -> Iterator[str]:
    """The options of `[data.tokens]` that settle anomalies."""
    tokens = done.run.config.data.tokens
    if tokens.turns == "all" and ("prompt-boundary" in anomalies or "thinking-dropped" in anomalies):
        yield 'set turns = "auto" (or "split") to train each answer behind the history that serving shows'
    elif "thinking-dropped" in anomalies:
        yield (
            "set [model] chat_template to a template that shows the thinking of these answers, or remove it from the "
            "data"
        )
    if "end-missing" in anomalies and tokens.end is None:
        yield 'set end, such as end = "<|user|>", to the token that is to end an answer'
    if "message-dropped" in anomalies:
        yield "put the text of messages that the template leaves out (such as a system message) into one that it shows"
    if "prompt-boundary" not in anomalies:
        return
    opening, closing = done.block.opening, done.block.closing
    if closing != "" and tokens.thinking is None:
        empty = "" if closing is None else '"empty" to train them to close it, or '
        yield (
            f"generation prompts end in {opening!r}, which these answers do not close: set thinking = {empty}"
            '"omit" to train and serve without it'
        )
    elif tokens.turns != "all":
        yield (
            "set [model] chat_template to a template that writes a prompt in the same way (its text, and its last "
            "token) whether or not an answer follows"
        )


def _nothing_left(done: Preparation) -> str | None:
    """The error if no example is left to train on: what became of them."""
    report = done.report
    if report.rows:
        return None
    gone = {
        "held out": report.holdout_rows,
        **{f"removed by the check {name}": count for name, count in done.removed.items()},
    }
    return (
        f"no training examples are left ({_fates(done, gone) or 'no row gave an example'}): add data, or relax these "
        "limits"
    )


def _nothing_held_out(done: Preparation) -> str | None:
    """The error if examples were drawn to be held out, and none of them is left."""
    if not done.run.config.data.holdout.fraction or done.report.holdout_rows:
        return None
    return (
        f"no held-out examples are left (of all examples, {_fates(done, {})}): raise [data.holdout] fraction, or relax "
        "these limits"
    )


def _fates(done: Preparation, more: Mapping[str, int]) -> str:
    """What became of examples that gave no rows; with `more` numbers."""
    report, most = done.report, done.run.config.data.tokens.max_length
    gone = {
        f"longer than [data.tokens] max_length {most}": report.too_long,
        "left out by the weight of their source": report.undrawn,
        "without trained tokens": report.untrained,
        **more,
    }
    return ", ".join(f"{count} {what}" for what, count in gone.items() if count)


def _digest(folder: Path) -> str:
    """The digest of what training reads, so that a renamed source changes nothing."""
    manifest = files.read_json(folder / MANIFEST)
    read = ("train/", "holdout/", "tokenizer/")
    return files.manifest_digest({path: entry for path, entry in manifest.items() if path.startswith(read)})
