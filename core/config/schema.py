"""The tables of run files and evaluation files as attrs classes.

`[train]` and `[adapter]` are part of the plugin contract (`core.api.train_settings`); `[registry]` and `[cluster]`
have files of their own. The docstrings are the text of docs/reference/configuration.md: a sentence or two for each
key say what it does, its unit, and when one would change it. A class's `problems()` reports what is wrong between its
fields. A value that this version does not support is refused, never ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from attrs import field, frozen, validators

from modelwright.core.api.components import SPECS
from modelwright.core.api.registry import MODEL_NAME
from modelwright.core.api.train_settings import AdapterSettings, TrainSettings
from modelwright.core.api.wording import closest, either
from modelwright.core.config.cluster import ClusterConfig
from modelwright.core.config.data import DataConfig, RowsConfig
from modelwright.core.config.errors import shown
from modelwright.core.config.metrics import MetricLabel
from modelwright.core.config.paths import (
    LONGEST_NAME,
    ChatTemplate,
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
