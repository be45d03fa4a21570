"""What plugins may import: hooks, descriptors, records, and helpers for safe files."""

from modelwright.core.api.components import (
    API_VERSION,
    ComponentSpec,
    Engine,
    EngineSpec,
    Format,
    FormatSpec,
    Metric,
    MetricSpec,
    NoOptions,
    Registry,
    RegistrySpec,
    Trainer,
    TrainerSpec,
)
from modelwright.core.api.errors import (
    AliasConflictError,
    MissingDependencyError,
    ModelNotFoundError,
    ModelwrightError,
    RegistryError,
    RowError,
    StopRequested,
    UsageError,
)
from modelwright.core.api.generation import Delta, GenerationRequest, Sampling
from modelwright.core.api.hooks import hookimpl
from modelwright.core.api.records import Example, Figure, Message, Output, Score, wilson, wilson_mean
from modelwright.core.api.registry import Alias, ModelFile, ModelVersion, NewModel, RegistryEvent
from modelwright.core.api.tokens import TokenFolder, TokenRow
from modelwright.core.api.training import Job, Trained, TrainSettings

__all__ = [
    "API_VERSION",
    "Alias",
    "AliasConflictError",
    "ComponentSpec",
    "Delta",
    "Engine",
    "EngineSpec",
    "Example",
    "Figure",
    "Format",
    "FormatSpec",
    "GenerationRequest",
    "Job",
    "Message",
    "Metric",
    "MetricSpec",
    "MissingDependencyError",
    "ModelFile",
    "ModelNotFoundError",
    "ModelVersion",
    "ModelwrightError",
    "NewModel",
    "NoOptions",
    "Output",
    "Registry",
    "RegistryError",
    "RegistryEvent",
    "RegistrySpec",
    "RowError",
    "Sampling",
    "Score",
    "StopRequested",
    "TokenFolder",
    "TokenRow",
    "TrainSettings",
    "Trained",
    "Trainer",
    "TrainerSpec",
    "UsageError",
    "hookimpl",
    "wilson",
    "wilson_mean",
]
