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
import shutil
from collections.abc import Callable, Mapping
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
from modelwright.core.stages.prepare.builtin import parse_builtin
from modelwright.core.stages.prepare.cache import ENTRY, Cache, link, naming_full_disk
from modelwright.core.stages.prepare.preparation import READING_VERSION, Preparation
from modelwright.core.stages.prepare.preview import html_page, preview
from modelwright.core.stages.prepare.quality import check_inputs
from modelwright.core.stages.prepare.rendering import TokenReport
from modelwright.core.stages.prepare.sources import source_digests, source_files

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
            "version": [VERSION, READING_VERSION, rendering.TOKENS_VERSION, RENDERER_VERSION],
            "data": data | {"sources": [{**given, "path": None} for given in data["sources"]]},
            "sources": [source_digests(source, config.seed) for source in config.data.sources],
            "format": run.plugins.origin(spec),
            "quality": check_inputs(config, run.plugins),
            "tokenizer": _learnt_by(scratch) if scratch else run.base and run.base.digest,
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
                trouble = _too_many_rejected(done, target) or _mislabelled(run, done.report) or _nothing_left(done)
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
            # The folder stands, with rejected.jsonl and report.json to look into, but is not marked as done.
            raise ModelwrightError(trouble)

    def _check_unchanged(self, run: Run, fingerprint: str) -> None:
        """The fingerprint is of the bytes that were there before they were read; nobody may find others under it.

        Raises:
            ModelwrightError: they are others now.
        """
        if digest_json(self.inputs(run)) != fingerprint:
            raise ModelwrightError(
                f"{run.config.name}: a source, a test set or the template changed while it was read: run the same "
                "command again"
            )


def _learnt_by(scratch: ScratchConfig) -> list[Any]:
    """What a tokenizer that is learnt from the data depends on beside them: another library may learn another."""
    learnt: list[Any] = [scratch.tokenizer, scratch.vocab_size]
    with contextlib.suppress(PackageNotFoundError):  # a plan can be made without it
        learnt.append(version("tokenizers"))
    return learnt


def _write_page(run: Run, folder: Path) -> None:
    files.write_text(folder / LABELS, html_page(run.config.name, preview(folder, SHOWN)))


def _emit_labels(folder: Path, emit: Emit) -> None:
    """Show some rows as the model will see them, with what is learnt: whatever the counts say, people see mistakes."""
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
        digests = source_digests(source, run.config.seed)
        paths = [source.path] if parse_builtin(source.path) else map(str, source_files(source))
        lineage |= {path: digest for path, (_, digest) in zip(paths, digests, strict=True)}
    return lineage


def _too_many_rejected(done: Preparation, target: Path) -> str | None:
    trouble = done.rejected.too_many(done.rows, done.run.config.data.max_rejected, key="[data] max_rejected")
    return trouble and f"{trouble}; all are in {target / 'rejected.jsonl'}"


def _mislabelled(run: Run, report: TokenReport) -> str | None:
    """Which anomalies stop the run, if any."""
    allowed = run.config.data.tokens.allow
    stopping = {name: count for name, count in report.anomalies.items() if name not in allowed}
    if not stopping:
        return None
    named = "; ".join(f"{name}: {count} examples, first {report.shown[name]}" for name, count in stopping.items())
    allow = ", ".join(f'"{name}"' for name in stopping)
    return (
        f"the label masks are not what the data says ({named}): mend the data or the template, "
        f"or set [data.tokens] allow = [{allow}]"
    )


def _nothing_left(done: Preparation) -> str | None:
    """What became of the examples, where none is left to train on."""
    report = done.report
    if report.rows:
        return None
    most = done.run.config.data.tokens.max_length
    gone = {
        f"longer than [data.tokens] max_length {most}": report.too_long,
        "held out": report.holdout_rows,
        "left out by the weight of their source": report.undrawn,
        "without anything to learn": report.untrained,
        **{f"removed as {name}": count for name, count in done.removed.items()},
    }
    told = ", ".join(f"{count} are {what}" for what, count in gone.items() if count)
    return f"nothing is left to train on: {f'of the examples {told}' if told else 'no row gave an example'}"


def _digest(folder: Path) -> str:
    """Of what the training reads: a renamed source gives the same tokens."""
    manifest = files.read_json(folder / MANIFEST)
    read = ("train/", "holdout/", "tokenizer/")
    return files.manifest_digest({path: entry for path, entry in manifest.items() if path.startswith(read)})
