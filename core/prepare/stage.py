"""The prepare stage: sources → examples → quality → tokens, into one folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import asdict

from modelwright.core.api import files
from modelwright.core.api.components import FormatSpec
from modelwright.core.api.errors import ModelwrightError
from modelwright.core.api.records import Example
from modelwright.core.chat import Renderer, read_template
from modelwright.core.config import to_plain
from modelwright.core.prepare.builtin import parse_builtin
from modelwright.core.prepare.checks import check_inputs, checks
from modelwright.core.prepare.examples import Counts, Rejected, write_examples
from modelwright.core.prepare.look import look, page
from modelwright.core.prepare.quality import Quality
from modelwright.core.prepare.sources import Row, raw_rows, share, source_digests, source_files
from modelwright.core.prepare.tokenizers import scratch_renderer
from modelwright.core.prepare.tokens import TokenReport, write_tokens
from modelwright.core.stage import Run

# Counts up when the same inputs give other tokens than before.
VERSION = 3
EVENTS_EVERY = 1000
# A page with so many rows, on which what is learnt is coloured.
LABELS, SHOWN = "labels.html", 3

Emit = Callable[[str, Mapping[str, Any]], None]


class Prepare:
    """Raw rows to training tokens and a tokenizer."""

    name = "prepare"

    def inputs(self, run: Run) -> dict[str, Any]:
        """The bytes of the sources, the format, the tokenizer, the options, and the version of this code."""
        config = run.config
        data = to_plain(config)["data"]
        spec = run.plugins.get(FormatSpec, config.data.format)
        scratch = config.model.scratch
        return {
            "version": VERSION,
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
        """Preparing begins anew."""
        return None

    def work(self, run: Run, fingerprint: str, emit: Emit) -> dict[str, Any]:  # noqa: ARG002 - as above
        """Read, clean, render and write."""
        target = run.folder.stage(self.name)
        files.remove_temporaries(target.parent)
        with _naming(target.parent), files.writing_folder(target) as folder:
            rejected = Rejected(folder / "rejected.jsonl")
            notices: list[str] = []
            counts, weights, removed = _write_examples(run, folder, rejected, emit, notices)
            trouble = _too_many_rejected(run, counts.rows, rejected, target)
            report = TokenReport()
            if trouble is None:
                report = _write_tokens(run, folder, rejected, weights, emit)
                trouble = _too_many_rejected(run, counts.rows, rejected, target) or _unfit(run, report)
            summary = {**asdict(counts), "rejected": rejected.count, "reasons": rejected.reasons, "notices": notices}
            summary |= report.to_plain() | {"read": counts.rows, "removed": removed}
            files.write_json(folder / "report.json", summary)
            if trouble is None:
                files.write_text(folder / LABELS, page(run.config.name, look(folder, SHOWN)))
            else:
                (folder / "train.arrow").unlink(missing_ok=True)
        if trouble is not None:
            # The folder stands, with rejected.jsonl and report.json to look into, but is not marked as done.
            raise ModelwrightError(trouble)
        emit("prepared", summary)
        return summary | {"digest": _digest(target), "sources": _lineage(run), "files": files.sizes(target)}


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


def _write_examples(
    run: Run, folder: Path, rejected: Rejected, emit: Emit, notices: list[str]
) -> tuple[Counts, list[float], dict[str, int]]:
    """What became of the rows, the weight of each example, and how many each check has left out."""
    data, counts, weights = run.config.data, Counts(), list[float]()

    def progress(rows: int) -> None:
        if (counts.rows + rows) % EVENTS_EVERY == 0:
            emit("reading", {"rows": counts.rows + rows})
        run.folder.check_stop()

    def notice(text: str) -> None:
        notices.append(text)
        emit("notice", {"text": text})

    with checks(run.config, run.plugins) as asked, (folder / "examples.jsonl").open("wb") as file:
        quality = Quality(asked, folder / "removed.jsonl")
        for source in data.sources:
            part = write_examples(
                (row.read() for row in raw_rows(source, run.config.seed, notice=notice)),
                run.plugins.get(FormatSpec, data.format).create(data.options),
                file,
                format_name=data.format,
                reject=rejected.add,
                keep=quality.keep,
                progress=progress,
            )
            counts = Counts(rows=counts.rows + part.rows, examples=counts.examples + part.examples)
            weights += [source.weight] * part.examples
        return counts, weights, {check.name: quality.counts[check.name] for check in asked}


def _too_many_rejected(run: Run, rows: int, rejected: Rejected, target: Path) -> str | None:
    trouble = rejected.too_many(rows, run.config.data.max_rejected, key="[data] max_rejected")
    return trouble and f"{trouble}; all are in {target / 'rejected.jsonl'}"


def _renderer(run: Run, folder: Path) -> Renderer:
    model = run.config.model
    template = read_template(model.chat_template) if model.chat_template else None
    if run.base:
        return Renderer.from_folder(run.base.folder, chat_template=template)
    assert model.scratch is not None
    return scratch_renderer(
        model.scratch.tokenizer,
        _examples(folder),
        vocab_size=model.scratch.vocab_size,
        template=template or read_template("chatml"),
    )


def _examples(folder: Path) -> Iterator[Example]:
    with (folder / "examples.jsonl").open(encoding="utf-8") as file:
        yield from (Example.from_row(row) for row in files.json_lines(file))


def _write_tokens(run: Run, folder: Path, rejected: Rejected, weights: Sequence[float], emit: Emit) -> TokenReport:
    config = run.config
    renderer = _renderer(run, folder)
    renderer.save(folder / "tokenizer")

    refused: set[str] = set()

    def reject(example: Example, reason: str) -> None:
        if example.source in refused:  # the share of rejected rows counts rows, and one may give several examples
            return
        refused.add(example.source)
        file, _, line = example.source.rpartition(":")
        rejected.add(Row(file=file, line=int(line), value=example.to_row()), reason)

    def drop(example: Example, reason: str) -> None:
        line = {"id": example.id, "source": example.source, "reason": reason}
        with (folder / "dropped.jsonl").open("ab") as file:
            file.write(files.json_line(line).encode("utf-8"))

    def examples() -> Iterator[tuple[Example, int]]:
        for number, (example, weight) in enumerate(zip(_examples(folder), weights, strict=True)):
            run.folder.check_stop()
            if number % EVENTS_EVERY == 0:
                emit("rendering", {"rendered": number, "examples": len(weights)})
            whole, part = divmod(weight, 1)
            yield example, int(whole) + (share(f"{config.seed}:weight:{example.id}") < part)

    def held_out(example: Example) -> bool:
        return share(f"{config.seed}:holdout:{example.id}") < config.data.holdout.fraction

    return write_tokens(
        examples(),
        renderer,
        folder=folder,
        max_length=config.data.tokens.max_length,
        turns=config.data.tokens.turns,
        held_out=held_out,
        reject=reject,
        drop=drop,
    )


def _unfit(run: Run, report: TokenReport) -> str | None:
    """Why the tokens must not be trained on, if so."""
    tokens = run.config.data.tokens
    stopping = {name: count for name, count in report.anomalies.items() if name not in tokens.allow}
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
            f"{tokens.max_length}, {report.holdout_rows} are held out"
        )
    return None


def _digest(folder: Path) -> str:
    """Of what the training reads: a renamed source gives the same tokens."""
    manifest = files.folder_manifest(folder)
    return files.manifest_digest(
        {path: entry for path, entry in manifest.items() if path.endswith(".arrow") or path.startswith("tokenizer/")}
    )
