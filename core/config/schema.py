"""The tables of a run.toml as attrs classes; `[train]` and `[adapter]` are part of the plugin contract.

A class's `problems()` says what is wrong between its fields. A value that this version cannot honour yet is refused,
never ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NewType

from attrs import field, frozen, validators

from modelwright.core.api.components import SPECS
from modelwright.core.api.errors import UsageError
from modelwright.core.api.registry import ALIAS_NAME, MODEL_NAME
from modelwright.core.api.training import AdapterSettings, TrainSettings
from modelwright.core.config.cluster import ClusterConfig
from modelwright.core.config.condition import parse_condition
from modelwright.core.config.metrics import MetricLabel
from modelwright.core.config.words import closest, either, shown

ModelAddress = NewType("ModelAddress", str)
# Strings that `core.config.paths` resolves while they are read; each says there how.
FilePath = NewType("FilePath", str)
ModelSource = NewType("ModelSource", str)
ChatTemplate = NewType("ChatTemplate", str)
RegistryUrl = NewType("RegistryUrl", str)

# Names become folders' names: as long as a model's at most.
LONGEST_NAME = 128
SUITE_NAME = re.compile(rf"[a-z][a-z0-9_-]{{0,{LONGEST_NAME - 1}}}")
VARIANT_NAME = SUITE_NAME

_positive = validators.gt(0)
_auto_or_positive: Any = validators.or_(validators.in_(("auto",)), _positive)
_share = validators.and_(validators.ge(0.0), validators.le(1.0))
_part = validators.and_(validators.gt(0.0), validators.le(1.0))


def _named(pattern: re.Pattern[str], words: str) -> Any:
    """A validator for names; `words` says what the pattern means."""

    def check(_instance: Any, _attribute: Any, value: str) -> None:
        if len(value) > LONGEST_NAME:
            raise ValueError(f"must have {LONGEST_NAME} or fewer characters, not {len(value)}")
        if not pattern.fullmatch(value):
            raise ValueError(f"must be {words}, not {shown(value)}")

    return check


def _not_yet(refused: Callable[[Any], bool], instead: str) -> Any:
    """A validator for values that are still to come."""

    def check(_instance: Any, _attribute: Any, value: Any) -> None:
        if refused(value):
            raise ValueError(f"{shown(value)} is not supported by this version: {instead}")

    return check


def _some_models(_instance: Any, _attribute: Any, value: Sequence[str]) -> None:
    """A validator for `models`: "all", or one or more."""
    if not value:
        raise ValueError('must not be empty: name models, or write "all"')


def _not_blank(_instance: Any, _attribute: Any, value: str) -> None:
    if not value.strip():
        raise ValueError("must not be empty")


@frozen(kw_only=True)
class ScratchConfig:
    """`[model.scratch]`: a model and a tokenizer built here.

    Attributes:
        architecture: the model family.
        hidden_size: width of the residual stream.
        layers: how many blocks.
        heads: attention heads; divides hidden_size into even head sizes.
        intermediate_size: width of the MLP; default four times hidden_size.
        tokenizer: "words" (words and single digits) or "bpe" (byte-level), built from the training data.
        vocab_size: the most tokens.
    """

    architecture: Literal["llama"] = "llama"
    hidden_size: int = field(default=64, validator=_positive)
    layers: int = field(default=2, validator=_positive)
    heads: int = field(default=4, validator=_positive)
    intermediate_size: int | None = field(default=None, validator=validators.optional(_positive))
    tokenizer: Literal["words", "bpe"] = "words"
    vocab_size: int = field(default=512, validator=validators.ge(16))

    def problems(self) -> Iterator[tuple[str, str]]:
        """What is wrong between fields, as (key, message)."""
        if self.hidden_size % (2 * self.heads):
            yield "heads", f"hidden_size {self.hidden_size} must be a multiple of twice the heads ({2 * self.heads})"


@frozen(kw_only=True)
class ModelConfig:
    """`[model]`: what the training begins from.

    Attributes:
        base: a folder in Hugging Face layout or a registry address; it is a folder where it begins with `./`, `../`,
            `/` or `~`, or where a folder of that name is there.
        chat_template: a built-in name ("chatml", a bare word) or a file; default: the tokenizer's own.
        dtype: of the weights in memory.
        attention: the implementation; "auto" takes FlashAttention on a GPU where the package flash-attn is installed,
            FlexAttention on a GPU for packs, else PyTorch's own ("sdpa"); on a CPU that is computed document by
            document, where the model allows it, so that nothing is padded or masked.
        trust_remote_code: whether the base may bring code.
        scratch: instead of base.
    """

    base: ModelSource | None = None
    chat_template: ChatTemplate | None = None
    dtype: Literal["auto"] = "auto"
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"] = "auto"
    trust_remote_code: bool = field(default=False, validator=_not_yet(bool, "leave it false"))
    scratch: ScratchConfig | None = None

    def problems(self) -> Iterator[tuple[str, str]]:
        """What is wrong between fields, as (key, message)."""
        if (self.base is None) == (self.scratch is None):
            yield "base", "exactly one of base and [model.scratch] must be given"


@frozen(kw_only=True)
class SourceConfig:
    """One of `[[data.sources]]`.

    Attributes:
        path: a file (.jsonl, .json, .csv, .gz or .zst of one, .parquet, .arrow), a glob, a folder, a data set saved by
            `datasets`, `hf://datasets/ORG/NAME/FILES` (ORG/NAME@REVISION) of the Hugging Face hub, or
            `builtin:NAME/SPLIT`.
        limit: the most rows to take.
        fraction: the share of its rows to take, drawn by the run's seed.
        weight: how often each of its examples is trained on in a pass over the data: 2 is twice, 0.5 is half of them,
            drawn by the run's seed.
    """

    path: FilePath
    limit: int | None = field(default=None, validator=validators.optional(_positive))
    fraction: float = field(default=1.0, validator=_part)
    weight: float = field(default=1.0, validator=validators.and_(validators.gt(0.0), validators.le(100.0)))


@frozen(kw_only=True)
class QualityConfig:
    """`[data.quality]`: what is removed before training.

    Attributes:
        deduplicate: all but the first of examples with the same content ("exact"), or of those that say almost the same
            as well ("near"); or false.
        decontaminate: examples in which questions of this run's test sets stand.
        decontaminate_against: likewise, of these files, which are read by the format of the data.
        verify_answers: examples whose solution does not come to their reference answer, by the first metric of the
            run's test sets.
        min_characters: examples with fewer characters to learn.
        max_characters: likewise with more.
        sanity: examples whose texts to learn repeat themselves, or are full of characters that nobody writes.
    """

    deduplicate: Literal["exact", "near", False] = "exact"
    decontaminate: bool = False
    decontaminate_against: tuple[FilePath, ...] = ()
    verify_answers: bool = False
    min_characters: int = field(default=0, validator=validators.ge(0))
    max_characters: int | None = field(default=None, validator=validators.optional(_positive))
    sanity: bool = False


@frozen(kw_only=True)
class TokensConfig:
    """`[data.tokens]`: from examples to what the model sees.

    Attributes:
        max_length: the most tokens of a training example; longer ones are dropped and counted.
        packing: "pack" puts several examples into a sequence, "bucket" groups those of similar length; "auto" packs
            where all are plain texts.
        turns: which assistant turns are trained: all, the last, or each in an example of its own.
        allow: anomalies of the label proof that may pass.
    """

    max_length: int = field(default=2048, validator=validators.ge(2))
    packing: Literal["auto", "pack", "bucket"] = "auto"
    turns: Literal["all", "last", "split"] = "all"
    allow: tuple[str, ...] = ()


@frozen(kw_only=True)
class HoldoutConfig:
    """`[data.holdout]`: examples that are held out of training for the loss curve.

    Attributes:
        fraction: their share.
    """

    fraction: float = field(default=0.0, validator=validators.and_(validators.ge(0.0), validators.lt(1.0)))


@frozen(kw_only=True)
class DataConfig:
    """`[data]`: the format, its options, and where the rows come from.

    Attributes:
        format: a format plugin's name.
        max_rejected: the share of unreadable rows above which the run stops.
        workers: how many processes prepare the data; "auto": as many as there are cores. It changes nothing but the
            time.
        options: an instance of the format's options class.
        sources: one or more.
    """

    format: str
    max_rejected: float = field(default=0.01, validator=_share)
    workers: int | Literal["auto"] = field(default="auto", validator=_auto_or_positive)
    options: Any = None
    sources: tuple[SourceConfig, ...] = field(validator=validators.min_len(1))
    quality: QualityConfig = field(factory=QualityConfig)
    tokens: TokensConfig = field(factory=TokensConfig)
    holdout: HoldoutConfig = field(factory=HoldoutConfig)


@frozen(kw_only=True)
class GenerationConfig:
    """`[evaluate.generation]`: how answers are sampled.

    Attributes:
        max_tokens: the most tokens of an answer, its thinking included.
        temperature: 0 takes the likeliest token.
        top_p: sample from the smallest set of tokens whose probabilities reach this sum.
        top_k: sample from this many likeliest tokens; 0 is no limit.
        stop: texts that end an answer; they are not part of it.
    """

    max_tokens: int = field(default=256, validator=_positive)
    temperature: float = field(default=0.0, validator=validators.ge(0.0))
    top_p: float = field(default=1.0, validator=_part)
    top_k: int = field(default=0, validator=validators.ge(0))
    stop: tuple[str, ...] = ()


@frozen(kw_only=True)
class SuiteConfig:
    """One of `[[evaluate]]`: a test set and how it is graded.

    Attributes:
        name: the suite's name in the registry.
        path: as a source's.
        format: default: `[data] format`, with its options.
        options: of the format, where it is another one than `[data]`'s; an instance of its options class.
        metrics: The metrics that grade the answers: names, or tables of a name and options, such as `["math_accuracy",
            { name = "exact_match", ignore_case = true }]`. Options are part of the figure's name,
            `exact_match(ignore_case=true)`, so figures with different options are not compared.
        limit: the most examples.
        samples: answers drawn for each example.
        generation: how.
    """

    name: str = field(validator=_named(SUITE_NAME, "a lower-case letter, then any of a-z 0-9 _ -"))
    path: FilePath
    format: str | None = None
    options: Any = None
    metrics: tuple[MetricLabel, ...] = field(validator=validators.min_len(1))
    limit: int | None = field(default=None, validator=validators.optional(_positive))
    samples: int = field(default=1, validator=_positive)
    generation: GenerationConfig = field(factory=GenerationConfig)

    def problems(self) -> Iterator[tuple[str, str]]:
        """What is wrong between fields, as (key, message)."""
        for index, metric in enumerate(self.metrics):
            if metric in self.metrics[:index]:
                yield f"metrics.{index}", f"metric {shown(metric)} is named twice"


@frozen(kw_only=True)
class PromoteConfig:
    """`[registry] promote`: the alias that moves to the new version if the condition (TOML key `if`) holds.

    Attributes:
        alias: its name, without the "@".
        condition: `SUITE.METRIC >= NUMBER` (or `>`, `<`, `<=`, `==`), several joined by `and`; default: it always
            moves.
    """

    alias: str = field(
        validator=_named(ALIAS_NAME, "a lower-case letter or digit, then any of a-z 0-9 . _ -, not all of them digits")
    )
    condition: str | None = field(default=None, metadata={"key": "if"}, validator=validators.optional(_not_blank))


@frozen(kw_only=True)
class RegistryConfig:
    """`[registry]`: where the model goes, its tags, and when an alias moves to it.

    Attributes:
        url: default: the registry of `$MODELWRIGHT_HOME`; the path in `sqlite:///models.db` (three slashes) is relative
            to the file as any path is, the one in `sqlite:////var/models.db` absolute.
        tags: the user's own.
        promote: default: no alias moves.
    """

    url: RegistryUrl | None = None
    tags: Mapping[str, str] = field(factory=dict)
    promote: PromoteConfig | None = None


@frozen(kw_only=True)
class PluginsConfig:
    """`[plugins]`: which to skip, and whom to prefer where two share a name.

    Attributes:
        disable: names of plugins that are not even imported.
        prefer: by `"KIND.NAME"`, such as `"metric.exact_match"`, the package whose component is meant.
    """

    disable: tuple[str, ...] = ()
    prefer: Mapping[str, str] = field(factory=dict)

    def problems(self) -> Iterator[tuple[str, str]]:
        """What is wrong with the keys of `prefer`, as (key, message)."""
        kinds = [spec.kind for spec in SPECS]
        for key in self.prefer:
            kind, dot, name = key.partition(".")
            if kind not in kinds or not dot or not name:
                close = closest(kind, kinds)
                meant = f", did you mean {shown(f'{close}.{name}')}?" if close and name else ""
                yield "prefer", f"{shown(key)} must be KIND.NAME, KIND being {either(kinds)}{meant}"


@frozen(kw_only=True)
class RunConfig:
    """A whole run of one variant, resolved: layers merged, paths absolute, options typed.

    Attributes:
        name: the model's name in the registry, the variant's name included.
        seed: of everything random.
    """

    name: str = field(validator=_named(MODEL_NAME, "a lower-case letter, then any of a-z 0-9 . _ -"))
    seed: int = field(default=17, validator=validators.and_(validators.ge(0), validators.lt(2**63)))
    model: ModelConfig
    adapter: AdapterSettings | None = None
    data: DataConfig
    train: TrainSettings
    evaluate: tuple[SuiteConfig, ...] = ()
    registry: RegistryConfig = field(factory=RegistryConfig)
    plugins: PluginsConfig = field(factory=PluginsConfig)
    cluster: ClusterConfig | None = None

    def problems(self) -> Iterator[tuple[str, str]]:
        """What is wrong between fields, as (key, message)."""
        yield from _same_names(self.evaluate)
        yield from self._promotion_problems()
        if self.adapter is not None and self.model.scratch is not None:
            message = "needs a model that has learnt something: give [model] base instead of [model.scratch]"
            yield "adapter", message
        if self.train.early_stopping is not None and not self.data.holdout.fraction:
            yield "train.early_stopping", "there is nothing held out to measure: set fraction in [data.holdout]"
        if self.data.quality.decontaminate and not self.evaluate:
            message = "there is no [[evaluate]] to compare with: name files instead, by decontaminate_against"
            yield "data.quality.decontaminate", message

    def _promotion_problems(self) -> Iterator[tuple[str, str]]:
        promote = self.registry.promote
        if promote is None or promote.condition is None:
            return
        try:
            clauses = parse_condition(promote.condition).clauses
        except UsageError as error:
            yield "registry.promote.if", str(error)
            return
        measured = [f"{suite.name}.{metric}" for suite in self.evaluate for metric in suite.metrics]
        for clause in clauses:
            if clause.measure not in measured:
                there_are = ", ".join(measured) or "nothing"
                yield "registry.promote.if", f"the run does not measure {clause.measure} (it measures: {there_are})"


@frozen(kw_only=True)
class EvalSuiteConfig(SuiteConfig):
    """One of `[[evaluate]]` in an evaluation file: there is no `[data]` whose format it could have."""

    format: str


@frozen(kw_only=True)
class EvalRegistryConfig:
    """`[registry]` of an evaluation file: where the models are; as in a run.toml."""

    url: RegistryUrl | None = None


@frozen(kw_only=True)
class EvalConfig:
    """An evaluation file, resolved: which models are graded on which test sets, without a run.

    Attributes:
        models: addresses in the registry, or "all" of it.
        seed: of everything random.
        evaluate: the test sets; the format of each is given. A file has one or more; a run may have none.
        output: the folder for the report and the samples; default: the command's choice.
    """

    models: tuple[ModelAddress, ...] | Literal["all"] = field(validator=_some_models)
    seed: int = field(default=17, validator=validators.and_(validators.ge(0), validators.lt(2**63)))
    evaluate: tuple[EvalSuiteConfig, ...]
    output: FilePath | None = None
    registry: EvalRegistryConfig = field(factory=EvalRegistryConfig)
    plugins: PluginsConfig = field(factory=PluginsConfig)

    def problems(self) -> Iterator[tuple[str, str]]:
        """What is wrong between fields, as (key, message)."""
        if not self.evaluate:
            yield "evaluate", "must not be empty: name a test set"
        for index, address in enumerate(self.models if self.models != "all" else ()):
            if address in self.models[:index]:
                yield f"models.{index}", f"model {shown(address)} is named twice"
        yield from _same_names(self.evaluate)


def _same_names(suites: Sequence[SuiteConfig]) -> Iterator[tuple[str, str]]:
    names = [suite.name for suite in suites]
    for index, name in enumerate(names):
        if name in names[:index]:
            yield f"evaluate.{index}.name", f"two suites are named {shown(name)}"
