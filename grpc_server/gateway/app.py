"""The paths, who may call them, and the answers to errors."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from modelwright.grpc_server.errors import shutting_down
from modelwright.grpc_server.gateway import models
from modelwright.grpc_server.gateway.body import EarlyRefusal, read_object
from modelwright.grpc_server.gateway.connection import ClientGoneError, EventStream, ServerState, attend
from modelwright.grpc_server.gateway.errors import HttpError, bad, error_response, http_error
from modelwright.grpc_server.gateway.openai_request import OpenAIRequest, read_chat, read_completion
from modelwright.grpc_server.gateway.responses import admit
from modelwright.grpc_server.models.switching import ModelTable
from modelwright.grpc_server.network.access import Access

Endpoint = Callable[[Request], Awaitable[Response]]
Reader = Callable[[dict[str, Any]], OpenAIRequest]
Scopes = Literal["open", "use", "admin"]

# Shown at / and listed in errors.
PATHS = {
    "GET /v1/models": "lists what can be requested",
    "GET /v1/models/{model}": "shows one model",
    "POST /v1/chat/completions": "answers a conversation",
    "POST /v1/completions": "continues a text",
    "GET /health": "whether the server accepts requests",
    "GET /admin/aliases": "lists the aliases and their models",
    "GET /admin/aliases/{alias}": "shows one alias",
    "PUT /admin/aliases/{alias}": 'switches it: {"target": ADDRESS, "persist": false}',
}


class Gateway:
    """The ASGI application.

    Args:
        table: the served models.
        access: who may call.
        state: of the server.
        limit: maximum size of a request's body, in bytes.
    """

    def __init__(self, table: ModelTable, access: Access, state: ServerState, *, limit: int) -> None:
        self._table = table
        self._access = access
        self._state = state
        self._limit = limit
        self._app = Starlette(
            routes=[
                self._route("/", "open", get=self._home),
                self._route("/health", "open", get=self._health),
                self._route("/v1/models", "use", get=self._models),
                self._route("/v1/models/{model:path}", "use", get=self._model),
                self._route("/v1/chat/completions", "use", post=self._answerer(read_chat)),
                self._route("/v1/completions", "use", post=self._answerer(read_completion)),
                self._route("/admin/aliases", "admin", get=self._aliases),
                self._route("/admin/aliases/{alias:path}", "admin", get=self._alias, put=self._set_alias),
            ],
            exception_handlers={HTTPException: _no_route},
        )
        self._app.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        with self._state.counted():
            await self._app(scope, receive, send)

    def _route(self, path: str, scope: Scopes, **endpoints: Endpoint) -> Route:
        methods = {method.upper(): endpoint for method, endpoint in endpoints.items()}

        async def call(request: Request) -> Response:
            # HEAD is GET without the answer's body, which uvicorn drops.
            endpoint = methods.get(request.method) or methods["GET"]
            try:
                self._check(request, scope)
                return await endpoint(request)
            except (ClientGoneError, ClientDisconnect):
                return Response(status_code=499)  # nobody reads it
            except Exception as error:  # noqa: BLE001 - every failure has a status
                refusal = http_error(error)
            # Otherwise a body that nobody read would be taken for the connection's next request.
            return EarlyRefusal(refusal) if "Connection" in refusal.headers else error_response(refusal)

        return Route(path, call, methods=list(methods))

    def _check(self, request: Request, scope: Scopes) -> None:
        headers = request.headers
        if "content-length" in headers and "transfer-encoding" in headers:
            message = "the headers Content-Length and Transfer-Encoding are both set: send one"
            raise HttpError(400, "malformed_message", message, headers={"Connection": "close"})
        if scope == "open":
            return
        authorization = headers.get("authorization")
        self._access.check(authorization, scope)
        if scope == "admin" and self._access.admin_token is None and self._access.token is None:
            models.check_open_door(headers.get("host"))
        if self._draining:
            raise shutting_down()
        if request.url.query:
            raise bad(
                "unknown_field", "the URL has a query string (?…), which this server does not accept: leave it out"
            )

    @property
    def _draining(self) -> bool:
        return self._state.draining or self._table.closing

    # Requests to models

    def _answerer(self, read: Reader) -> Endpoint:
        async def answer(request: Request) -> Response:
            wanted = read(await self._body(request))
            async with contextlib.AsyncExitStack() as held:
                try:
                    admitted = held.enter_async_context(admit(self._table, wanted))
                    answering = await attend(request.receive, self._state, admitted)
                    if not wanted.stream:
                        return JSONResponse(await attend(request.receive, self._state, answering.whole()))
                except ClientGoneError:
                    raise
                except Exception as error:
                    raise http_error(error, wanted.names) from error
                return EventStream(answering.events(), held.pop_all(), self._state, wanted.names)

        return answer

    async def _body(self, request: Request) -> dict[str, Any]:
        return await self._state.until_cut(read_object(request, self._limit))

    async def _models(self, _request: Request) -> Response:
        return JSONResponse(models.list_models(self._table))

    async def _model(self, request: Request) -> Response:
        return JSONResponse(models.get_model(self._table, request.path_params["model"]))

    # The server itself

    async def _home(self, _request: Request) -> Response:
        width = max(map(len, PATHS))
        lines = [f"  {path:{width}}  {what}" for path, what in PATHS.items()]
        return PlainTextResponse("\n".join(["Modelwright, in OpenAI's shapes:", "", *lines, ""]))

    async def _health(self, _request: Request) -> Response:
        if self._draining:
            return JSONResponse({"status": "draining"}, status_code=503, headers={"Retry-After": "1"})
        return JSONResponse({"status": "serving"})

    async def _aliases(self, _request: Request) -> Response:
        return JSONResponse(models.list_aliases(self._table))

    async def _alias(self, request: Request) -> Response:
        route = models.get_alias(self._table, request.path_params["alias"])
        return JSONResponse(models.described(route), headers={"ETag": models.quoted_etag(route)})

    async def _set_alias(self, request: Request) -> Response:
        body = await self._body(request)
        alias = request.path_params["alias"]
        switch = models.set_alias(self._table, alias, body, request.headers)
        # If the client disconnects, the table still finishes the switch.
        route, answer = await attend(request.receive, self._state, switch)
        return JSONResponse(answer, headers={"ETag": models.quoted_etag(route)})


async def _no_route(request: Request, error: Exception) -> Response:
    """Answer a path or method that Starlette itself refuses."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
        message = f"{request.method} is not allowed at {request.url.path[:200]}: expected {allowed}"
        return error_response(HttpError(405, "method_not_allowed", message, headers={"Allow": allowed}))
    message = f"there is no path {request.url.path[:200]}; this server has: {', '.join(PATHS)}"
    return error_response(HttpError(404, "not_found", message))
