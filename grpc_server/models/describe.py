"""Models and routes as the protocol's messages tell of them."""

from __future__ import annotations

from collections.abc import Sequence

from modelwright.core.api.components import EngineSpec
from modelwright.core.api.registry import ModelVersion
from modelwright.grpc_server.models.lease import Route
from modelwright.grpc_server.models.loaded import LoadedModel
from modelwright.v1 import model_pb2


def loaded(model: LoadedModel, aliases: Sequence[str], *, ready: bool) -> model_pb2.Model:
    """A model in memory; one that is not `ready` finishes the requests that it has."""
    state = model_pb2.MODEL_STATE_READY if ready else model_pb2.MODEL_STATE_DRAINING
    described = _model(model.version, model.spec, state)
    described.MergeFrom(
        model_pb2.Model(
            pinned=model.pinned,
            aliases=aliases,
            context_length=model.context_length,
            active_requests=model.active,
        )
    )
    described.load_time.FromDatetime(model.loaded)
    return described


def loading(version: ModelVersion, spec: EngineSpec) -> model_pb2.Model:
    """A model that is being loaded."""
    return _model(version, spec, model_pb2.MODEL_STATE_LOADING)


def failed(version: ModelVersion, spec: EngineSpec, error: str) -> model_pb2.Model:
    """A model that could not be loaded, and why."""
    described = _model(version, spec, model_pb2.MODEL_STATE_FAILED)
    described.error = error
    return described


def gone(version: ModelVersion) -> model_pb2.ModelGone:
    """A model that the server has no more."""
    return model_pb2.ModelGone(name=version.name, version=version.version, digest=version.digest)


def route(route: Route) -> model_pb2.Route:
    """Where an alias points."""
    version = route.model.version
    return model_pb2.Route(
        alias=route.alias,
        name=version.name,
        version=version.version,
        digest=version.digest,
        generation=route.generation,
        etag=route.etag,
    )


def _model(version: ModelVersion, spec: EngineSpec, state: model_pb2.ModelState) -> model_pb2.Model:
    return model_pb2.Model(
        name=version.name,
        version=version.version,
        digest=version.digest,
        state=state,
        engine=spec.name,
        abilities=sorted(spec.abilities),
    )
