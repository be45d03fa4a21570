"""The tables of run files that say which rows there are and what becomes of them: `[data]` and its own tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from attrs import field, fields, frozen, validators

from modelwright.core.config.paths import (
    DatasetSource,
    FilePath,
)

_positive = validators.gt(0)
_auto_or_positive: Any = validators.or_(validators.in_(("auto",)), _positive)
_share = validators.and_(validators.ge(0.0), validators.le(1.0))
_part = validators.and_(validators.gt(0.0), validators.le(1.0))


@frozen(kw_only=True)
class RowsConfig:
    """Where rows are.

    Attributes:
        path: A file (`.jsonl`, `.json`, `.csv`, each also as `.gz` or `.zst`; `.parquet`, `.arrow`), a glob, a folder,
            a data set saved by the package `datasets`, `hf://datasets/ORG/NAME/FILES` on the Hugging Face hub (a
            revision is `ORG/NAME@REVISION`), or the bundled `builtin:NAME/SPLIT`. Give exactly one of path and dataset.
        dataset: A data set that the package `datasets` reads: `ORG/NAME` on the Hugging Face hub, a folder of data
            files, or what `save_to_disk` wrote. A value that starts with `./`, `../`, `/` or `~`, or that names an
            existing folder, is a folder.
        config: Config (subset) of the data set. Default: its only or its default one.
        split: Split of the data set, or slices of splits as `datasets` writes them: `"train"`, `"train[:10%]"`,
            `"train[100:200]+test"`. Default: its only one.
        revision: Branch, tag or commit of a data set of the hub. Default: its main branch. Set a commit so that the
            rows never change; the commit that was read is recorded in any case.
        streaming: Read the data set while it is downloaded, and keep no copy. Use it with `limit` for data sets that
            are larger than the disk.
    """

    path: FilePath | None = None
    dataset: DatasetSource | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    streaming: bool = False

    @property
    def place(self) -> str:
        """Where the rows are, for messages."""
        return self.path or "/".join(filter(None, (self.dataset, self.config, self.split)))

    @property
    def source(self) -> SourceConfig:
        """All of the rows."""
        return SourceConfig(**{one.name: getattr(self, one.name) for one in fields(RowsConfig)})

    def problems(self) -> Iterator[tuple[str, str]]:
        """What is wrong between fields, as (key, message)."""
        if (self.path is None) == (self.dataset is None):
            yield "path", "give exactly one of path and dataset"
        for key in ("config", "split", "revision", "streaming"):
            if getattr(self, key) and self.dataset is None:
                yield key, "needs dataset, the data set that it selects from"
        if self.revision is not None and self.dataset is not None and Path(self.dataset).is_absolute():
            yield "revision", "needs a data set of the hub: a folder has no revisions"


@frozen(kw_only=True)
class SourceConfig(RowsConfig):
    """`[[data.sources]]`: One source of training data.

    Attributes:
        limit: Use only this many rows, the first ones. Default: all rows. A small number makes a quick trial.
        fraction: Use a random share of the rows, drawn with the run's seed.
        weight: Sampling weight: 2 repeats each example twice per epoch, 0.5 uses half of them, drawn with the run's
            seed. Change it to balance sources of different size.
    """

    limit: int | None = field(default=None, validator=validators.optional(_positive))
    fraction: float = field(default=1.0, validator=_part)
    weight: float = field(default=1.0, validator=validators.and_(validators.gt(0.0), validators.le(100.0)))


@frozen(kw_only=True)
class QualityConfig:
    """`[data.quality]`: Which examples are removed before training.

    Attributes:
        deduplicate: `"exact"` removes examples with the same content as an earlier one; `"near"` also removes those
            with almost the same content; `false` keeps all.
        decontaminate: Remove examples that contain questions from this run's test sets.
        decontaminate_against: Also remove examples that contain questions from these test sets, which are read with the
            format of the training data. Each is a path, or a table with the keys of `[[data.sources]]` that say where
            rows are, such as `{ dataset = "openai/gsm8k", config = "main", split = "test" }`.
        verify_answers: Remove examples whose solution does not lead to their reference answer, as judged by the first
            metric of the run's test sets.
        min_characters: Remove examples with fewer than this many characters to train on.
        max_characters: Remove examples with more than this many characters to train on. Default: no limit.
        sanity: Remove examples whose trained text repeats itself or is full of unusual characters.
    """

    deduplicate: Literal["exact", "near", False] = "exact"
    decontaminate: bool = False
    decontaminate_against: tuple[FilePath | RowsConfig, ...] = ()
    verify_answers: bool = False
    min_characters: int = field(default=0, validator=validators.ge(0))
    max_characters: int | None = field(default=None, validator=validators.optional(_positive))
    sanity: bool = False


@frozen(kw_only=True)
class TokensConfig:
    """`[data.tokens]`: How examples become sequences of tokens.

    Attributes:
        max_length: Maximum length of a training example, in tokens. Longer examples are dropped and counted. A higher
            limit needs more memory.
        packing: `"pack"` puts several examples into one sequence, which saves padding; `"bucket"` batches examples of
            similar length; `"auto"` packs if all examples are plain text.
        turns: Assistant turns to train on: `"all"` of them, only the `"last"`, or `"split"`, which makes a separate
            example of each. `"all"` splits the conversations whose earlier answers the template shows otherwise than it
            serves them, such as without their thinking; `"whole"` splits none, which stops the run on those.
        thinking: What answers without thinking are trained behind, if the template's generation prompt opens a thinking
            block that it does not show in the history: `"empty"` teaches the model to close the block at once,
            `"omit"` removes the block from the prompts of the trained model. By default such answers stop the run.
        end: Token that ends an answer, for a template that puts none after the last one, such as `"<|user|>"` or the
            end-of-sequence token. The trained model's template gets it.
        allow: Anomalies to accept. An anomaly is a difference between the tokens that are trained and the text that the
            data marks for training. By default any anomaly stops the run, and the error names the value to put here.
    """

    max_length: int = field(default=2048, validator=validators.ge(2))
    packing: Literal["auto", "pack", "bucket"] = "auto"
    turns: Literal["all", "whole", "last", "split"] = "all"
    thinking: Literal["empty", "omit"] | None = None
    end: str | None = None
    allow: tuple[str, ...] = ()


@frozen(kw_only=True)
class HoldoutConfig:
    """`[data.holdout]`: Examples that are not trained on, to measure the loss on unseen data.

    Attributes:
        fraction: Share of the examples to hold out: whole prompts (first user turns) with all of their answers, and at
            least one. Set it to see overfitting, and for `early_stopping`.
    """

    fraction: float = field(default=0.0, validator=validators.and_(validators.ge(0.0), validators.lt(1.0)))


@frozen(kw_only=True)
class DataConfig:
    """`[data]`: Where the training data comes from and how it is read.

    Attributes:
        format: Name of the format plugin that reads the rows, such as `"math"`.
        max_rejected: Stop if more than this share of the rows cannot be read. Raise it for data with known gaps.
        workers: Number of processes that prepare the data; `"auto"` uses one per CPU core. Affects the speed only.
        options: Options of the format.
        sources: Where the rows come from; one or more.
    """

    format: str
    max_rejected: float = field(default=0.01, validator=_share)
    workers: int | Literal["auto"] = field(default="auto", validator=_auto_or_positive)
    options: Any = None
    sources: tuple[SourceConfig, ...] = field(validator=validators.min_len(1))
    quality: QualityConfig = field(factory=QualityConfig)
    tokens: TokensConfig = field(factory=TokensConfig)
    holdout: HoldoutConfig = field(factory=HoldoutConfig)
