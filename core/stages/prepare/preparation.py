"""A preparation: rows to examples to tokens, shard by shard, in one run or shared among several jobs."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from attrs import asdict, evolve

from modelwright.core import home
from modelwright.core.api import files
from modelwright.core.api.components import FormatSpec
from modelwright.core.api.errors import ModelwrightError
from modelwright.core.api.records import digest_json
from modelwright.core.api.wording import listed
from modelwright.core.chat.renderer import Renderer, Turns, read_template
from modelwright.core.chat.served import ThinkingBlock
from modelwright.core.config import to_plain
from modelwright.core.config.data import TokensConfig
from modelwright.core.runs.allocation import allocation
from modelwright.core.runs.events import EventWriter
from modelwright.core.runs.folder import RunFolder
from modelwright.core.runs.stage import Run
from modelwright.core.runs.supervisor import stop_on_signals
from modelwright.core.stages.prepare import reading, rendering
from modelwright.core.stages.prepare.cache import Cache, link, naming_full_disk
from modelwright.core.stages.prepare.deduplicate import Deduplicator
from modelwright.core.stages.prepare.examples import Rejected, written_examples
from modelwright.core.stages.prepare.holdout import Drawn, FindPrompts, draw
from modelwright.core.stages.prepare.packs import PackReport, write_packs
from modelwright.core.stages.prepare.pool import Pool, available_processes
from modelwright.core.stages.prepare.quality import check_inputs, check_names
from modelwright.core.stages.prepare.reading import ReadShards, Shard, ShardSelection, shards, shards_of
from modelwright.core.stages.prepare.rendering import (
    ExamplesFile,
    RenderAhead,
    RenderExamples,
    TokenReport,
    TokenSettings,
)
from modelwright.core.stages.prepare.tokenizers import scratch_renderer

# Raise this when the same rows give other examples, reasons or verdicts than before.
READING_VERSION = 3

# The most selections that an error names.
NAMED = 5

STAGE = "prepare"

Emit = Callable[[str, Mapping[str, Any]], None]


def reading_job(run: Run, cache: Cache) -> ReadShards:
    """The job that reads the shards of a run.

    Raises:
        UsageError: a test set to compare with does not exist.
    """
    config, plugins = run.config, run.plugins
    spec = plugins.get(FormatSpec, config.data.format)
    plain = to_plain(config)
    recipe = [READING_VERSION, plugins.origin(spec), spec.name, plain["data"]["options"]]
    return ReadShards(plain, digest_json(recipe), digest_json(check_inputs(config, plugins)), cache, run.merging)


def base_renderer(run: Run) -> Renderer | None:
    """The renderer of the base model; None for a model from scratch, whose tokenizer is trained on the data.

    Raises:
        UsageError: the base has no tokenizer or no template, or `[data.tokens] end` does not suit them.
    """
    template = run.config.model.chat_template
    if run.base is None:
        return None
    renderer = Renderer.from_folder(run.base.folder, chat_template=read_template(template) if template else None)
    return _adapted(renderer, run.config.data.tokens)


def _adapted(renderer: Renderer, tokens: TokensConfig) -> Renderer:
    return renderer.adapted(omit_thinking=tokens.thinking == "omit", end=tokens.end)


def _turns(tokens: TokensConfig) -> Turns:
    """What the renderer calls it."""
    if tokens.turns == "all":
        return "auto"
    return "all" if tokens.turns == "whole" else tokens.turns


def pool_of(run: Run, cache: Cache) -> Pool:
    """The worker processes of a run, which hold the lock of the cache like this process."""
    workers = run.config.data.workers
    assert cache.lock is not None, "the cache must be locked while it is used"
    return Pool(available_processes() if workers == "auto" else workers, run.plugins, inherited=cache.lock)


class Preparation:
    """Fills a folder: call `read`, then `render`. Use it as a context manager, which ends the worker processes.

    Args:
        run: the run to prepare.
        folder: an empty folder.
        cache: where shards are cached.
        emit: writes an event.

    Attributes:
        rows: number of rows read.
        examples: number of examples kept.
        rejected: rows that cannot be read or rendered.
        report: counts of what became of the examples.
        block: what generation prompts open; known after `render`.
    """

    def __init__(self, run: Run, folder: Path, cache: Cache, emit: Emit) -> None:
        self.run = run
        self.folder = folder
        self.rows = 0
        self.examples = 0
        self.rejected = Rejected(folder / "rejected.jsonl")
        self.report = TokenReport()
        self.block = ThinkingBlock()
        self._cache = cache
        self._emit = emit
        self._notices: list[str] = []
        self._detected: Counter[str] = Counter()
        self._deduplicator = Deduplicator(run.config.data.quality.deduplicate, folder / "removed.jsonl")
        self._files: list[ExamplesFile] = []
        self._drawn: Drawn | None = None
        self._packs: PackReport | None = None
        self._pool = pool_of(run, cache)

    def __enter__(self) -> Self:
        self._pool.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.__exit__()

    def read(self) -> None:
        """Turn rows into examples, and remove some.

        Raises:
            ModelwrightError: a source or its format failed; or --merge finds shards that no job has prepared.
        """
        config = self.run.config
        (self.folder / "examples").mkdir()
        origins: list[tuple[int, str]] = []

        def passed_on() -> Iterator[Shard]:
            for shard in shards(config.data.sources, config.seed, self._notice):
                origins.append((shard.source, shard.file))
                yield shard

        job = reading_job(self.run, self._cache)
        results = self._pool.ordered(job, passed_on(), self.run.folder.check_stop)
        missing: list[int] = []
        for number, entry in enumerate(results):
            if entry is None:
                missing.append(number)
            elif not missing:
                source, file = origins[number]
                self._take_examples(number, file, config.data.sources[source].weight, entry)
        if missing:
            raise ModelwrightError(_unread(self.run, missing, len(origins)))

    def render(self) -> None:
        """Turn examples into tokens.

        Raises:
            ModelwrightError: there is no tokenizer or template; or all examples have one prompt, and some are to be
                held out.
        """
        config = self.run.config
        self._hold_out(config.data.holdout.fraction)
        renderer = self._renderer()
        self.block = renderer.thinking_block
        tokenizer = self.folder / "tokenizer"
        renderer.save(tokenizer)
        for split in ("train", "holdout"):
            (self.folder / split).mkdir()
        settings = TokenSettings(
            max_length=config.data.tokens.max_length,
            turns=_turns(config.data.tokens),
            seed=config.seed,
            empty_thinking=config.data.tokens.thinking == "empty",
        )
        job = RenderExamples(tokenizer, renderer.fingerprint, settings, self._cache)
        results = self._pool.ordered(job, self._files, self.run.folder.check_stop)
        for number, (given, entry) in enumerate(zip(self._files, results, strict=True), start=1):
            self._take_tokens(given.path.stem, entry)
            rendered = self.examples * number // len(self._files)
            self._emit("rendering", {"rendered": rendered, "examples": self.examples})
        if count := self.report.split:
            self._notice(
                f"{count} conversations are split, a row for each answer: the template shows their earlier answers "
                'otherwise than it serves them ([data.tokens] turns = "all")'
            )
        if self._packed():
            self._packs = write_packs(self.folder / "train", settings.max_length)

    @property
    def removed(self) -> dict[str, int]:
        """The number of examples that each check removed."""
        return {name: self._deduplicator.counts[name] for name in check_names(self.run.config)}

    def summary(self) -> dict[str, Any]:
        """All counts, as JSON values."""
        return {
            "read": self.rows,
            "examples": self.examples,
            "detected": dict(self._detected.most_common()),
            "rejected": self.rejected.count,
            "reasons": self.rejected.reasons,
            "notices": self._notices,
            "removed": self.removed,
            **self.report.to_plain(),
            "holdout_prompts": self._drawn.prompts if self._drawn else 0,
            "holdout_shared": self._drawn.shared if self._drawn else 0,
            "packs": self._packs and asdict(self._packs),
        }

    def _hold_out(self, fraction: float) -> None:
        """Mark the examples that are not trained on."""
        if not fraction:
            return
        found = list(self._pool.ordered(FindPrompts(self.run.config.seed), self._files, self.run.folder.check_stop))
        count = sum(len(each.numbers) for each in found)
        if not count:
            return
        self._drawn = draw(found, fraction)
        if self._drawn.of == 1:
            raise ModelwrightError(
                f"all examples ({count}) have the same prompt, which cannot be both trained and held out: add data, or "
                "set [data.holdout] fraction = 0"
            )
        for text in self._drawn.notices():
            self._notice(text)
        self._files = [evolve(file, held=held) for file, held in zip(self._files, self._drawn.held, strict=True)]

    def _packed(self) -> bool:
        """Whether to pack rows: with "auto", only if all rows are plain text."""
        way, report = self.run.config.data.tokens.packing, self.report
        return bool(report.rows) and (way == "pack" or (way == "auto" and report.texts == report.rows))

    def _notice(self, text: str) -> None:
        self._notices.append(text)
        self._emit("notice", {"text": text})

    def _take_examples(self, number: int, file: str, weight: float, entry: Path) -> None:
        facts = files.read_json(entry / reading.FACTS)
        target = self.folder / "examples" / f"{number:05}.jsonl"
        kept_count = self._deduplicator.filter(file, facts, entry / reading.EXAMPLES, target)
        if kept_count:
            self._files.append(ExamplesFile(target, weight, entry))
        self.rows += facts["rows"]
        self.examples += kept_count
        self._detected.update(facts["detected"])
        self._take_rejected(entry / reading.REJECTED, facts)
        self._emit("reading", {"rows": self.rows})

    def _take_rejected(self, file: Path, facts: Mapping[str, Any]) -> None:
        self.rejected.add_all(file, facts["rejected"], facts["reasons"], facts["first"])

    def _take_tokens(self, name: str, entry: Path) -> None:
        facts = files.read_json(entry / rendering.FACTS)
        self.report.add(TokenReport.from_plain(facts["report"]))
        self._take_rejected(entry / rendering.REJECTED, facts)
        for split, shard in (("train", rendering.TRAIN), ("holdout", rendering.HOLDOUT)):
            if (entry / shard).is_file():
                link(entry / shard, self.folder / split / f"{name}.arrow")
        if (entry / rendering.DROPPED).is_file():
            with (self.folder / "dropped.jsonl").open("ab") as dropped:
                dropped.write((entry / rendering.DROPPED).read_bytes())

    def _renderer(self) -> Renderer:
        model = self.run.config.model
        renderer = base_renderer(self.run)
        if renderer is not None:
            return renderer
        assert model.scratch is not None
        made = scratch_renderer(
            model.scratch.tokenizer,
            written_examples(self.folder / "examples"),
            vocab_size=model.scratch.vocab_size,
            template=read_template(model.chat_template or "chatml"),
        )
        return _adapted(made, self.run.config.data.tokens)


def prepare_shards(run: Run, selection: ShardSelection) -> dict[str, Any]:
    """Prepare the selected shards: read them, and render them too if the run has a base, whose tokenizer is known.

    The results go to the cache, where the job with --merge finds them. The stage is not marked as done; in the folder
    of the run, only events and the folder of this job are written. Jobs with other selections can run at the same time,
    on any machine. A job that was killed or stopped resumes where it was.

    Args:
        run: from `open_run`, checked.
        selection: which ones.

    Returns:
        `shard`, the selection as I/N; `shards`, how many it has; `of`, how many there are; `rows`; `examples`.

    Raises:
        StopRequested: the job was asked to stop; the same call resumes it.
        ModelwrightError: it failed.
    """
    root = home.cache()
    folder = run.folder.shard(selection.number, selection.of)
    with files.failing_as(f"{folder.path} cannot be made"):
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.path.touch()  # the newest of these folders says how many jobs there are
    folder.clear_stop()
    events = EventWriter(run.folder.events, run=run.config.name, stage=STAGE)

    def emit(kind: str, data: Mapping[str, Any]) -> None:
        event = events.emit(kind, {"shard": str(selection), **data})
        if run.listener:
            run.listener(event)

    try:
        emit("begun", {})
        if job := allocation():
            emit("job", {"job": job.job, "nodes": job.node_list, "restarts": job.restarts})
        try:
            with stop_on_signals(folder), naming_full_disk(root), Cache(root).locked(sweep=False) as cache:
                done = _prepare(run, selection, folder, cache, emit)
        except Exception as error:
            emit("ended", {"state": type(error).__name__, "error": str(error)})
            raise
        emit("shard", done)
        emit("ended", {"state": "done"})
    finally:
        events.close()
    return {"shard": str(selection), **done}


def _prepare(run: Run, selection: ShardSelection, folder: RunFolder, cache: Cache, emit: Emit) -> dict[str, Any]:
    config = run.config
    found = 0

    def passed() -> None:
        nonlocal found
        found += 1

    with pool_of(run, cache) as pool:
        mine = shards_of(selection, config.data.sources, config.seed, passed)
        entries: list[Path] = []
        examples: list[int] = []
        rows = 0
        for entry in pool.ordered(reading_job(run, cache), mine, folder.check_stop):
            assert entry is not None, "a job that makes missing entries returns all of them"
            facts = files.read_json(entry / reading.FACTS)
            entries.append(entry)
            examples.append(len(facts["ids"]))
            rows += facts["rows"]
            emit("reading", {"rows": rows})
        renderer = base_renderer(run) if entries else None
        if renderer is not None:
            tokenizer = folder.path / "tokenizer"
            renderer.save(tokenizer)
            tokens = config.data.tokens
            job = RenderAhead(tokenizer, renderer.fingerprint, _turns(tokens), cache, tokens.thinking == "empty")
            rendered = pool.ordered(job, entries, folder.check_stop)
            for done, _ in zip(itertools.accumulate(examples), rendered, strict=True):
                emit("rendering", {"rendered": done, "examples": sum(examples)})
    return {"shards": len(entries), "of": found, "rows": rows, "examples": sum(examples)}


def _unread(run: Run, missing: Sequence[int], shards: int) -> str:
    """The error of --merge if shards are missing: which jobs have to run first."""
    of = run.folder.shards()
    if of is None:
        which = "I/N for each I from 1 to N"
    else:
        parts = sorted({number % of + 1 for number in missing})
        which = listed([ShardSelection(number, of) for number in parts], NAMED)
    return (
        f"{run.config.name}: {len(missing)} of {shards} shards are not prepared yet: run modelwright prepare with "
        f"--shard {which} first, or without --merge to prepare them here"
    )
