"""The five hooks. A plugin is a package with an entry point in the group `modelwright` that implements any of them.

# my_plugin.py
from modelwright import MetricSpec, hookimpl

@hookimpl
def modelwright_metrics():
    yield MetricSpec(name="brevity", summary="one over the number of words", factory="my_plugin:Brevity")

# pyproject.toml
[project.entry-points.modelwright]
my_plugin = "my_plugin"
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from modelwright.core.api.components import EngineSpec, FormatSpec, MetricSpec, RegistrySpec, TrainerSpec

PROJECT = "modelwright"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def modelwright_formats() -> Iterable[FormatSpec]:  # type: ignore[empty-body]
    """Data formats: how raw rows become examples.

    Example:
        @hookimpl
        def modelwright_formats():
            yield FormatSpec(name="trivia", summary="question, answer", factory="my_plugin:Trivia")
    """


@hookspec
def modelwright_trainers() -> Iterable[TrainerSpec]:  # type: ignore[empty-body]
    """Trainers: how a model learns.

    Example:
        @hookimpl
        def modelwright_trainers():
            yield TrainerSpec(name="lion", summary="the loop with Lion", factory="my_plugin:Lion", options=LionOptions)
    """


@hookspec
def modelwright_metrics() -> Iterable[MetricSpec]:  # type: ignore[empty-body]
    """Metrics: how outputs are graded.

    Example:
        @hookimpl
        def modelwright_metrics():
            yield MetricSpec(name="brevity", summary="one over the number of words", factory="my_plugin:Brevity")
    """


@hookspec
def modelwright_registries() -> Iterable[RegistrySpec]:  # type: ignore[empty-body]
    """Registry backends: where models are kept.

    Example:
        @hookimpl
        def modelwright_registries():
            yield RegistrySpec(
                name="s3", summary="objects in S3", schemes=("s3",), options=S3Options, factory="my_plugin:S3Registry"
            )
    """


@hookspec
def modelwright_engines() -> Iterable[EngineSpec]:  # type: ignore[empty-body]
    """Engines: how a model runs.

    Example:
        @hookimpl
        def modelwright_engines():
            yield EngineSpec(name="llamacpp", summary="llama.cpp in process", factory="my_plugin:LlamaCpp")
    """
