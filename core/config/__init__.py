"""run.toml to typed configuration: `read_run`, and what it gives and raises."""

from modelwright.core.config.errors import ConfigError, Problem
from modelwright.core.config.reader import Runs, from_plain, read_run, to_plain
from modelwright.core.config.schema import (
    AdapterConfig,
    ClusterConfig,
    DataConfig,
    FilePath,
    GenerationConfig,
    HoldoutConfig,
    ModelConfig,
    ModelSource,
    PluginsConfig,
    PromoteConfig,
    QualityConfig,
    RegistryConfig,
    RunConfig,
    ScratchConfig,
    SourceConfig,
    SuiteConfig,
    TokensConfig,
)

__all__ = [
    "AdapterConfig",
    "ClusterConfig",
    "ConfigError",
    "DataConfig",
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
    "from_plain",
    "read_run",
    "to_plain",
]
