"""The prepare stage: sources → examples → quality → tokens, into one folder that appears whole or not at all.

    prepare/
    ├── examples/00000.jsonl …      the examples that are learnt, as interchange JSONL
    ├── train/00000.arrow …         their tokens and labels
    ├── holdout/00000.arrow …       of those that are held out
    ├── tokenizer/
    ├── manifest.json               sha256 and size of all these
    ├── report.json                 what was counted
    ├── labels.html                 some rows, with what is learnt coloured
    └── rejected.jsonl, removed.jsonl, dropped.jsonl        what was left out, each with its reason

The work is done in shards, each of which is kept in the cache when it is done: a preparation that was killed, or whose
data, template or options change in part, does again only what it must.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import asdict

from modelwright.core import home
from modelwright.core.api import files
from modelwright.core.api.components import FormatSpec
from modelwright.core.api.errors import ModelwrightError
from modelwright.core.chat import RENDERER_VERSION, read_template
from modelwright.core.config import to_plain
from modelwright.core.prepare import tokens
from modelwright.core.prepare.builtin import parse_builtin
from modelwright.core.prepare.checks import check_inputs
from modelwright.core.prepare.look import look, page
from modelwright.core.prepare.preparation import READING_VERSION, Preparation
from modelwright.core.prepare.sources import source_digests, source_files
from modelwright.core.prepare.store import ENTRY, Store, link
from modelwright.core.prepare.tokens import TokenReport
from modelwright.core.stage import Run

# Counts up when the same inputs give another folder than before; the shards have versions of their own.
VERSION = 4
# Whole preparations in the cache.
KIND = "prepared"
# A page with so many rows, on which what is learnt is coloured.
LABELS, SHOWN = "labels.html", 3
REPORT, MANIFEST = "report.json", "manifest.json"

# Settings that change how the data are prepared, not what comes of it.
_NOT_INPUTS = ("workers",)

Emit = Callable[[str, Mapping[str, Any]], None]


class Prepare:
    """Raw rows to training tokens and a tokenizer."""

    name = "prepare"

    def inputs(self, run: Run) -> dict[str, Any]:
        """The bytes of the sources, the format, the tokenizer, the options, and the version of this code."""
        config = run.config
        data = {key: value for key, value in to_plain(config)["data"].items() if key not in _NOT_INPUTS}
        spec = run.plugins.get(FormatSpec, config.data.format)
        scratch = config.model.scratch
        return {
            "version": [VERSION, READING_VERSION, tokens.VERSION, RENDERER_VERSION],
            "data": data | {"sources": [{**given, "path": None} for given in data["sources"]]},
            "sources": [source_digests(source, config.seed) for source in config.data.sources],
            "format": run.plugins.origin(spec),
            "quality": check_inputs(config, run.plugins),
            "tokenizer": [scratch.tokenizer, scratch.vocab_size] if scratch else run.base and run.base.digest,
            "template": config.model.chat_template and read_template(config.model.chat_template),
            "seed": config.seed,
        }

    def missing(self, run: Run, outputs: Mapping[str, Any]) -> str | None:
        """The first file that is gone."""
        file = files.missing_file(run.folder.stage(self.name), outputs["files"])
        return None if file is None else str(file)

    def unfinished(self, run: Run, fingerprint: str) -> str | None:  # noqa: ARG002 - the protocol's signature
        """What of it is done is found shard by shard, when it is asked for again."""
        return None

    def work(self, run: Run, fingerprint: str, emit: Emit) -> dict[str, Any]:
        """Read, clean, render and write."""
        target = run.folder.stage(self.name)
        files.remove_temporaries(target.parent)
        store = Store(home.cache(), reuse=not run.fresh)
        with _naming(target.parent), store.locked():
            kept = store.get(KIND, fingerprint)
            if kept is None:
                self._prepare(run, target, store, emit)
                store.make(KIND, fingerprint, lambda folder: _link_all(target, folder))
            else:
                with files.writing_folder(target) as folder:
                    _link_all(kept, folder)
                    _prove(run, folder, emit)
        summary: dict[str, Any] = files.read_json(target / REPORT)
        emit("prepared", summary)
        return summary | {"digest": _digest(target), "sources": _lineage(run), "files": files.sizes(target)}

    def _prepare(self, run: Run, target: Path, store: Store, emit: Emit) -> None:
        with files.writing_folder(target) as folder, Preparation(run, folder, store, emit) as done:
            done.read()
            trouble = _too_many_rejected(done, target)
            if trouble is None:
                done.render()
                trouble = _too_many_rejected(done, target) or _unfit(run, done.report)
            files.write_json(folder / REPORT, done.summary())
            if trouble is None:
                files.write_json(folder / MANIFEST, files.folder_manifest(folder))
            if done.report.rows:
                _prove(run, folder, emit)
            if trouble is not None:
                shutil.rmtree(folder / "train", ignore_errors=True)
        if trouble is not None:
            # The folder stands, with rejected.jsonl and report.json to look into, but is not marked as done.
            raise ModelwrightError(trouble)


def _prove(run: Run, folder: Path, emit: Emit) -> None:
    """Show some rows as the model will see them, with what is learnt: whatever the counts say, people see mistakes."""
    looks = look(folder, SHOWN)
    files.write_text(folder / LABELS, page(run.config.name, looks))
    report = files.read_json(folder / REPORT)
    counts = ("tokens", "trained_by_role", "untrained", "too_long", "anomalies")
    emit("labels", {name: report[name] for name in counts} | {"examples": [asdict(one) for one in looks]})


def _link_all(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*")):
        if path.is_file() and path.name not in (LABELS, ENTRY):
            link(path, target / path.relative_to(source))


@contextlib.contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Say where there was no more room: a write to an open file does not.

    Raises:
        ModelwrightError: there was none.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = error.strerror or str(error)
        raise ModelwrightError(
            f"{folder} cannot be written to: {reason}; with room, the same command goes on"
        ) from error


def _lineage(run: Run) -> dict[str, str]:
    """The digest of every source file, by its path."""
    lineage: dict[str, str] = {}
    for source in run.config.data.sources:
        digests = source_digests(source, run.config.seed)
        paths = [source.path] if parse_builtin(source.path) else map(str, source_files(source))
        lineage |= {path: digest for path, (_, digest) in zip(paths, digests, strict=True)}
    return lineage


def _too_many_rejected(done: Preparation, target: Path) -> str | None:
    trouble = done.rejected.too_many(done.rows, done.run.config.data.max_rejected, key="[data] max_rejected")
    return trouble and f"{trouble}; all are in {target / 'rejected.jsonl'}"


def _unfit(run: Run, report: TokenReport) -> str | None:
    """Why the tokens must not be trained on, if so."""
    settings = run.config.data.tokens
    stopping = {name: count for name, count in report.anomalies.items() if name not in settings.allow}
    if stopping:
        named = "; ".join(f"{name}: {count} examples, first {report.shown[name]}" for name, count in stopping.items())
        allow = ", ".join(f'"{name}"' for name in stopping)
        return (
            f"the label masks are not what the data says ({named}): mend the data or the template, "
            f"or set [data.tokens] allow = [{allow}]"
        )
    if not report.rows + report.too_long + report.holdout_rows:
        return "nothing is left to train on: no row gave an example"
    if not report.rows:
        return (
            f"nothing is left to train on: {report.too_long} examples are longer than [data.tokens] max_length "
            f"{settings.max_length}, {report.holdout_rows} are held out"
        )
    return None


def _digest(folder: Path) -> str:
    """Of what the training reads: a renamed source gives the same tokens."""
    manifest = files.read_json(folder / MANIFEST)
    read = ("train/", "holdout/", "tokenizer/")
    return files.manifest_digest({path: entry for path, entry in manifest.items() if path.startswith(read)})
