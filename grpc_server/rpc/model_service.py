"""ModelService: what is served, and what changes it."""

from __future__ import annotations

import contextlib
from typing import Any

from modelwright.grpc_server.errors import invalid
from modelwright.grpc_server.models import describe
from modelwright.grpc_server.models.changes import Snapshot
from modelwright.grpc_server.models.table import ModelTable
from modelwright.grpc_server.rpc import codec
from modelwright.v1 import model_pb2

DESCRIPTOR = model_pb2.DESCRIPTOR.services_by_name["ModelService"]

# The methods that change the server.
ADMIN = frozenset({"LoadModel", "UnloadModel", "SetAlias"})

_EVENTS = {model_pb2.Model: "model", model_pb2.ModelGone: "gone", model_pb2.Route: "route"}


class ModelService:
    """ListModels, GetModel, WatchModels; LoadModel, UnloadModel and SetAlias."""

    def __init__(self, table: ModelTable) -> None:
        self._table = table

    def methods(self, limit: int) -> codec.Methods:
        """The handlers by method name, for requests of at most `limit` bytes."""
        return {
            "ListModels": codec.unary(model_pb2.ListModelsRequest, self.list_models, limit=limit),
            "GetModel": codec.unary(model_pb2.GetModelRequest, self.get_model, limit=limit),
            "LoadModel": codec.unary(model_pb2.LoadModelRequest, self.load_model, limit=limit),
            "UnloadModel": codec.unary(model_pb2.UnloadModelRequest, self.unload_model, limit=limit),
            "SetAlias": codec.unary(model_pb2.SetAliasRequest, self.set_alias, limit=limit),
            "WatchModels": codec.streaming(model_pb2.WatchModelsRequest, self.watch_models, limit=limit),
        }

    async def list_models(self, _request: Any, _context: codec.Context) -> model_pb2.ListModelsResponse:
        """List what is served."""
        there = self._table.snapshot()
        return model_pb2.ListModelsResponse(models=there.models, routes=there.routes)

    async def get_model(self, request: Any, _context: codec.Context) -> model_pb2.GetModelResponse:
        """Describe one model."""
        model = self._table.find(request.address, field="address").model
        return model_pb2.GetModelResponse(model=self._table.describe(model))

    async def load_model(self, request: Any, _context: codec.Context) -> model_pb2.LoadModelResponse:
        """Load a model."""
        engine = request.engine if request.HasField("engine") else None
        model = await self._table.pin(request.address, engine=engine)
        return model_pb2.LoadModelResponse(model=self._table.describe(model))

    async def unload_model(self, request: Any, _context: codec.Context) -> model_pb2.UnloadModelResponse:
        """Unload a model."""
        model = self._table.unpin(request.address)
        return model_pb2.UnloadModelResponse(model=self._table.describe(model))

    async def set_alias(self, request: Any, _context: codec.Context) -> model_pb2.SetAliasResponse:
        """Switch an alias."""
        if not request.target:
            raise invalid("target", "is empty: expected the address of a model")
        etag = request.etag if request.HasField("etag") else None
        switched = await self._table.switch(request.alias, request.target, etag=etag, persist=request.persist)
        return model_pb2.SetAliasResponse(
            route=describe.route(switched.route), changed=switched.changed, persisted=switched.persisted
        )

    async def watch_models(self, _request: Any, write: codec.Write) -> None:
        """Tell all that is served, then each change, until the caller leaves or the server goes down."""
        async with contextlib.aclosing(self._table.changes.watch()) as changes:
            async for change in changes:
                if isinstance(change, Snapshot):
                    await write(model_pb2.WatchModelsResponse(snapshot=self._table.snapshot()))
                else:
                    event = model_pb2.WatchModelsResponse()
                    getattr(event, _EVENTS[type(change)]).CopyFrom(change)
                    await write(event)
