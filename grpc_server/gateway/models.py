"""/v1/models: what can be asked, in OpenAI's shape; each id is an address."""

from __future__ import annotations

from typing import Any

import grpc

from modelwright.grpc_server.errors import RequestError
from modelwright.grpc_server.gateway.answer import full_address
from modelwright.grpc_server.gateway.errors import HttpError
from modelwright.grpc_server.models.loaded import LoadedModel
from modelwright.grpc_server.models.table import ModelTable


def list_models(table: ModelTable) -> dict[str, Any]:
    """The aliases, then the models, as a list that clients offer to their users."""
    routes = [_described(table, f"@{route.alias}", route.model) for route in table.routes()]
    models = [_described(table, model.address, model) for model in table.models() if table.wants(model)]
    return {"object": "list", "data": routes + models}


def get_model(table: ModelTable, address: str) -> dict[str, Any]:
    """The model at an address.

    Raises:
        HttpError: what the path says is no address, and so nothing is there (404).
        RequestError: this server does not serve it (NOT_FOUND).
    """
    try:
        return _described(table, address, table.find(full_address(table, address)).model)
    except RequestError as error:
        if error.code is not grpc.StatusCode.INVALID_ARGUMENT:
            raise
        raise HttpError(404, "model_not_found", error.message, param="model") from error


def _described(table: ModelTable, address: str, model: LoadedModel) -> dict[str, Any]:
    version = model.version
    return {
        "id": address,
        "object": "model",
        "created": int(version.created.timestamp()),
        "owned_by": "modelwright",
        "modelwright": {
            "name": version.name,
            "version": version.version,
            "digest": version.digest,
            "aliases": [route.alias for route in table.routes() if route.model is model],
            "engine": model.spec.name,
            "abilities": sorted(model.spec.abilities),
            "context_length": model.context_length,
            "active_requests": model.active,
        },
    }
