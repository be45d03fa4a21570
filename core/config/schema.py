"""The tables of run files and evaluation files as attrs classes.

`[train]` and `[adapter]` are part of the plugin contract (`core.api.train_settings`); `[registry]` and `[cluster]`
have files of their own. The docstrings are the text of docs/reference/configuration.md: a sentence or two for each
key say what it does, its unit, and when one would change it. A class's `problems()` reports what is wrong between its
fields. A value that this version does not support is refused, never ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from attrs import field, fields, frozen, validators

from modelwright.core.api.components import SPECS
from modelwright.core.api.registry import MODEL_NAME
from modelwright.core.api.train_settings import AdapterSettings, TrainSettings
from modelwright.core.api.wording import closest, either
from modelwright.core.config.cluster import ClusterConfig
from modelwright.core.config.errors import shown
from modelwright.core.config.metrics import MetricLabel
from modelwright.core.config.paths import (
    LONGEST_NAME,
    ChatTemplate,
    DatasetSource,
    FilePath,
    ModelAddress,
    ModelSource,
    named,
)
from modelwright.core.config.registry import EvalRegistryConfig, RegistryConfig

SUITE_NAME = re.compile(rf"[a-z][a-z0-9_-]{{0,{LONGEST_NAME - 1}}}")
VARIANT_NAME = SUITE_NAME

_positive = validators.gt(0)
_auto_or_positive: Any = validators.or_(validators.in_(("auto",)), _positive)
_share = validators.and_(validators.ge(0.0), validators.le(1.0))
_part = validators.and_(validators.gt(0.0), validators.le(1.0))


def _not_yet(refused: Callable[[Any], bool], instead: str) -> Any:
    """A validator for values that this version does not support yet."""

    def check(_instance: Any, _attribute: Any, value: Any) -> None:
        if refused(value):
            raise ValueError(f"{shown(value)} is not supported by this version: {instead}")

    return check


def _some_models(_instance: Any, _attribute: Any, value: Sequence[str]) -> None:
    """A validator for `models`: "all", or one or more."""
    if not value:
        raise ValueError('must not be empty: name models, or write "all"')


@frozen(kw_only=True)
class ScratchConfig:
    """`[model.scratch]`: A new model with random weights, and a tokenizer built from the training data.

    Attributes:
        architecture: Model family.
        hidden_size: Width of the model. Must be a multiple of twice `heads`.
        layers: Number of transformer blocks.
        heads: Number of attention heads.
        intermediate_size: Width of the MLP in each block. Default: four times `hidden_size`.
        tokenizer: `"words"` makes a token of each frequent word and each digit, for small models of few words; `"bpe"`
            (byte-level BPE) can encode any text.
        vocab_size: Maximum number of tokens in the vocabulary.
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
            yield "heads", f"hidden_size {self.hidden_size} must be a multiple of 2 × heads ({2 * self.heads})"


@frozen(kw_only=True)
class RopeScalingConfig:
    """`[model.rope_scaling]`: Stretch the base's rotary positions, so that it learns to use a longer context.

    The trained model's config.json has them, and its context is `factor` times the original one.

    Attributes:
        rope_type: How they are stretched: `"yarn"` keeps what nearby tokens see and stretches the rest, `"linear"`
            stretches all alike, `"llama3"` is the kind of Llama 3.1.
        factor: How many times the original context the new one has.
        original_max_position_embeddings: The original context in tokens. Default: by the base's config.
        attention_factor: Factor of the attention's scores, for `"yarn"`. Default: by `factor`.
        beta_fast: Waves that turn more often than this in the original context stay as they are, for `"yarn"`.
            Default: 32.
        beta_slow: Waves that turn less often than this are stretched whole, for `"yarn"`. Default: 1.
        low_freq_factor: Waves longer than the original context divided by this are stretched whole, for `"llama3"`.
        high_freq_factor: Waves shorter than the original context divided by this stay as they are, for `"llama3"`.
    """

    rope_type: Literal["yarn", "linear", "llama3"]
    factor: float = field(validator=validators.gt(1.0))
    original_max_position_embeddings: int | None = field(default=None, validator=validators.optional(_positive))
    attention_factor: float | None = field(default=None, validator=validators.optional(_positive))
    beta_fast: float | None = field(default=None, validator=validators.optional(_positive))
    beta_slow: float | None = field(default=None, validator=validators.optional(_positive))
    low_freq_factor: float | None = field(default=None, validator=validators.optional(_positive))
    high_freq_factor: float | None = field(default=None, validator=validators.optional(_positive))


@frozen(kw_only=True)
class ModelConfig:
    """`[model]`: The model that training starts from.

    Attributes:
        base: Model to continue from: a folder in Hugging Face layout, a GGUF file (dequantized by transformers), a
            registry address such as `math@3` or `@production`, or `ORG/NAME` on the Hugging Face hub. A value that
            starts with `./`, `../`, `/` or `~`, names an existing folder, or ends in `.gguf`, is a path.
        chat_template: Template that turns messages into text: a built-in name such as `chatml`, or a Jinja file.
            Default: the tokenizer's own. Set it for a base model whose tokenizer has no template.
        dtype: What the frozen weights under an `[adapter]` are held in. `"auto"` is bfloat16 if the processor or GPU
            computes in it, which then sets the precision too, else float32. Weights that are trained are always
            float32. `"bfloat16"` halves the memory on other processors, which are slower in it.
        quantization: What the linear layers under an `[adapter]` are held in: `"nf4"` takes a quarter of bfloat16's
            memory (QLoRA), `"int8"` and `"fp8"` half of it, each at some cost in speed and accuracy; `"int4"` is for
            trainers of other packages, because peft cannot train on torchao's 4-bit weights. The adapter fits the base
            as it was: it is merged into the unquantized weights, and evaluated and served with them.
        attention: Attention implementation. `"auto"` takes FlashAttention on a GPU if the package flash-attn is
            installed, FlexAttention on a GPU for packed sequences, otherwise PyTorch's own (`"sdpa"`). On a CPU,
            `"auto"` computes each packed document by itself if the model allows it, so that nothing is padded or
            masked. Set it if the automatic choice does not work with a model.
        trust_remote_code: Run Python code that comes with the base model.
        scratch: Build a new model instead of continuing from `base`.
        rope_scaling: Stretch the base's rotary positions for a longer context.
    """

    base: ModelSource | None = None
    chat_template: ChatTemplate | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantization: Literal["nf4", "int8", "fp8", "int4"] | None = None
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"] = "auto"
    trust_remote_code: bool = field(default=False, validator=_not_yet(bool, "leave it false"))
    scratch: ScratchConfig | None = None
    rope_scaling: RopeScalingConfig | None = None

    def problems(self) -> Iterator[tuple[str, str]]:
        """What is wrong between fields, as (key, message)."""
        if (self.base is None) == (self.scratch is None):
            yield "base", "give exactly one of base and [model.scratch]"
        if self.rope_scaling is not None and self.scratch is not None:
            yield "rope_scaling", "needs a trained model to stretch: a new one has the context of max_length"


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


@frozen(kw_only=True)
class GenerationConfig:
    """`[evaluate.generation]`: How answers are generated.

    Attributes:
        max_tokens: Maximum length of an answer in tokens, its thinking included. Raise it if answers are cut off.
        temperature: Sampling temperature. 0 always takes the most likely token.
        top_p: Sample from the smallest set of tokens whose probabilities add up to this value. 1 turns it off.
        top_k: Sample from this many most likely tokens; 0 means no limit.
        stop: Texts that end an answer. They are not part of it.
    """

    max_tokens: int = field(default=256, validator=_positive)
    temperature: float = field(default=0.0, validator=validators.ge(0.0))
    top_p: float = field(default=1.0, validator=_part)
    top_k: int = field(default=0, validator=validators.ge(0))
    stop: tuple[str, ...] = ()


@frozen(kw_only=True)
class SuiteConfig(RowsConfig):
    """`[[evaluate]]`: A test set, and how the model is graded on it.

    Attributes:
        name: Name of the test set. The registry stores its figures under this name.
        format: Format of the test data. Default: that of `[data]`, with its options.
        options: Options of the format, if they are not those of `[data]`.
        metrics: The metrics that grade the answers: names, or tables of a name and options, such as `["math_accuracy",
            { name = "exact_match", ignore_case = true }]`. Options are part of the figure's name,
            `exact_match(ignore_case=true)`, so figures with different options are not compared.
        limit: Use only this many examples, the first ones. Default: all.
        samples: Number of answers per example. More than one is useful with a `temperature` above 0.
        generation: How answers are generated.
    """

    name: str = field(validator=named(SUITE_NAME, "a lower-case letter, then any of a-z 0-9 _ -"))
    format: str | None = None
    options: Any = None
    metrics: tuple[MetricLabel, ...] = field(validator=validators.min_len(1))
    limit: int | None = field(default=None, validator=validators.optional(_positive))
    samples: int = field(default=1, validator=_positive)
    generation: GenerationConfig = field(factory=GenerationConfig)

    def problems(self) -> Iterator[tuple[str, str]]:
        """What is wrong between fields, as (key, message)."""
        yield from super().problems()
        for index, metric in enumerate(self.metrics):
            if metric in self.metrics[:index]:
                yield f"metrics.{index}", f"metric {shown(metric)} is named twice"


@frozen(kw_only=True)
class PluginsConfig:
    """`[plugins]`: Which plugins to ignore, and which package to prefer if two provide the same name.

    Attributes:
        disable: Names of plugins to ignore. They are not even imported, which helps with a plugin that crashes.
        prefer: Package to use for a name that several packages provide, by `"KIND.NAME"`: `"metric.exact_match" =
            "my-metrics"`.
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
                yield "prefer", f"{shown(key)} must be KIND.NAME, where KIND is {either(kinds)}{meant}"


@frozen(kw_only=True)
class RunConfig:
    """A run file, for one variant: layers merged, paths absolute, options structured.

    Attributes:
        name: Name of the model in the registry and of the run's folder. A variant adds its own name to it.
        seed: Seed of everything random: drawn rows, initial weights, the order of examples, dropout, sampled answers.
            Change it to see how much results vary.
        train: How the model is trained, a table; or `false`, usually in a variant: then the base itself is registered
            and evaluated beside the trained variants, to see what the training changed.
        evaluate: Test sets to grade the model on.
    """

    name: str = field(validator=named(MODEL_NAME, "a lower-case letter, then any of a-z 0-9 . _ -"))
    seed: int = field(default=17, validator=validators.and_(validators.ge(0), validators.lt(2**63)))
    model: ModelConfig
    adapter: AdapterSettings | None = None
    data: DataConfig
    train: TrainSettings | Literal[False]
    evaluate: tuple[SuiteConfig, ...] = ()
    registry: RegistryConfig = field(factory=RegistryConfig)
    plugins: PluginsConfig = field(factory=PluginsConfig)
    cluster: ClusterConfig | None = None

    def problems(self) -> Iterator[tuple[str, str]]:
        """What is wrong between fields, as (key, message)."""
        yield from _same_names(self.evaluate)
        if self.adapter is not None and self.model.scratch is not None:
            yield "adapter", "needs a trained model to adapt: give [model] base instead of [model.scratch]"
        if self.model.rope_scaling is not None and (self.adapter is not None or self.train is False):
            untrained = "an [adapter] leaves" if self.adapter is not None else "train = false leaves"
            yield "model.rope_scaling", f"changes the base, which {untrained} as it is: train all weights"
        yield from self._frozen_problems()
        if self.train is False:
            yield from self._untrained_problems()
        elif self.train.early_stopping is not None and not self.data.holdout.fraction:
            yield "train.early_stopping", "needs held-out data: set fraction in [data.holdout]"
        if self.data.quality.decontaminate and not self.evaluate:
            message = "needs an [[evaluate]] table to compare with, or name test sets with decontaminate_against"
            yield "data.quality.decontaminate", message

    def _frozen_problems(self) -> Iterator[tuple[str, str]]:
        """What is wrong with the dtype and the quantization of frozen weights."""
        kind, adapter, train = self.model.quantization, self.adapter, self.train
        if adapter is None:
            if self.model.dtype == "bfloat16":
                yield (
                    "model.dtype",
                    'needs an [adapter]: trained weights are float32; see [train] precision = "bfloat16"',
                )
            if kind is not None:
                yield "model.quantization", "needs an [adapter]: quantized weights cannot be trained themselves"
            return
        if train and self.model.dtype == "bfloat16" and train.precision == "float32":
            yield (
                "model.dtype",
                '"bfloat16" cannot be computed with in [train] precision = "float32": change one of them',
            )
        if kind is None:
            return
        if adapter.init != "default":
            yield (
                "adapter.init",
                f"{shown(adapter.init)} starts from the weights, which are quantized: remove one of them",
            )
        if adapter.dora and kind != "nf4":
            yield "adapter.dora", f'peft cannot compute it with quantization = {shown(kind)}: set "nf4", or remove dora'
        if train and train.compile:
            yield "train.compile", "does not work with [model] quantization: remove one of them"

    def _untrained_problems(self) -> Iterator[tuple[str, str]]:
        if self.model.scratch is not None:
            yield "train", "false needs a trained model to evaluate: give [model] base instead of [model.scratch]"
        if self.adapter is not None:
            yield "adapter", "is not trained if train is false: move [adapter] into the variants that train it"

    @property
    def training(self) -> TrainSettings:
        """`train` of a run that trains; asking for it in another one is a mistake in this program."""
        assert self.train is not False, f"{self.name} does not train"
        return self.train


@frozen(kw_only=True)
class EvalSuiteConfig(SuiteConfig):
    """`[[evaluate]]`: A test set, and how the models are graded on it.

    Attributes:
        format: Format of the test data.
        options: Options of the format.
    """

    format: str


@frozen(kw_only=True)
class EvalConfig:
    """An evaluation file: which registered models are graded on which test sets.

    Attributes:
        models: Addresses of the models to grade, such as `math@3` or `@production`, or `"all"` for every model in the
            registry.
        seed: Seed of everything random: drawn rows and sampled answers.
        evaluate: The test sets; one or more, each with its format.
        output: Folder for the report and the answers. Default: `evaluations/FILE` in `$MODELWRIGHT_HOME`.
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
