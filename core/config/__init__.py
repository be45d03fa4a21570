"""Run and evaluation files to typed configuration: `read_run`, `read_eval`, and what they give and raise."""

from modelwright.core.config.cluster import ClusterConfig
from modelwright.core.config.data import DataConfig, HoldoutConfig, QualityConfig, SourceConfig, TokensConfig
from modelwright.core.config.errors import ConfigError, Problem
from modelwright.core.config.paths import FilePath, ModelSource
from modelwright.core.config.reader import (
    EvalFile,
    Runs,
    eval_from_plain,
    from_plain,
    is_eval_file,
    read_eval,
    read_run,
    to_plain,
)
from modelwright.core.config.registry import EvalRegistryConfig, PromoteConfig, RegistryConfig
from modelwright.core.config.schema import (
    EvalConfig,
    EvalSuiteConfig,
    GenerationConfig,
    ModelConfig,
    PluginsConfig,
    RunConfig,
    ScratchConfig,
    SuiteConfig,
)

__all__ = [
    "ClusterConfig",
    "ConfigError",
    "DataConfig",
    "EvalConfig",
    "EvalFile",
    "EvalRegistryConfig",
    "EvalSuiteConfig",
    "FilePath",
    "GenerationConfig",
    "HoldoutConfig",
    "ModelConfig",
    "ModelSource",
    "PluginsConfig",
    "Problem",
    "PromoteConfig",
    "QualityConfig",
    "RegistryConfig",
    "RunConfig",
    "Runs",
    "ScratchConfig",
    "SourceConfig",
    "SuiteConfig",
    "TokensConfig",
    "eval_from_plain",
    "from_plain",
    "is_eval_file",
    "read_eval",
    "read_run",
    "to_plain",
]
